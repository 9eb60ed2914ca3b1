"""A subscriber that never gives up: when a stream ends it opens the next one elsewhere, after what it holds.

A raw HTTP/2 client over asyncio, since hundreds of them must be cheaper than what serves them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from bench.licenses import MASTER_ID
from bench.torture.exactly_once import Span, Told, spans_of
from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from mesh.ports import LOOPBACK

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PATH: Final = "/execution.fanout.v1.FanoutService/Subscribe"
_WINDOW_BYTES: Final = 4 * 1024 * 1024
_FRAME_HEADER_BYTES: Final = 9
_PREFIX_BYTES: Final = 5
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_SIGNALS_TAG: Final = 0x0A
_KNOWN_MAX: Final = 2_000
_RETRY_SECONDS_MAX: Final = 0.2
_CONNECT_SECONDS: Final = 5.0

# Nearly all of what one subscriber is told the others are told in the same bytes.
_known: dict[bytes, tuple[Span, ...]] = {}


@dataclass(slots=True)
class Follower:
    """One subscriber and all of its streams."""

    token: str
    ports: Sequence[int]
    turn: int
    told: Told = field(default_factory=Told)
    streams: int = 0
    drains: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    is_streaming: bool = False

    async def follow(self) -> None:
        """Reads stream after stream until cancelled, each from the next server."""
        loop = asyncio.get_running_loop()
        while True:
            port = self.ports[self.turn % len(self.ports)]
            self.turn += 1
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    _, stream = await loop.create_connection(lambda: Stream(self), LOOPBACK, port)
            except (OSError, TimeoutError):
                self.ends["no connection"] += 1
                await asyncio.sleep(random.uniform(0, _RETRY_SECONDS_MAX))
                continue
            try:
                await stream.ended
            finally:
                self.is_streaming = False
                stream.close()
            self.ends[stream.ended.result()] += 1
            if stream.reconnect_after_seconds is None:
                await asyncio.sleep(random.uniform(0, _RETRY_SECONDS_MAX))
            else:
                self.drains += 1
                await asyncio.sleep(stream.reconnect_after_seconds)

    def request(self) -> pb.SubscribeRequest:
        """Everything after what it holds."""
        position = position_pb2.StreamPosition(epoch=1, sequence=self.told.held)
        return pb.SubscribeRequest(
            masters=[pb.MasterStart(master_id=MASTER_ID, after=position)], client="torture"
        )


class Stream(asyncio.Protocol):
    """A connection with one Subscribe stream on it."""

    def __init__(self, follower: Follower) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """How it ended: the gRPC status, or what became of the connection."""
        self.reconnect_after_seconds: float | None = None
        self._follower = follower
        self._now = asyncio.get_running_loop().time
        self._rest = b""
        self._partial = b""
        self._consumed = 0
        self._headers = Decoder()

    def close(self) -> None:
        """Hangs up."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends everything that a client says."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(_opening(self._follower))

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone, perhaps without a word."""
        self._end("the connection was lost")

    def data_received(self, data: bytes) -> None:
        """Takes whole frames; keeps the rest."""
        if self._rest:
            data = self._rest + data
        position, size = 0, len(data)
        while size - position >= _FRAME_HEADER_BYTES:
            end = position + _FRAME_HEADER_BYTES + int.from_bytes(data[position : position + 3], "big")
            if end > size:
                break
            payload = data[position + _FRAME_HEADER_BYTES : end]
            if data[position + 3] == _DATA:
                self._consumed += len(payload)
                self._assemble(payload)
            else:
                self._control(data[position + 3], data[position + 4], payload)
            position = end
        self._rest = data[position:]
        if self._consumed > _WINDOW_BYTES // 2:
            frames = [WindowUpdateFrame(stream, window_increment=self._consumed) for stream in (0, 1)]
            self._transport.write(b"".join(frame.serialize() for frame in frames))
            self._consumed = 0

    def _assemble(self, payload: bytes) -> None:
        """A message may come in several frames; none of the fan-out's has two in one."""
        if self._partial:
            payload = self._partial + payload
        is_whole = len(payload) >= _PREFIX_BYTES and len(payload) >= _PREFIX_BYTES + int.from_bytes(
            payload[1:_PREFIX_BYTES], "big"
        )
        self._partial = b"" if is_whole else payload
        if is_whole:
            self._take(payload[_PREFIX_BYTES:])

    def _take(self, message: bytes) -> None:
        follower = self._follower
        if not follower.is_streaming:
            follower.is_streaming = True
            follower.streams += 1
        if message[0] == _SIGNALS_TAG:
            spans = _known.get(message)
            if spans is None:
                if len(_known) >= _KNOWN_MAX:
                    _known.clear()
                spans = _known[message] = spans_of(pb.SubscribeResponse.FromString(message).signals)
            follower.told.take(spans, self._now())
            return
        response = pb.SubscribeResponse.FromString(message)
        if response.HasField("drain"):
            self.reconnect_after_seconds = response.drain.reconnect_after.ToMicroseconds() / 1e6
            for one in response.drain.positions:
                if one.position.sequence != follower.told.held:
                    follower.told.problem(
                        f"the drain names {one.position.sequence} behind {follower.told.held}"
                    )
        elif response.HasField("gap") or response.HasField("snapshot"):
            follower.told.problem(f"unasked for: {response}")

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & 1:
            self._transport.write(SettingsFrame(0, flags=["ACK"]).serialize())
        elif kind == _PING and not flags & 1:
            self._transport.write(PingFrame(0, opaque_data=payload, flags=["ACK"]).serialize())
        elif kind == _HEADERS:
            headers = dict(self._headers.decode(payload, raw=True))
            if flags & 1:
                self._end(f"grpc-status {headers.get(b'grpc-status', b'none').decode()}")
        elif kind == _RESET:
            self._end("the stream was reset")
        # A GOAWAY lets the stream go on.

    def _end(self, how: str) -> None:
        if not self.ended.done():
            self.ended.set_result(how)


def _opening(follower: Follower) -> bytes:
    """Preface, settings, request."""
    request = follower.request().SerializeToString()
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", _PATH),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", f"Bearer {follower.token}"),
    ]
    frames: list[Frame] = [
        SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: _WINDOW_BYTES}),
        WindowUpdateFrame(0, window_increment=_WINDOW_BYTES - 65_535),
        HeadersFrame(1, data=Encoder().encode(headers), flags=["END_HEADERS"]),
        DataFrame(1, data=b"\0" + len(request).to_bytes(4, "big") + request, flags=["END_STREAM"]),
    ]
    return _PREFACE + b"".join(frame.serialize() for frame in frames)
