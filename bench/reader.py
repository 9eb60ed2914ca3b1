"""One subscriber as lean as Python allows: a raw HTTP/2 client that reads one server stream; it checks no rules."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

import grpc
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from execution.fanout.v1 import fanout_service_pb2 as pb

PROGRESS_TAG: Final = 0x22
SIGNALS_TAG: Final = 0x0A
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PATH: Final = "/execution.fanout.v1.FanoutService/Subscribe"
_WINDOW_BYTES: Final = 4 * 1024 * 1024
_RECEIVE_BYTES: Final = 65_536
_FRAME_HEADER_BYTES: Final = 9
_PREFIX_BYTES: Final = 5
_KNOWN_CHUNKS_MAX: Final = 1_000
_KNOWN_BYTES_MAX: Final = 65_536
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7


class ReaderError(Exception):
    """The server ended the stream; the message says with which status or error code."""


class Chunk:
    """What one read brought, if it holds whole frames with whole messages: the same bytes come on every connection."""

    __slots__ = ("flow_bytes", "messages", "times_us")

    def __init__(self, messages: tuple[bytes, ...], flow_bytes: int) -> None:
        self.messages = messages
        """Those of signals."""
        self.flow_bytes = flow_bytes
        self.times_us: tuple[int, ...] | None = None
        """For who reads them: when the signals in it were meant to be sent."""


# The readers must be faster than what they measure, and nearly all of what they get they have got before.
_known: dict[bytes, Chunk] = {}


class Reader:
    """A connection with one Subscribe stream on it."""

    __slots__ = ("_consumed", "_headers", "_is_tls", "_partial", "_rest", "has_begun", "socket")

    def __init__(
        self,
        port: int,
        token: str,
        master_id: int,
        tls: ssl.SSLContext | None,
        *,
        receive_buffer_bytes: int | None = None,
    ) -> None:
        plain = socket.socket()
        if receive_buffer_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        plain.connect(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        self.has_begun = False
        self._is_tls = tls is not None
        self._rest = b""
        self._partial = bytearray()
        self._consumed = 0
        self._headers: list[bytes] = []
        self.socket.sendall(_opening(port, token, master_id, "http" if tls is None else "https"))
        self.socket.setblocking(False)

    def receive(self, on_message: Callable[[bytes], None]) -> None:
        """Reads what is there; each message of signals is handed on.

        Raises:
            ReaderError: the stream ended.
        """

        def on_chunk(chunk: Chunk) -> None:
            for message in chunk.messages:
                on_message(message)

        self.receive_chunks(on_chunk)

    def receive_chunks(self, on_chunk: Callable[[Chunk], None]) -> None:
        """Reads what is there; all messages of one read are handed on together.

        Raises:
            ReaderError: the stream ended.
        """
        while True:
            try:
                data = self.socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            if not data:
                raise ReaderError("the connection was closed")
            self._take(data, on_chunk)
            # A TLS socket may hold more than the kernel shows.
            if not self._is_tls:
                return

    def _take(self, data: bytes, on_chunk: Callable[[Chunk], None]) -> None:
        known = None if self._rest or self._partial else _known.get(data)
        chunk = self._parse(data) if known is None else known
        if chunk.messages:
            on_chunk(chunk)
        self._consumed += chunk.flow_bytes
        if self._consumed > _WINDOW_BYTES // 2:
            self._open_windows()

    def _parse(self, data: bytes) -> Chunk:
        is_repeatable = self.has_begun and not self._rest and not self._partial
        whole = self._rest + data if self._rest else data
        messages: list[bytes] = []
        position, size, flow_bytes = 0, len(whole), 0
        while size - position >= _FRAME_HEADER_BYTES:
            length = int.from_bytes(whole[position : position + 3], "big")
            end = position + _FRAME_HEADER_BYTES + length
            if end > size:
                break
            kind = whole[position + 3]
            if kind == _DATA:
                flow_bytes += length
                self._assemble(whole[position + _FRAME_HEADER_BYTES : end], messages)
            else:
                is_repeatable = False
                self._control(kind, whole[position:end])
            position = end
        self._rest = whole[position:]
        chunk = Chunk(tuple(messages), flow_bytes)
        if is_repeatable and not self._rest and not self._partial and size <= _KNOWN_BYTES_MAX:
            if len(_known) >= _KNOWN_CHUNKS_MAX:
                _known.clear()
            _known[data] = chunk
        return chunk

    def _assemble(self, payload: bytes, messages: list[bytes]) -> None:
        """A message may come in several frames; none of ours has two in one."""
        if self._partial:
            self._partial += payload
            payload = bytes(self._partial)
        if len(payload) < _PREFIX_BYTES or len(payload) < _PREFIX_BYTES + int.from_bytes(payload[1:5], "big"):
            self._partial[:] = payload
            return
        self._partial.clear()
        tag = payload[_PREFIX_BYTES]
        if tag == SIGNALS_TAG:
            messages.append(payload[_PREFIX_BYTES:])
        elif tag == PROGRESS_TAG:
            self.has_begun = True

    def _control(self, kind: int, frame: bytes) -> None:
        flags, payload = frame[4], frame[_FRAME_HEADER_BYTES:]
        if kind == _SETTINGS and not flags & 1:
            self.socket.sendall(SettingsFrame(0, flags=["ACK"]).serialize())
        elif kind == _PING and not flags & 1:
            self.socket.sendall(PingFrame(0, opaque_data=payload, flags=["ACK"]).serialize())
        elif kind == _HEADERS:
            self._headers.append(payload)
            if flags & 1:
                raise ReaderError(f"the stream ended with {_status_of(self._headers)}")
        elif kind == _RESET:
            raise ReaderError(f"the stream was reset: {_error_name(payload[:4])}")
        elif kind == _GOAWAY:
            note = payload[8:].decode("latin-1")
            raise ReaderError(f"the server said goodbye: {_error_name(payload[4:8])} {note}".rstrip())

    def _open_windows(self) -> None:
        frames = [WindowUpdateFrame(stream, window_increment=self._consumed) for stream in (0, 1)]
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))
        self._consumed = 0


def _status_of(blocks: list[bytes]) -> str:
    """The grpc-status and grpc-message in the last of a connection's header blocks."""
    decoder = Decoder()
    found = {str(name): str(value) for block in blocks for name, value in decoder.decode(block)}
    code = next(
        (one.name for one in grpc.StatusCode if str(one.value[0]) == found.get("grpc-status")),
        f"HTTP status {found.get(':status')} and no grpc-status",
    )
    return f"{code}: {unquote(found.get('grpc-message', ''))}"


def _error_name(code: bytes) -> str:
    number = int.from_bytes(code, "big")
    return next((one.name for one in ErrorCodes if one == number), str(number))


def _opening(port: int, token: str, master_id: int, scheme: str) -> bytes:
    """Preface, settings, request: everything a client says."""
    start = pb.MasterStart(master_id=master_id, from_now=pb.FromNow())
    request = pb.SubscribeRequest(masters=[start], client="bench").SerializeToString()
    headers = [
        (":method", "POST"),
        (":scheme", scheme),
        (":path", _PATH),
        (":authority", f"localhost:{port}"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", f"Bearer {token}"),
    ]
    frames: list[Frame] = [
        SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: _WINDOW_BYTES}),
        WindowUpdateFrame(0, window_increment=_WINDOW_BYTES - 65_535),
        HeadersFrame(1, data=Encoder().encode(headers), flags=["END_HEADERS"]),
        DataFrame(1, data=b"\0" + len(request).to_bytes(4, "big") + request, flags=["END_STREAM"]),
    ]
    return _PREFACE + b"".join(frame.serialize() for frame in frames)
