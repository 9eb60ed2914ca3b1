"""A fan-out in a process of its own, as production runs it, for a benchmark; it sends nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.authority import SERVICE_TOKEN
from bench.machine import pinned
from execution.fanout.v1 import fanout_service_pb2 as pb
from mesh.errors import MeshError
from mesh.ports import LOOPBACK, port_block
from mesh.supervisor import ServiceSpec, Supervised

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["FanoutService"].full_name
_READY_SECONDS_MAX: Final = 60.0
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


@dataclass(frozen=True, slots=True)
class FanoutProcess:
    """`python -m services.fanout`."""

    port: int
    pid: int


@asynccontextmanager
async def fanout(
    redis_url: str,
    ledger_port: int,
    folder: Path,
    *,
    core: int | None,
    environment: Mapping[str, str] | None = None,
    ca_file: Path | None = None,
) -> AsyncIterator[FanoutProcess]:
    """A fan-out that serves on the loopback until the block ends. It logs into `folder`.

    One that serves over TLS, by its environment, is asked for its health by `ca_file`.
    """
    with port_block() as ports:
        port, admin_port = ports.take(), ports.take()
        settings = {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "GRPC_BIND_ADDRESS": f"{LOOPBACK}:{port}",
            "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:{admin_port}",
            "REDIS_URL": redis_url,
            "LEDGER_ADDRESS": f"{LOOPBACK}:{ledger_port}",
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "LOG_LEVEL": "WARNING",
            "DRAIN_GRACE_SECONDS": "1",
            "DRAIN_JITTER_SECONDS": "0",
            "STREAMS_MAX": "30000",
            **(environment or {}),
        }
        spec = ServiceSpec("fanout", settings, f"{LOOPBACK}:{port}", folder / "fanout.log")
        supervised = Supervised(spec)
        try:
            with pinned(core) if core is not None else nullcontext():
                supervised.start()
            if ca_file is None:
                await supervised.until_serving()
            await _until_ready(port, ca_file)
            assert supervised.child is not None
            yield FanoutProcess(port, supervised.child.pid)
        finally:
            await supervised.stop()


async def _until_ready(port: int, ca_file: Path | None) -> None:
    """Waits until streams can be opened: a process answers before it has read the end of the log.

    Raises:
        MeshError: it takes too long.
    """
    request = health_pb2.HealthCheckRequest(service=_SERVICE)
    async with _channel(port, ca_file) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch  # type: ignore[attr-defined]  # the stubs lack it
        try:
            async for answer in watch(request, timeout=_READY_SECONDS_MAX, wait_for_ready=True):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"the fan-out has not read its log: {error.details()}") from error


def _channel(port: int, ca_file: Path | None) -> grpc.aio.Channel:
    if ca_file is None:
        return grpc.aio.insecure_channel(f"{LOOPBACK}:{port}")
    return grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca_file.read_bytes()))
