"""A front door in a process of its own, as production runs it, that can be killed and started again; sends nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from bench.authority import SERVICE_TOKEN
from bench.machine import pinned
from mesh.ports import LOOPBACK, port_block
from mesh.supervisor import ServiceSpec, Supervised

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class FrontDoorProcess:
    """`python -m services.ingest` on fixed ports."""

    def __init__(self, spec: ServiceSpec, port: int, admin_port: int, core: int | None) -> None:
        self.port = port
        self.admin_port = admin_port
        self._supervised = Supervised(spec)
        self._core = core

    @property
    def pid(self) -> int:
        """The process id of the current life."""
        child = self._supervised.child
        assert child is not None
        return child.pid

    @property
    def log_file(self) -> Path:
        """Where it writes."""
        return self._supervised.spec.log_file

    async def start(self) -> None:
        """Starts it and returns when it serves.

        Raises:
            MeshError: it ended, or does not serve in time.
        """
        with ExitStack() as stack:
            if self._core is not None:
                stack.enter_context(pinned(self._core))
            self._supervised.start()
        await self._supervised.until_serving()

    def kill(self) -> None:
        """SIGKILL, at once."""
        child = self._supervised.child
        if child is not None:
            child.kill()

    async def stop(self) -> None:
        """Asks it to end."""
        await self._supervised.stop()


@asynccontextmanager
async def front_door(
    redis_url: str,
    authority_port: int,
    folder: Path,
    *,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[FrontDoorProcess]:
    """A front door that serves, on plaintext loopback, until the block ends. It logs into `folder`."""
    with port_block() as ports:
        port, grpc_port, admin_port = ports.take(), ports.take(), ports.take()
        settings = {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "BIND_ADDRESS": f"{LOOPBACK}:{port}",
            "GRPC_BIND_ADDRESS": f"{LOOPBACK}:{grpc_port}",
            "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:{admin_port}",
            "REDIS_URL": redis_url,
            "LEDGER_ADDRESS": f"{LOOPBACK}:{authority_port}",
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "LOG_LEVEL": "WARNING",
            "CONNECTIONS_PER_ADDRESS_MAX": "10000",
            "DRAIN_SPREAD_SECONDS": "0",
            **(environment or {}),
        }
        spec = ServiceSpec("ingest", settings, f"{LOOPBACK}:{grpc_port}", folder / "ingest.log")
        process = FrontDoorProcess(spec, port, admin_port, core)
        try:
            await process.start()
            yield process
        finally:
            await process.stop()
