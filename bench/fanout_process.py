"""A fan-out in a process of its own, as production runs it, for a benchmark; it sends nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.authority import SERVICE_TOKEN
from bench.machine import pinned
from mesh.ports import LOOPBACK, port_block
from mesh.supervisor import ServiceSpec, Supervised

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


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
    core: int,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[FanoutProcess]:
    """A fan-out that serves on the loopback until the block ends. It logs into `folder`."""
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
            with pinned(core):
                supervised.start()
            await supervised.until_serving()
            assert supervised.child is not None
            yield FanoutProcess(port, supervised.child.pid)
        finally:
            await supervised.stop()
