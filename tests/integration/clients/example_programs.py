"""The example subscribers as programs: started as a person would start them, and read line by line."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh import typescript
from mesh.clone import ROOT

WAIT_SECONDS = 60.0
BETTERPROTO = ROOT / "clients" / "betterproto" / "subscriber.py"


def command_of(program: str) -> list[str]:
    """How the example of that name is started; skips the test where the machine lacks what it needs."""
    if program == "betterproto":
        return [sys.executable, "-W", "error", str(BETTERPROTO)]
    try:
        return typescript.command()
    except typescript.NoNodeError as error:
        pytest.skip(str(error))


class Example:
    """One running example."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def until(self, *words: str, times: int = 1) -> None:
        """Waits until so many lines hold all these words."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.with_words(*words)) < times:
                if self._reading.done():
                    raise AssertionError(f"it ended without {words}: {self.lines}")
                self._changed.clear()
                await self._changed.wait()

    def with_words(self, *words: str) -> list[str]:
        return [line for line in self.lines if all(word in line for word in words)]

    @property
    def signals(self) -> list[str]:
        """The positions that it acted on, in its order."""
        return [line.split(" after ")[0] for line in self.lines if " after " in line]

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self._reading
            return await self.process.wait()

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())
            self._changed.set()
        self._changed.set()


@asynccontextmanager
async def running(
    program: str, address: str, positions: Path, *arguments: object, token: str = "token"
) -> AsyncIterator[Example]:
    """The example, following master 1, until the block ends."""
    command = [
        *command_of(program), "--fanout", address, "--master", "1", "--positions", str(positions),
        *map(str, arguments),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "ECP_LICENSE": token},
    )
    example = Example(process)
    try:
        yield example
        assert await example.stop() is not None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
