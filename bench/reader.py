"""One subscriber as lean as Python allows: a raw HTTP/2 client that reads one server stream; it checks no rules."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

from hpack import Encoder
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
_RECEIVE_BYTES: Final = 262_144
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7


class ReaderError(Exception):
    """The server ended the stream."""


class Reader:
    """A connection with one Subscribe stream on it."""

    def __init__(self, port: int, token: str, master_id: int, tls: ssl.SSLContext | None) -> None:
        plain = socket.create_connection(("127.0.0.1", port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        self.has_begun = False
        self._rest = b""
        self._partial = bytearray()
        self._consumed = 0
        self.socket.sendall(_opening(port, token, master_id, "http" if tls is None else "https"))
        self.socket.setblocking(False)

    def receive(self, on_message: Callable[[bytes], None]) -> None:
        """Reads what is there; each message of signals is handed on.

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
            self._parse(self._rest + data if self._rest else data, on_message)
            # A TLS socket may hold more than the kernel shows.
            if not isinstance(self.socket, ssl.SSLSocket):
                return

    def _parse(self, data: bytes, on_message: Callable[[bytes], None]) -> None:
        position, size = 0, len(data)
        while size - position >= 9:
            length = int.from_bytes(data[position : position + 3], "big")
            end = position + 9 + length
            if end > size:
                break
            kind = data[position + 3]
            if kind != _DATA:
                self._control(kind, data[position:end])
            else:
                self._consumed += length
                if self._partial or int.from_bytes(data[position + 10 : position + 14], "big") != length - 5:
                    self._assemble(data[position + 9 : end], on_message)
                else:
                    self._take(data[position + 14 : end], on_message)
            position = end
        self._rest = data[position:]
        if self._consumed > _WINDOW_BYTES // 2:
            self._open_windows()

    def _take(self, message: bytes, on_message: Callable[[bytes], None]) -> None:
        tag = message[0]
        if tag == SIGNALS_TAG:
            on_message(message)
        elif tag == PROGRESS_TAG:
            self.has_begun = True

    def _assemble(self, payload: bytes, on_message: Callable[[bytes], None]) -> None:
        """A message in several frames."""
        self._partial += payload
        end = 5 + int.from_bytes(self._partial[1:5], "big")
        if len(self._partial) >= end:
            self._take(bytes(self._partial[5:end]), on_message)
            del self._partial[:end]

    def _control(self, kind: int, data: bytes) -> None:
        if kind == _SETTINGS and not data[4] & 1:
            self.socket.sendall(SettingsFrame(0, flags=["ACK"]).serialize())
        elif kind == _PING and not data[4] & 1:
            self.socket.sendall(PingFrame(0, opaque_data=data[9:17], flags=["ACK"]).serialize())
        elif kind in (_RESET, _GOAWAY) or (kind == _HEADERS and data[4] & 1):
            raise ReaderError(f"the stream ended: frame {kind} {data[9:]!r}")

    def _open_windows(self) -> None:
        frames = [WindowUpdateFrame(stream, window_increment=self._consumed) for stream in (0, 1)]
        self.socket.sendall(b"".join(frame.serialize() for frame in frames))
        self._consumed = 0


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
