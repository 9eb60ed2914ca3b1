"""A fan-out in a process of its own, in plaintext or with TLS, that stock clients read from; it judges nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.authority import SERVICE_TOKEN
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from mesh.errors import MeshError
from mesh.ports import LOOPBACK, port_block
from mesh.process import Child, spawn

_OPERATOR_TOKEN: Final = "operator-token-of-a-torture"
_SERVICE: Final = "execution.fanout.v1.FanoutService"
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
_START_SECONDS_MAX: Final = 60.0
_CALL_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1
_STOP_SECONDS_MAX: Final = 20.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of a certificate for localhost, and who signed it."""

    chain_file: Path
    key_file: Path
    ca_file: Path

    @classmethod
    def issued(cls, folder: Path) -> Certificate:
        """A new one of an authority of its own, in this folder."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", LOOPBACK)
        made = cls(folder / "server.pem", folder / "server.key", folder / "ca.pem")
        issued.cert_chain_pems[0].write_to_path(made.chain_file)
        issued.private_key_pem.write_to_path(made.key_file)
        authority.cert_pem.write_to_path(made.ca_file)
        return made


class FanoutServer:
    """`python -m services.fanout`, and a channel of the operator to it."""

    def __init__(self, name: str, port: int, certificate: Certificate | None, child: Child) -> None:
        self.name = name
        self.address = f"localhost:{port}" if certificate else f"{LOOPBACK}:{port}"
        self.ca_file = None if certificate is None else certificate.ca_file
        self._child = child
        if self.ca_file is None:
            self._channel = grpc.aio.insecure_channel(self.address)
        else:
            credentials = grpc.ssl_channel_credentials(self.ca_file.read_bytes())
            self._channel = grpc.aio.secure_channel(self.address, credentials)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def until_serving(self) -> None:
        """Waits until streams can be opened.

        Raises:
            MeshError: it ended, or the time is over.
        """
        check = health_pb2_grpc.HealthStub(self._channel).Check  # type: ignore[attr-defined]  # the stubs lack it
        try:
            async with asyncio.timeout(_START_SECONDS_MAX):
                while self._child.returncode is None:
                    try:
                        answer = await check(
                            health_pb2.HealthCheckRequest(service=_SERVICE), timeout=_CALL_SECONDS
                        )
                    except grpc.aio.AioRpcError:
                        answer = None
                    if answer is not None and answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise MeshError(f"fan-out {self.name} does not serve") from None
        raise MeshError(f"fan-out {self.name} ended with {self._child.returncode}")

    async def stream_count(self) -> int:
        """How many streams are open, as the operator sees it."""
        stub = fanout_service_pb2_grpc.FanoutServiceStub(self._channel)
        metadata = (("authorization", f"Bearer {_OPERATOR_TOKEN}"),)
        answer = await stub.ListStreams(
            pb.ListStreamsRequest(page_size=1_000), metadata=metadata, timeout=_CALL_SECONDS
        )
        return len(answer.streams)

    async def stop(self) -> int:
        """Asks it to end with SIGTERM, as a rolling update does; returns its exit code."""
        await self._channel.close()
        return await self._child.stop(grace_seconds=_STOP_SECONDS_MAX)


@asynccontextmanager
async def serving(
    name: str,
    redis_url: str,
    ledger_port: int,
    folder: Path,
    *,
    certificate: Certificate | None,
    environment: Mapping[str, str],
) -> AsyncIterator[FanoutServer]:
    """A fan-out that serves until it is stopped or the block ends. It logs into `folder`.

    Raises:
        MeshError: it does not start.
    """
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(port_block())
        port, admin_port = ports.take(), ports.take()
        values = {
            **{key: os.environ[key] for key in _PASSED_ON if key in os.environ},
            "EDGE": "h2",
            "GRPC_BIND_ADDRESS": f"{LOOPBACK}:{port}",
            "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:{admin_port}",
            "REDIS_URL": redis_url,
            "LEDGER_ADDRESS": f"{LOOPBACK}:{ledger_port}",
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "OPERATOR_TOKEN": _OPERATOR_TOKEN,
            "LOG_LEVEL": "WARNING",
            **environment,
        }
        if certificate is not None:
            values["TLS_CERTIFICATE_FILE"] = str(certificate.chain_file)
            values["TLS_KEY_FILE"] = str(certificate.key_file)
        log_file = folder / f"fanout-{name}.log"
        child = spawn(
            f"fanout {name}",
            [sys.executable, "-P", "-m", "services.fanout"],
            environment=values,
            log_file=log_file,
        )
        server = FanoutServer(name, port, certificate, child)
        stack.push_async_callback(server.stop)
        await server.until_serving()
        yield server
