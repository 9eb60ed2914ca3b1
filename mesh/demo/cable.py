"""A TCP cable that can be cut: forwards bytes until it is told to drop everything, as a broken line would."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK_BYTES = 65_536
CONNECT_TIMEOUT_SECONDS = 5.0


class Cable:
    """Forwards connections on `port` of the loopback to one address. While cut, it refuses and resets."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """Where to connect instead."""
        if self._server is None:
            raise RuntimeError("the cable is not open")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def is_cut(self) -> bool:
        """Whether it refuses everything now."""
        return self._is_cut

    async def open(self) -> None:
        """Begins to listen on a free port of the loopback."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)

    async def close(self) -> None:
        """Stops listening and drops everything."""
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def cut(self) -> None:
        """Drops every connection without a goodbye, and each new one, until `mend`."""
        self._is_cut = True
        for writer in self._writers:
            _reset(writer)

    def stall(self) -> None:
        """Carries nothing from now on, and tells nobody: peers see silence, until `mend`."""
        self._flows.clear()

    def mend(self) -> None:
        """Lets bytes and new connections through again."""
        self._is_cut = False
        self._flows.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            _reset(writer)
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                far_reader, far_writer = await asyncio.open_connection(*self._target)
            await self._both_ways(reader, writer, far_reader, far_writer)
        writer.transport.abort()

    async def _both_ways(
        self,
        near_reader: asyncio.StreamReader,
        near_writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        ends = {near_writer, far_writer}
        self._writers |= ends
        tasks = [
            asyncio.ensure_future(self._forward(near_reader, far_writer)),
            asyncio.ensure_future(self._forward(far_reader, near_writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._writers -= ends
            for task in tasks:
                task.cancel()
            far_writer.transport.abort()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Drops a connection with a TCP reset, so that the peer sees no orderly end."""
    with contextlib.suppress(OSError):
        linger_no_time = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_no_time)
    writer.transport.abort()


@asynccontextmanager
async def cable(address: str) -> AsyncIterator[Cable]:
    """An open cable to `host:port`."""
    host, _, port = address.rpartition(":")
    carrier = Cable(host, int(port))
    await carrier.open()
    try:
        yield carrier
    finally:
        await carrier.close()
