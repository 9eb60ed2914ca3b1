"""A connection to a bare echo: a frame is answered when as many bytes came back; the yardstick of latencies."""

from __future__ import annotations

import socket
from array import array
from typing import Final

from bench.signed_load import SignedFrames

_RECEIVE_BYTES: Final = 65_536


class EchoConnection:
    """Offers what LoadConnection offers, towards a server that sends back what it gets."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.frames = SignedFrames(memoryview(b""), array("Q"), 1)
        self.acknowledged = 0
        """Signals that came back whole."""
        self._sent_bytes = 0
        self._window_bytes = 0
        self._received_bytes = 0

    def allow(self, frames: int) -> bool:
        """Raises what may be sent to the first `frames` frames; True if that is everything there is."""
        count = min(frames, len(self.frames))
        self._window_bytes = self.frames.ends[count - 1] if count else 0
        return count == len(self.frames)

    def send(self) -> bool:
        """Sends what may be sent; False when the socket takes no more now."""
        while self._sent_bytes < self._window_bytes:
            try:
                self._sent_bytes += self.socket.send(self.frames.data[self._sent_bytes : self._window_bytes])
            except BlockingIOError:
                return False
        return True

    def receive(self) -> int:
        """Takes what came back; returns how many signals are complete with it."""
        try:
            self._received_bytes += len(self.socket.recv(_RECEIVE_BYTES))
        except BlockingIOError:
            return 0
        ends, batch = self.frames.ends, self.frames.batch
        before = frames = self.acknowledged // batch
        while frames < len(ends) and ends[frames] <= self._received_bytes:
            frames += 1
        self.acknowledged = frames * batch
        return (frames - before) * batch

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()
