"""The least that a way costs on which nothing is checked; `python -m bench.bare_way ROLE SOCKET`.

The same processes with the same event loop, log and sockets as ours, between the same clients: the door appends what
comes to a stream, the fan-out reads it there and writes it to everybody. Nothing is signed, parsed, put in order or
remembered. Two ways are shorter than ours: a process that is door and fan-out and delivers what the log has taken, and
a relay that has no log at all. They speak as much NATS as the benchmark's clients do.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, cast

import hiredis
import uvloop

from bench.process import Worker, worker
from mesh.ports import LOOPBACK

_MODULE: Final = "bench.bare_way"
_STREAM: Final = b"bench:bare"
_DOOR, _FANOUT, _ONE, _RELAY = "door", "fanout", "one process", "relay"
_READY_SECONDS_MAX: Final = 30.0
_ENTRIES_MAX: Final = b"10000"
_LINE_END: Final = b"\r\n"
_ACKNOWLEDGEMENT: Final = b'MSG _ 1 17\r\n{"stream":"bare"}\r\n'


@dataclass(frozen=True, slots=True)
class BareWay:
    """The processes of a way, ready."""

    door_port: int
    fanout_port: int
    names: dict[int, str]
    """Of the processes, by their ids."""


Way = Callable[..., AbstractAsyncContextManager[BareWay]]


@asynccontextmanager
async def bare_way(socket: Path, *, core: int | None) -> AsyncIterator[BareWay]:
    """A door and a fan-out around the Valkey behind `socket`, until the block ends.

    Raises:
        MeshError: one of them did not start.
    """
    async with (
        worker(core, _MODULE, _DOOR, str(socket)) as door,
        worker(core, _MODULE, _FANOUT, str(socket)) as out,
    ):
        door_port, _ = await _ports(door)
        _, fanout_port = await _ports(out)
        yield BareWay(door_port, fanout_port, {door.pid: _DOOR, out.pid: _FANOUT})


@asynccontextmanager
async def _single(role: str, socket: Path, *, core: int | None) -> AsyncIterator[BareWay]:
    async with worker(core, _MODULE, role, str(socket)) as one:
        yield BareWay(*await _ports(one), {one.pid: role})


bare_process: Final[Way] = partial(_single, _ONE)
"""One process that is door and fan-out, before the Valkey behind `socket`."""
bare_relay: Final[Way] = partial(_single, _RELAY)
"""One process that passes on what comes. It leaves the Valkey behind `socket` alone."""


async def _ports(process: Worker) -> tuple[int, int]:
    """Where it listens for the master and for subscribers."""
    ports = json.loads(await process.line(_READY_SECONDS_MAX))["ports"]
    return ports[0], ports[1]


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


class _Server(Protocol):
    async def begin(self) -> None: ...

    def published(self, transport: asyncio.Transport, payload: bytes) -> None: ...


class _Peer(asyncio.Protocol):
    """A client; one that subscribes is written to."""

    def __init__(self, server: _Server, subscribers: list[asyncio.Transport] | None) -> None:
        self._server = server
        self._subscribers = subscribers
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
                if self._subscribers is not None:
                    self._subscribers.append(self._transport)
            position = end + 2
        self._rest = data[position:]


def _tell(subscribers: list[asyncio.Transport], payload: bytes) -> None:
    message = b"MSG _ 1 %d\r\n%b\r\n" % (len(payload), payload)
    for one in subscribers:
        one.write(message)


class _Door:
    """Appends and acknowledges."""

    def __init__(self, log: _Log, subscribers: list[asyncio.Transport]) -> None:
        self._log = log
        self._subscribers = subscribers
        self._waiting: deque[tuple[asyncio.Transport, bytes]] = deque()
        log.answered = self._appended

    async def begin(self) -> None:
        """There is nothing to wait for."""

    def published(self, transport: asyncio.Transport, payload: bytes) -> None:
        """Asks the log to take it."""
        self._waiting.append((transport, payload))
        self._log.call(b"XADD", _STREAM, b"MAXLEN", b"~", _ENTRIES_MAX, b"*", b"b", payload)

    def _appended(self, reply: object) -> None:
        transport, _ = self._waiting.popleft()
        transport.write(_ACKNOWLEDGEMENT)


class _One(_Door):
    """Appends, delivers what the log has taken, and acknowledges."""

    def _appended(self, reply: object) -> None:
        _tell(self._subscribers, self._waiting[0][1])
        super()._appended(reply)


class _Relay(_Door):
    """Delivers and acknowledges."""

    def published(self, transport: asyncio.Transport, payload: bytes) -> None:
        """Passes it on."""
        _tell(self._subscribers, payload)
        transport.write(_ACKNOWLEDGEMENT)


class _Fanout:
    """Reads what is new and writes it to everybody."""

    def __init__(self, log: _Log, subscribers: list[asyncio.Transport]) -> None:
        self._log = log
        self._subscribers = subscribers
        self._after = b"$"
        log.answered = self._came

    async def begin(self) -> None:
        """Waits for what comes next."""
        self._log.call(b"XREAD", b"COUNT", b"100", b"BLOCK", b"0", b"STREAMS", _STREAM, self._after)

    def published(self, transport: asyncio.Transport, payload: bytes) -> None:
        """Nobody publishes here."""

    def _came(self, reply: list[Any]) -> None:
        for key, (_, payload) in reply[0][1]:
            self._after = key
            _tell(self._subscribers, payload)
        self._log.call(b"XREAD", b"COUNT", b"100", b"BLOCK", b"0", b"STREAMS", _STREAM, self._after)


_SERVERS: Final[dict[str, type[_Door | _Fanout]]] = {
    _DOOR: _Door,
    _FANOUT: _Fanout,
    _ONE: _One,
    _RELAY: _Relay,
}


async def _serve(role: str, socket: str) -> None:
    log, subscribers = _Log(socket), list[asyncio.Transport]()
    await log.connect()
    server = _SERVERS[role](log, subscribers)
    await server.begin()
    loop = asyncio.get_running_loop()
    listening = [
        await loop.create_server(partial(_Peer, server, told), LOOPBACK, 0, backlog=1_024)
        for told in (None, subscribers)
    ]
    ports = [one.sockets[0].getsockname()[1] for one in listening]
    print(json.dumps({"ports": ports}), flush=True)
    await asyncio.gather(*(one.serve_forever() for one in listening))


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:3]))
