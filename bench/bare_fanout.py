"""The yardstick of the fan-out: `python -m bench.bare_fanout` writes ready frames with transport.write, no more.

It serves the same readers on the same uvloop: settings, headers, then for each message that its control connection
gets, the same bytes to every connection. It keeps no windows, no rings, no rules.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final, cast

import uvloop
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

_PROGRESS: Final = b"\x22\x00"

_connections: dict[asyncio.Transport, None] = {}


def _data_frame(message: bytes) -> bytes:
    return DataFrame(1, data=b"\0" + len(message).to_bytes(4, "big") + message).serialize()


class _Subscriber(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        headers = Encoder().encode([(":status", "200"), ("content-type", "application/grpc")])
        self._transport.write(
            SettingsFrame(0).serialize()
            + HeadersFrame(1, data=headers, flags=["END_HEADERS"]).serialize()
            + _data_frame(_PROGRESS)
        )
        _connections[self._transport] = None

    def connection_lost(self, exc: Exception | None) -> None:
        _connections.pop(self._transport, None)


class _Control(asyncio.Protocol):
    _rest = b""

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
            frame = _data_frame(data[4:end])
            for transport in _connections:
                transport.write(frame)
            data = data[end:]
        self._rest = data


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    subscribers = await loop.create_server(_Subscriber, "127.0.0.1", 0, backlog=4_096)
    control = await loop.create_server(_Control, "127.0.0.1", 0)
    ports = [server.sockets[0].getsockname()[1] for server in (subscribers, control)]
    print(json.dumps({"port": ports[0], "control_port": ports[1]}), flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    sys.exit(uvloop.run(_serve()))
