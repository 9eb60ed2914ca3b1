"""Lines of JSON between the demo and its two child processes, over a Unix socket; knows no meaning of a message."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

LINE_BYTES_MAX = 4 * 1024 * 1024

Message = dict[str, Any]  # JSON has no better type


class Wire:
    """One end. Messages are small and rare: a few a second."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: Message) -> None:
        """Sends one message; one to an end that is gone is lost, as the other side learns from its own end of file."""
        with contextlib.suppress(OSError):
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()

    async def messages(self) -> AsyncIterator[Message]:
        """Every message until the other end closes."""
        with contextlib.suppress(OSError):
            while line := await self._reader.readline():
                yield json.loads(line)

    def close(self) -> None:
        """Closes this end."""
        self._writer.close()


async def connect(path: Path) -> Wire:
    """The child's end."""
    return Wire(*await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX))


@asynccontextmanager
async def listening(path: Path, on_wire: Callable[[Wire], Any]) -> AsyncIterator[None]:
    """Listens at `path` and hands each new connection to `on_wire`."""

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        on_wire(Wire(reader, writer))

    server = await asyncio.start_unix_server(accept, path, limit=LINE_BYTES_MAX)
    try:
        yield
    finally:
        server.close()
