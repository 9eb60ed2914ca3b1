"""The least that our way costs: door, Valkey and fan-out that check nothing; `python -m bench.bare_way ROLE SOCKET`.

The same processes with the same event loop, log and sockets as ours, between the same clients: the door appends what
comes to a stream, the fan-out reads it there and writes it to everybody. Nothing is signed, parsed, put in order or
remembered. It speaks as much NATS as the benchmark's clients do.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import hiredis
import uvloop

from bench.process import worker
from mesh.ports import LOOPBACK

_STREAM: Final = b"bench:bare"
_DOOR, _FANOUT = "door", "fanout"
_READY_SECONDS_MAX: Final = 30.0
_ENTRIES_MAX: Final = b"10000"
_LINE_END: Final = b"\r\n"
_STORED: Final = b'{"stream":"bare"}'


@dataclass(frozen=True, slots=True)
class BareWay:
    """Both processes, ready."""

    door_port: int
    fanout_port: int
    names: dict[int, str]
    """Of the processes, by their ids."""


@asynccontextmanager
async def bare_way(socket: Path, *, core: int | None) -> AsyncIterator[BareWay]:
    """A door and a fan-out around the Valkey behind `socket`, until the block ends.

    Raises:
        MeshError: one of them did not start.
    """
    module = "bench.bare_way"
    async with (
        worker(core, module, _DOOR, str(socket)) as door,
        worker(core, module, _FANOUT, str(socket)) as out,
    ):
        ports = [json.loads(await one.line(_READY_SECONDS_MAX))["port"] for one in (door, out)]
        yield BareWay(ports[0], ports[1], {door.pid: _DOOR, out.pid: _FANOUT})


class _Log(asyncio.Protocol):
    """The connection to Valkey."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._replies = hiredis.Reader()
        self.answered: Any = None

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, self.socket)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def call(self, *words: bytes) -> None:
        command: tuple[Any, ...] = words
        self._transport.write(hiredis.pack_command(command))

    def data_received(self, data: bytes) -> None:
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not False:
            self.answered(reply)


class _Peer(asyncio.Protocol):
    """A client."""

    def __init__(self, server: _Door | _Fanout) -> None:
        self._server = server
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data, position = self._rest + data, 0
        while (end := data.find(_LINE_END, position)) >= 0:
            if data.startswith(b"PUB", position):
                start, length = end + 2, int(data[data.rfind(b" ", position, end) : end])
                if start + length + 2 > len(data):
                    break
                self._server.published(self._transport, data[start : start + length])
                end = start + length
            elif data.startswith(b"PING", position):
                self._transport.write(b"PONG\r\n")
                self._server.came(self._transport)
            position = end + 2
        self._rest = data[position:]


class _Door:
    """Appends and acknowledges."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._waiting: deque[asyncio.Transport] = deque()
        log.answered = self._appended

    async def begin(self) -> None:
        """There is nothing to wait for."""

    def came(self, transport: asyncio.Transport) -> None:
        """Masters speak first."""

    def published(self, transport: asyncio.Transport, payload: bytes) -> None:
        self._waiting.append(transport)
        self._log.call(b"XADD", _STREAM, b"MAXLEN", b"~", _ENTRIES_MAX, b"*", b"b", payload)

    def _appended(self, reply: object) -> None:
        self._waiting.popleft().write(b"MSG _ 1 %d\r\n%b\r\n" % (len(_STORED), _STORED))


class _Fanout:
    """Reads what is new and writes it to everybody."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._peers: list[asyncio.Transport] = []
        self._after = b"$"
        log.answered = self._came

    async def begin(self) -> None:
        """Waits for what comes next."""
        self._log.call(b"XREAD", b"COUNT", b"100", b"BLOCK", b"0", b"STREAMS", _STREAM, self._after)

    def came(self, transport: asyncio.Transport) -> None:
        self._peers.append(transport)

    def published(self, transport: asyncio.Transport, payload: bytes) -> None:
        """Subscribers publish nothing."""

    def _came(self, reply: list[Any]) -> None:
        entries = reply[0][1]
        for key, (_, payload) in entries:
            self._after = key
            message = b"MSG _ 1 %d\r\n%b\r\n" % (len(payload), payload)
            for peer in self._peers:
                peer.write(message)
        self._log.call(b"XREAD", b"COUNT", b"100", b"BLOCK", b"0", b"STREAMS", _STREAM, self._after)


async def _serve(role: str, socket: str) -> None:
    log = _Log(socket)
    await log.connect()
    server = _Door(log) if role == _DOOR else _Fanout(log)
    await server.begin()
    listening = await asyncio.get_running_loop().create_server(
        lambda: _Peer(server), LOOPBACK, 0, backlog=1_024
    )
    print(json.dumps({"port": listening.sockets[0].getsockname()[1]}), flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:3]))
