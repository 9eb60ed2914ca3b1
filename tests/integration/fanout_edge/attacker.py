"""A peer that speaks raw HTTP/2 frames and does with them what it should not."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.h2grpc.messages import prefixed
from tests.integration.fanout_edge.counting_service import SUBSCRIBE, Edge

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WAIT_SECONDS = 20.0


def headers(path: str = SUBSCRIBE, **more: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", "Bearer a-license"),
        *more.items(),
    ]


@dataclass
class Answer:
    """What came on one stream."""

    blocks: list[dict[str, str]] = field(default_factory=list)
    """The header blocks: headers and trailers, or both in one."""
    data: bytes = b""

    @property
    def status(self) -> str:
        """The grpc-status."""
        return self.blocks[-1]["grpc-status"]

    @property
    def messages(self) -> list[pb.SubscribeResponse]:
        found, rest = [], self.data
        while rest:
            assert rest[0] == 0
            end = 5 + int.from_bytes(rest[1:5], "big")
            found.append(pb.SubscribeResponse.FromString(rest[5:end]))
            rest = rest[end:]
        return found


class Attacker:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.answers: dict[int, Answer] = {}
        self.ended: set[int] = set()
        self.received: list[Frame] = []
        self._data = b""

    async def send(self, *frames: Frame | bytes) -> None:
        """Sends as much of it as the server still takes."""
        with suppress(ConnectionError):
            self.writer.write(b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames))
            await self.writer.drain()

    def request(self, stream_id: int, messages: int = 0, *, is_complete: bool = True) -> bytes:
        """A Subscribe request."""
        block = self.encoder.encode(headers())
        frames: list[Frame] = [HeadersFrame(stream_id, data=block, flags=["END_HEADERS"])]
        if is_complete:
            body = prefixed(pb.SubscribeRequest(client=str(messages)).SerializeToString())
            frames.append(DataFrame(stream_id, data=body, flags=["END_STREAM"]))
        return b"".join(frame.serialize() for frame in frames)

    async def frames(self) -> AsyncIterator[Frame]:
        """What the server says, until it hangs up."""
        while True:
            while (frame := self._next()) is not None:
                self.received.append(frame)
                self._take(frame)
                yield frame
            try:
                data = await self.reader.read(65_536)
            except ConnectionError:
                return
            if not data:
                return
            self._data += data

    async def goaway(self) -> GoAwayFrame:
        """The server's GOAWAY; it hangs up then."""
        async with asyncio.timeout(WAIT_SECONDS):
            found = [frame async for frame in self.frames() if isinstance(frame, GoAwayFrame)]
        assert found, f"no GOAWAY among {self.received}"
        return found[-1]

    async def reset(self, stream_id: int) -> RstStreamFrame:
        """The server's RST_STREAM of that stream."""
        async with asyncio.timeout(WAIT_SECONDS):
            async for frame in self.frames():
                if isinstance(frame, RstStreamFrame) and frame.stream_id == stream_id:
                    return frame
        raise AssertionError(f"no RST_STREAM among {self.received}")

    async def data(self, size: int) -> int:
        """Reads DATA frames until so many bytes came."""
        found = 0
        async with asyncio.timeout(WAIT_SECONDS):
            async for frame in self.frames():
                found += len(frame.data) if isinstance(frame, DataFrame) else 0
                if found >= size:
                    break
        return found

    async def answer(self, stream_id: int) -> Answer:
        """Everything that comes on a stream, to its end."""
        if stream_id not in self.ended:
            async with asyncio.timeout(WAIT_SECONDS):
                async for _ in self.frames():
                    if stream_id in self.ended:
                        break
        assert stream_id in self.ended, f"stream {stream_id} has no end among {self.received}"
        return self.answers[stream_id]

    async def until(self, kind: type[Frame]) -> Frame:
        """The next frame of that kind."""
        async with asyncio.timeout(WAIT_SECONDS):
            async for frame in self.frames():
                if isinstance(frame, kind):
                    return frame
        raise AssertionError(f"no {kind.__name__} among {self.received}")

    def _take(self, frame: Frame) -> None:
        if not isinstance(frame, HeadersFrame | DataFrame | ContinuationFrame):
            return
        answer = self.answers.setdefault(frame.stream_id, Answer())
        if isinstance(frame, DataFrame):
            answer.data += frame.data
        else:
            assert "END_HEADERS" in frame.flags, "the edge's answers are short"
            answer.blocks.append(dict(self.decoder.decode(frame.data)))
        if "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)

    def _next(self) -> Frame | None:
        if len(self._data) < 9:
            return None
        frame, length = Frame.parse_frame_header(memoryview(self._data[:9]))
        if len(self._data) < 9 + length:
            return None
        frame.parse_body(memoryview(self._data[9 : 9 + length]))
        self._data = self._data[9 + length :]
        return frame


@asynccontextmanager
async def connected(edge: Edge) -> AsyncIterator[Attacker]:
    """A peer that has not said anything yet."""
    tls = None
    if edge.ca_file is not None:
        tls = ssl.create_default_context(cafile=str(edge.ca_file))
        tls.set_alpn_protocols(["h2"])
    name = None if tls is None else "localhost"
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, ssl=tls, server_hostname=name)
    try:
        yield Attacker(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


@asynccontextmanager
async def attacking(
    port: int,
    settings: dict[int, int] | None = None,
    *,
    receive_buffer_bytes: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Attacker]:
    """A connection that has said hello."""
    plain = socket.socket()
    if receive_buffer_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(
        sock=plain, limit=2**16, ssl=tls, server_hostname=None if tls is None else "localhost"
    )
    attacker = Attacker(reader, writer)
    await attacker.send(PREFACE, SettingsFrame(0, settings=settings or {}))
    try:
        yield attacker
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def body(messages: int | str = 1) -> bytes:
    """The DATA of a request for so many messages."""
    return prefixed(pb.SubscribeRequest(client=str(messages)).SerializeToString())


def opening(peer: Attacker, stream_id: int, **more: str) -> Frame:
    """The HEADERS of a Subscribe request; DATA follow."""
    named = {name.replace("_", "-"): value for name, value in more.items()}
    block = peer.encoder.encode(headers(**named))
    return HeadersFrame(stream_id, data=block, flags=["END_HEADERS"])


def sequences(messages: list[pb.SubscribeResponse]) -> list[int]:
    """The number of each message's first signal."""
    return [message.signals.signals[0].sequence for message in messages]


def repeated(frame: Frame, count: int) -> Iterable[bytes]:
    """The same frame many times, in pieces."""
    piece = frame.serialize() * 100
    return [piece] * (count // 100)


async def hung_up(reader: asyncio.StreamReader) -> None:
    """The server closes, whichever way."""
    async with asyncio.timeout(WAIT_SECONDS):
        with suppress(ConnectionError):
            while await reader.read(1_000):
                pass
