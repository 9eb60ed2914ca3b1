"""NATS clients as lean as Python allows: a subscriber and a publisher on raw sockets; they create and check nothing.

The protocol is text: INFO, CONNECT, SUB, PUB, MSG, PING, PONG
(https://docs.nats.io/reference/reference-protocols/nats-protocol).
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Callable, Iterable
from typing import Final

from bench.signed_load import SignedFrames
from mesh.errors import MeshError

_RECEIVE_BYTES: Final = 65_536
_ANSWER_SECONDS_MAX: Final = 20.0
_LINE_END: Final = b"\r\n"
_CONNECT: Final = b'CONNECT {"verbose":false,"pedantic":false,"echo":true,"headers":true,"protocol":1}\r\n'
_REPLY: Final = 3
"""Which word of `MSG subject number reply size` says where to acknowledge."""
_PUBLISHED: Final = b'{"stream":'


class NatsError(MeshError):
    """The server refused something, or went away."""


class NatsConnection:
    """A connection with one subscription."""

    def __init__(self, port: int, subject: str, *, acknowledges: bool = False) -> None:
        """With `acknowledges` the consumer is told of each message that it was taken.

        Raises:
            NatsError: the server refused.
        """
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._acknowledges = acknowledges
        self.has_begun = False
        self.socket.sendall(_CONNECT + f"SUB {subject} 1\r\nPING\r\n".encode())
        while not self.has_begun:
            self._parse(self._received(), _ignore)
        self.socket.setblocking(False)

    def receive(self, on_message: Callable[[bytes], None]) -> None:
        """Reads what is there; each message's payload is handed on.

        Raises:
            NatsError: the server refused something, or closed the connection.
        """
        try:
            data = self._received()
        except BlockingIOError:
            return
        self._parse(self._rest + data if self._rest else data, on_message)

    def _received(self) -> bytes:
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise NatsError("JetStream closed a connection")
        return data

    def _parse(self, data: bytes, on_message: Callable[[bytes], None]) -> None:
        position, size = 0, len(data)
        acknowledgements = b""
        while (end := data.find(_LINE_END, position)) >= 0:
            if data.startswith(b"MSG ", position):
                start = end + 2
                length = int(data[data.rfind(b" ", position, end) : end])
                if start + length + 2 > size:
                    break
                on_message(data[start : start + length])
                if self._acknowledges:
                    acknowledgements += b"PUB %b 0\r\n\r\n" % data[position:end].split(b" ")[_REPLY]
                position = start + length + 2
            else:
                self._control(data[position:end])
                position = end + 2
        self._rest = data[position:]
        if acknowledgements:
            self.socket.sendall(acknowledgements)

    def _control(self, line: bytes) -> None:
        if line.startswith(b"PING"):
            self.socket.sendall(b"PONG\r\n")
        elif line.startswith(b"PONG"):
            self.has_begun = True
        elif not line.startswith((b"INFO", b"+OK")):
            raise NatsError(f"JetStream said {line!r}")

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()


def _ignore(message: bytes) -> None:
    """Messages before the first PONG are nobody's."""


class JetStreamPublisher:
    """Publishes to a stream; does not wait for an acknowledgement before it sends the next, but counts them."""

    def __init__(self, port: int, subject: str, inbox: str) -> None:
        self._connection = NatsConnection(port, inbox)
        self._prefix = f"PUB {subject} {inbox} ".encode()
        self.frames = SignedFrames(memoryview(b""), array("Q"), 1)
        self.acknowledged = 0
        """Messages that the stream has stored."""
        self._sent_bytes = 0
        self._window_bytes = 0

    def load(self, payloads: Iterable[bytes]) -> None:
        """What to publish."""
        data, ends = bytearray(), array("Q")
        for payload in payloads:
            data += b"%b%d\r\n%b\r\n" % (self._prefix, len(payload), payload)
            ends.append(len(data))
        self.frames = SignedFrames(memoryview(data), ends, 1)

    def allow(self, count: int) -> None:
        """Raises what may be sent to the first `count` messages."""
        self._window_bytes = self.frames.ends[count - 1] if count else 0

    def send(self) -> bool:
        """Sends what may be sent; False when the socket takes no more now."""
        while self._sent_bytes < self._window_bytes:
            try:
                data = self.frames.data[self._sent_bytes : self._window_bytes]
                self._sent_bytes += self._connection.socket.send(data)
            except BlockingIOError:
                return False
        return True

    def receive(self) -> None:
        """Takes the acknowledgements that came in.

        Raises:
            NatsError: the stream refused a message.
        """
        self._connection.receive(self._acknowledged)

    def _acknowledged(self, payload: bytes) -> None:
        if not payload.startswith(_PUBLISHED):
            raise NatsError(f"JetStream did not store a message: {payload!r}")
        self.acknowledged += 1

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()
