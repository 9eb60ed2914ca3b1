"""Signed frames made before the clock starts, and the connections that send them; it decides no pace.

The sockets are plain and non-blocking, so that the load costs its core as little as Python can.
"""

from __future__ import annotations

import os
import socket
from array import array
from dataclasses import dataclass
from time import time_ns
from typing import Final

from bench.authority import identity
from ecp_client.master.frames import SIGNALS_TAG, FrameDecoder, batch_body, frame, signed_frame
from ecp_client.master.handshake import Resume, hello, login
from execution.common.v1.signal_pb2 import SIDE_BUY, SIGNAL_KIND_OPEN, Signal
from execution.ingest.v1 import frames_pb2 as pb
from mesh.errors import MeshError

_ANSWER_SECONDS_MAX: Final = 20.0
_RECEIVE_BYTES: Final = 65_536
_DISTINCT_SIGNALS: Final = 512
_ACK_TAG, _ACK_SEQUENCE_TAG, _PING_TAG = 0x1A, 0x08, 0x32


class LoadError(MeshError):
    """The front door did not do what a load expects: it refused something, or went away."""


def signals(count: int = _DISTINCT_SIGNALS) -> list[bytes]:
    """Different signals of a real size, long comments and all: in the log nearly 200 bytes for one in a frame."""
    now_us = time_ns() // 1_000
    return [
        Signal(
            kind=SIGNAL_KIND_OPEN,
            position_id=4_000_000_000 + number,
            symbol="EURUSD",
            side=SIDE_BUY,
            volume_lots_e8=10_000_000 + number,
            price_e8=107_140_000 + number,
            stop_loss_e8=106_900_000,
            take_profit_e8=107_900_000,
            occurred_at_us=now_us,
            comment="breakout of the asian range, second entry, stop behind the low",
            magic=20_240_117,
        ).SerializeToString()
        for number in range(count)
    ]


def payload_of_one() -> bytes:
    """What one signal in a frame of its own brings: the payload of the bare yardstick."""
    return batch_body(1, time_ns() // 1_000, signals(1))


@dataclass(slots=True)
class SignedFrames:
    """Consecutive frames as one piece of bytes; frame n ends at `ends[n]`."""

    data: memoryview
    ends: array[int]
    batch: int

    def __len__(self) -> int:
        return len(self.ends)


def sign(key: bytes, first_sequence: int, frames: int, batch: int) -> SignedFrames:
    """Signs `frames` frames of `batch` signals each, from `first_sequence` on."""
    pool = signals()
    sent_at_us = time_ns() // 1_000
    data, ends = bytearray(), array("Q")
    for number in range(frames):
        start = number * batch % (_DISTINCT_SIGNALS - batch + 1)
        body = batch_body(first_sequence + number * batch, sent_at_us, pool[start : start + batch])
        data += signed_frame(SIGNALS_TAG, key, body)
        ends.append(len(data))
    return SignedFrames(memoryview(data), ends, batch)


class LoadConnection:
    """One master's connection: logs in, sends signed frames, counts what is acknowledged."""

    def __init__(self, port: int, master_id: int) -> None:
        self.master_id = master_id
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.frames = SignedFrames(memoryview(b""), array("Q"), 1)
        self.session_key = b""
        self.base = 0
        """The last sequence before the load."""
        self.acknowledged = 0
        """Signals of the load that are acknowledged."""
        self.sent_bytes = 0
        self.window_bytes = 0
        """Up to here may be sent now."""
        self._rest = b""

    def log_in(self) -> None:
        """Blocks until the session is open.

        Raises:
            LoadError: the front door refused.
        """
        who, nonce, decoder = identity(self.master_id), os.urandom(32), FrameDecoder()
        self.socket.sendall(frame(hello(who, nonce).SerializeToString()))
        challenge = self._answer(decoder, "challenge").challenge
        message, keys = login(who, Resume(0, 0, 0, False), nonce, challenge)
        self.socket.sendall(frame(message.SerializeToString()))
        welcome = self._answer(decoder, "welcome").welcome
        self.session_key, self.base = keys.signals, welcome.position.sequence
        self.socket.setblocking(False)

    def _answer(self, decoder: FrameDecoder, kind: str) -> pb.ServerFrame:
        while (answer := decoder.next_frame()) is None:
            data = self.socket.recv(_RECEIVE_BYTES)
            if not data:
                raise LoadError("the front door closed the connection during the login")
            decoder.receive_data(data)
        if answer.WhichOneof("frame") != kind:
            raise LoadError(f"the front door answered a login with {answer}")
        return answer

    def allow(self, frames: int) -> bool:
        """Raises what may be sent to the first `frames` frames; True if that is everything there is."""
        count = min(frames, len(self.frames))
        self.window_bytes = self.frames.ends[count - 1] if count else 0
        return count == len(self.frames)

    def send(self) -> bool:
        """Sends what may be sent; False when the socket takes no more now."""
        while self.sent_bytes < self.window_bytes:
            try:
                self.sent_bytes += self.socket.send(self.frames.data[self.sent_bytes : self.window_bytes])
            except BlockingIOError:
                return False
        return True

    def receive(self) -> int:
        """Takes what came in; returns how many signals are newly acknowledged.

        Raises:
            LoadError: a Reject or the end came.
        """
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            raise LoadError("the front door closed the connection under load")
        data = self._rest + data
        position, before = 0, self.acknowledged
        while position + 4 < len(data):
            end = position + 4 + int.from_bytes(data[position : position + 4], "big")
            if end > len(data):
                break
            self._take(data, position + 4, end)
            position = end
        self._rest = data[position:]
        return self.acknowledged - before

    def _take(self, data: bytes, start: int, end: int) -> None:
        if data[start] == _ACK_TAG:
            if data[start + 2] == _ACK_SEQUENCE_TAG:
                self.acknowledged = _varint(data, start + 3) - self.base
        elif data[start] == _PING_TAG:
            self._answer_ping(pb.ServerFrame.FromString(data[start:end]).ping.id)
        else:
            raise LoadError(f"the front door said {pb.ServerFrame.FromString(data[start:end])}")

    def _answer_ping(self, ping_id: int) -> None:
        # A connection that is in the middle of a frame is heard anyway.
        if self.sent_bytes == self.window_bytes:
            self.socket.send(frame(pb.ClientFrame(pong=pb.Pong(id=ping_id)).SerializeToString()))

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()


def _varint(data: bytes, position: int) -> int:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        position += 1
        shift += 7
