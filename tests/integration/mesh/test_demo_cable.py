"""The demo's cable carries bytes both ways, and a cut is felt at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mesh.demo.cable import cable


@pytest.fixture
async def echo_address() -> AsyncIterator[str]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1024):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


async def test_cable_carries_until_it_is_cut_and_again_when_mended(echo_address: str) -> None:
    async with asyncio.timeout(10), cable(echo_address) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"there and back")
        assert await reader.readexactly(14) == b"there and back"

        line.cut()
        with pytest.raises(OSError):  # noqa: PT011  # a reset, by whatever name the platform has for it
            assert await reader.read(1) == b"no goodbye, so not even an end of file"
        writer.transport.abort()

        refused_reader, refused_writer = await asyncio.open_connection("127.0.0.1", line.port)
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await refused_reader.readexactly(1)
        refused_writer.transport.abort()

        line.mend()
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
        writer.close()


async def test_an_end_of_file_passes_through(echo_address: str) -> None:
    async with asyncio.timeout(10), cable(echo_address) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()
