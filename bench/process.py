"""Python processes of a benchmark, each on its core, and the one line of JSON that each prints; it measures nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from bench.machine import pinned
from mesh.errors import MeshError
from mesh.process import Child, spawn

_LINES_MAX = 1_000


class Worker:
    """`python -m MODULE …` on one core, or wherever this process may run."""

    def __init__(self, core: int | None, module: str, *arguments: str) -> None:
        self._lines: list[str] = []
        loop = asyncio.get_running_loop()
        self._said = asyncio.Event()

        def on_line(line: str) -> None:
            if len(self._lines) < _LINES_MAX:
                self._lines.append(line)
                loop.call_soon_threadsafe(self._said.set)

        with pinned(core) if core is not None else nullcontext():
            command = [sys.executable, "-P", "-m", module, *arguments]
            self._child: Child = spawn(module, command, environment=dict(os.environ), on_line=on_line)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def line(self, seconds_max: float) -> str:
        """The next line of JSON that it prints.

        Raises:
            MeshError: it ended, or the time is over, without one.
        """
        try:
            async with asyncio.timeout(seconds_max):
                while True:
                    if found := next((line for line in self._lines if line.startswith("{")), None):
                        self._lines.remove(found)
                        return found
                    if self._child.returncode is not None and not self._said.is_set():
                        raise MeshError(f"a benchmark's process ended: {' | '.join(self._lines[-5:])}")
                    self._said.clear()
                    try:
                        async with asyncio.timeout(0.2):
                            await self._said.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            raise MeshError(f"a benchmark's process said nothing for {seconds_max:.0f} s") from None

    async def stop(self) -> None:
        """Ends it."""
        await self._child.stop(grace_seconds=2)


@asynccontextmanager
async def worker(core: int | None, module: str, *arguments: str) -> AsyncIterator[Worker]:
    """A worker that is ended with the block."""
    started = Worker(core, module, *arguments)
    try:
        yield started
    finally:
        await started.stop()
