"""A case of a conformance table: what a peer sends, in raw bytes, and which answer the specification demands."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame

from tests.integration.fanout_edge.attacker import WAIT_SECONDS, Attacker, body, headers

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20

PROTOCOL, FLOW, CLOSED, SIZE, COMPRESSION = (
    ErrorCodes.PROTOCOL_ERROR,
    ErrorCodes.FLOW_CONTROL_ERROR,
    ErrorCodes.STREAM_CLOSED,
    ErrorCodes.FRAME_SIZE_ERROR,
    ErrorCodes.COMPRESSION_ERROR,
)

WITNESS = 1
"""The stream that is open on the same connection before a case, and must be after a stream error."""
CASE = 3
"""The stream that a case is about."""
AFTER = 99
"""A later stream, that must be served unless the connection ends."""


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame as it is told, whatever it says."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def block(*fields: tuple[str, str]) -> bytes:
    """Headers that refer to no other block, so that they may come at any time."""
    return Encoder().encode(fields or headers())


def number(value: int) -> bytes:
    """Four bytes."""
    return value.to_bytes(4, "big")


def setting(code: int, value: int) -> bytes:
    """One parameter of SETTINGS."""
    return code.to_bytes(2, "big") + number(value)


def opened(stream_id: int = CASE, *fields: tuple[str, str]) -> bytes:
    """HEADERS; the request goes on."""
    return raw(HEADERS, END_HEADERS, stream_id, block(*fields))


def requested(stream_id: int = CASE, messages: int = 2) -> bytes:
    """A whole request."""
    return opened(stream_id) + raw(DATA, END_STREAM, stream_id, body(messages))


NEXT = CASE + 2
END = raw(DATA, END_STREAM, CASE, body(2))
BLOCK = block()
HALF = len(BLOCK) // 2
CANCEL = raw(RST_STREAM, 0, CASE, number(8))
ENDED = raw(HEADERS, END_HEADERS | END_STREAM, CASE, block(*headers("/no.Such/Method")))
MAX = 2**31 - 1


def asked(
    *changes: tuple[str, str | None],
    more: tuple[tuple[str, str], ...] = (),
    first: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """A whole request with other headers."""
    changed = dict(changes)
    fields = [
        *first,
        *(
            (name, changed.get(name, value))
            for name, value in headers()
            if changed.get(name, value) is not None
        ),
        *more,
    ]
    return raw(HEADERS, END_HEADERS, CASE, block(*fields)) + END


@dataclass(frozen=True)
class Answers:
    """The request of the case is served: so many messages, and OK."""

    messages: int = 2


@dataclass(frozen=True)
class Ignores:
    """Nothing comes of it."""


@dataclass(frozen=True)
class EndsStream:
    """RST_STREAM with one of these codes, and everything else goes on."""

    codes: tuple[ErrorCodes, ...]


@dataclass(frozen=True)
class EndsConnection:
    """GOAWAY with one of these codes."""

    codes: tuple[ErrorCodes, ...]


@dataclass(frozen=True)
class Says:
    """The answer is this, as HTTP and, where it is one of gRPC, as gRPC."""

    http_status: str
    status: str | None


Verdict = Answers | Says | Ignores | EndsStream | EndsConnection


def stream_error(*codes: ErrorCodes) -> EndsStream:
    return EndsStream(codes)


def connection_error(*codes: ErrorCodes) -> EndsConnection:
    return EndsConnection(codes)


@dataclass(frozen=True)
class Case:
    """`sent` on a connection with an open stream, number 1."""

    section: str
    name: str
    sent: bytes
    verdict: Verdict
    first: bytes = b""
    """A request on the case's stream, whose answer is awaited before the rest is sent."""

    @property
    def title(self) -> str:
        return f"{self.section} {self.name}"


async def judge(peer: Attacker, case: Case) -> None:
    """Sends what the case says and compares what comes.

    Raises:
        AssertionError: it is something else.
    """
    if case.first:
        await peer.send(case.first)
        await peer.answer(CASE)
    await peer.send(case.sent)
    match case.verdict:
        case EndsConnection(codes):
            goaway = await peer.until(GoAwayFrame)
            assert isinstance(goaway, GoAwayFrame)
            assert ErrorCodes(goaway.error_code) in codes
            assert goaway.last_stream_id in (WITNESS, CASE, CASE + 2)
            return
        case EndsStream(codes):
            reset = await peer.reset(CASE)
            assert ErrorCodes(reset.error_code) in codes
        case Answers(messages):
            answer = await peer.answer(CASE)
            assert (answer.status, len(answer.messages)) == ("0", messages)
        case Says(http_status, status):
            blocks = (await peer.answer(CASE)).blocks
            assert (blocks[0][":status"], blocks[-1].get("grpc-status")) == (http_status, status)
            assert http_status != "405" or blocks[0]["allow"] == "POST"
    await goes_on(peer)
    if isinstance(case.verdict, Ignores):
        assert not [frame for frame in peer.received if isinstance(frame, RstStreamFrame)]


async def goes_on(peer: Attacker) -> None:
    """A ping and a new request are answered on the connection, and nothing was said of its open stream."""
    await peer.send(raw(PING, 0, 0, b"after it"), requested(AFTER, 3))
    async with asyncio.timeout(WAIT_SECONDS):
        answer = await peer.answer(AFTER)
    assert (answer.status, len(answer.messages)) == ("0", 3)
    pongs = [frame.opaque_data for frame in peer.received if isinstance(frame, PingFrame)]
    assert b"after it" in pongs
    assert WITNESS not in peer.ended
    assert not [
        frame
        for frame in peer.received
        if isinstance(frame, GoAwayFrame)
        or (isinstance(frame, RstStreamFrame) and frame.stream_id == WITNESS)
    ]
