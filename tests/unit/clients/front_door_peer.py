"""The server's side of a master session, played by hand: reads what the client sent and answers as a test says."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field

from ecp_client.clock import ServerClock
from ecp_client.master.events import MasterEvent
from ecp_client.master.handshake import Identity, Resume
from ecp_client.master.session import MasterSession, SessionLimits
from execution.common.v1 import signal_pb2
from execution.ingest.v1 import frames_pb2 as pb

SECRET = b"k" * 32
CLIENT_NONCE = b"c" * 32
SERVER_NONCE = b"n" * 32
START_US = 5_000_000
SERVER_TIME_US = 1_800_000_000_000_000
HEARTBEAT_MS = 1_000


def signal(number: int = 1, **fields: object) -> signal_pb2.Signal:
    values: dict[str, object] = {
        "kind": signal_pb2.SIGNAL_KIND_OPEN,
        "position_id": number,
        "symbol": "EURUSD",
        "side": signal_pb2.SIDE_BUY,
        "volume_lots_e8": 10_000_000,
        "price_e8": 107_140_000,
        "occurred_at_us": SERVER_TIME_US,
        **fields,
    }
    return signal_pb2.Signal(**values)


def payloads(first: int, count: int) -> list[bytes]:
    return [signal(first + index).SerializeToString() for index in range(count)]


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


@dataclass
class Peer:
    """A session under test and the server's side of it."""

    resume: Resume = field(default_factory=lambda: Resume(0, 0, 0, False))
    limits: SessionLimits = field(default_factory=SessionLimits)

    def __post_init__(self) -> None:
        self.now_us = START_US
        identity = Identity(7, "key-1", SECRET, "license", "a test")
        self.clock = ServerClock(self.now_us, SERVER_TIME_US)
        self.session = MasterSession(
            identity, self.resume, self.clock, self.now_us, CLIENT_NONCE, self.limits, lambda low, high: high
        )

    def pass_time(self, milliseconds: int) -> None:
        self.now_us += milliseconds * 1_000

    # What the client sent

    def received(self) -> list[pb.ClientFrame]:
        return list(frames(self.session.data_to_send()))

    def batches(self) -> list[pb.SignalBatch]:
        return [
            pb.SignalBatch.FromString(one.signals.body) for one in self.received() if one.HasField("signals")
        ]

    def gap_fills(self) -> list[pb.GapFillBody]:
        return [
            pb.GapFillBody.FromString(one.gap_fill.body)
            for one in self.received()
            if one.HasField("gap_fill")
        ]

    def events(self) -> list[MasterEvent]:
        return self.session.take_events()

    # What the server answers

    def send(self, **kinds: object) -> None:
        frame = pb.ServerFrame(**kinds)
        data = frame.SerializeToString()
        self.session.receive_data(len(data).to_bytes(4, "big") + data, self.now_us)

    def challenge(self, **fields: object) -> None:
        values: dict[str, object] = {
            "nonce": SERVER_NONCE,
            "server_time_us": SERVER_TIME_US,
            "version": 1,
            **fields,
        }
        self.send(challenge=pb.Challenge(**values))

    def welcome(self, epoch: int = 1, sequence: int = 0, **fields: object) -> None:
        values: dict[str, object] = {
            "session_epoch": 3,
            "window": 1_000,
            "heartbeat_ms": HEARTBEAT_MS,
            "frame_bytes_max": 65_536,
            "batch_signals_max": 256,
            "durability": 1,
            **fields,
        }
        welcome = pb.Welcome(**values)
        welcome.position.epoch, welcome.position.sequence = epoch, sequence
        self.send(welcome=welcome)

    def ack(self, sequence: int, credits: int = 1_000, snapshot_sequence: int = 0) -> None:
        self.send(
            ack=pb.Ack(sequence=sequence, durability=1, credits=credits, snapshot_sequence=snapshot_sequence)
        )

    def reject(
        self,
        code: pb.RejectCode.ValueType,
        sequence: int = 0,
        expected: int = 0,
        *,
        field: str = "",
        retry_after_ms: int = 0,
    ) -> None:
        self.send(
            reject=pb.Reject(
                sequence=sequence,
                code=code,
                expected_sequence=expected or sequence,
                message="told to",
                field=field,
                retry_after_ms=retry_after_ms,
            )
        )

    def open(self, epoch: int = 1, sequence: int = 0, **fields: object) -> Peer:
        """Up to an open session; what was said until then is forgotten."""
        self.challenge()
        self.welcome(epoch, sequence, **fields)
        self.received()
        self.events()
        return self

    def send_signals(self, count: int) -> None:
        """The client sends one frame with the next `count` signals."""
        self.session.send_signals(payloads(self.session.next_sequence, count), self.now_us)


def frames(data: bytes) -> Iterator[pb.ClientFrame]:
    offset = 0
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        yield pb.ClientFrame.FromString(data[offset + 4 : offset + 4 + length])
        offset += 4 + length
