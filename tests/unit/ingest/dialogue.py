"""A session under test with a client that signs and a log that answers as it is told; no I/O, no real time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from execution.common.v1 import signal_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb
from execution.ingest.v1 import log_pb2
from services.ingest.domain.rate import TokenBucket
from services.ingest.domain.session import Session
from services.ingest.domain.values import (
    AppendResult,
    Authorisation,
    Authorise,
    Limits,
    LogHead,
    OpenLog,
    Run,
)
from tests.unit.ingest.signing import Credentials, Keys, login_body, signal

START_US = 1_800_000_000_000_000
HOUR_US = 3_600_000_000
CHALLENGE = b"n" * 32
NONCE = b"c" * 16


@dataclass
class Dialogue:
    """Both sides of one connection."""

    limits: Limits = field(default_factory=Limits)
    who: Credentials = field(default_factory=Credentials)
    now_us: int = START_US
    now_seconds: float = 100.0
    per_second: int = 0

    def __post_init__(self) -> None:
        self.session = Session(self.limits, CHALLENGE, self.now_seconds)
        self.keys = Keys(self.who.secret, NONCE, CHALLENGE)

    # Towards the session

    def pass_time(self, seconds: float) -> None:
        self.now_seconds += seconds
        self.now_us += int(seconds * 1e6)

    def send(self, *frames: pb.ClientFrame) -> list[pb.ServerFrame]:
        for frame in frames:
            self.session.receive_payload(frame.SerializeToString(), self.now_us, self.now_seconds)
        return self.answers()

    def hello(self, **fields: object) -> list[pb.ServerFrame]:
        values = {
            "version": 1,
            "master_id": self.who.master_id,
            "key_id": self.who.key_id,
            "nonce": NONCE,
            **fields,
        }
        return self.send(pb.ClientFrame(hello=pb.Hello(**values)))

    def login(self, acknowledged: tuple[int, int] = (0, 0), **fields: object) -> list[pb.ServerFrame]:
        body = login_body(self.who, acknowledged)
        for name, value in fields.items():
            setattr(body, name, value)
        return self.send(self.keys.login(body.SerializeToString()))

    def authorise(self, **fields: object) -> list[pb.ServerFrame]:
        (command,) = self.session.take_commands()
        assert isinstance(command, Authorise)
        allowed = Authorisation(self.who.secret, "license", self.now_us + HOUR_US)
        self.session.authorised(replace(allowed, **fields), self.now_us)
        return self.answers()

    def open_log(self, head: LogHead | None = None) -> pb.Welcome:
        (command,) = self.session.take_commands()
        assert isinstance(command, OpenLog)
        bucket = TokenBucket(self.per_second, max(1, self.per_second), self.now_seconds)
        self.session.log_opened(head or LogHead(1, 0, 50), bucket, self.now_seconds)
        (answer,) = self.answers()
        assert answer.HasField("welcome"), answer
        return answer.welcome

    def open(self, head: LogHead | None = None, **fields: object) -> Dialogue:
        """Up to an open session."""
        self.hello()
        self.login()
        self.authorise(**fields)
        self.open_log(head)
        return self

    def signal(self, number: int = 1, **fields: object) -> signal_pb2.Signal:
        return signal(number, **{"occurred_at_us": self.now_us, **fields})

    def batch(self, first: int, count: int = 1, **fields: object) -> pb.ClientFrame:
        return self.keys.signals(first, [self.signal(first + n, **fields) for n in range(count)])

    def send_signals(self, first: int, count: int = 1, **fields: object) -> list[pb.ServerFrame]:
        return self.send(self.batch(first, count, **fields))

    def snapshot(self, sequence: int, **fields: object) -> pb.ClientFrame:
        values = {"master_id": self.who.master_id, "taken_at_us": self.now_us, "account_mode": 1, **fields}
        snapshot = snapshot_pb2.Snapshot(**values)
        snapshot.as_of.sequence = sequence
        return self.keys.snapshot_frame(snapshot)

    # What comes out of the session

    def answers(self) -> list[pb.ServerFrame]:
        return [pb.ServerFrame.FromString(one) for one in self.session.data_to_send(self.now_seconds)]

    def taken(self) -> list[Run]:
        """The runs to append, handed over now."""
        assert self.session.intake is not None
        return self.session.intake.take_runs()

    def append(self, result: AppendResult = AppendResult.APPENDED, sequence: int | None = None):
        """The log answers to everything handed over."""
        assert self.session.intake is not None
        runs = self.taken()
        if sequence is None:
            sequence = runs[-1].last if runs else self.session.intake.durable
        self.session.appended(result, sequence)
        return self.answers()

    @property
    def is_closed(self) -> bool:
        return self.session.is_closed


def only_reject(frames: list[pb.ServerFrame]) -> pb.Reject:
    """The single frame, which must be a Reject."""
    (frame,) = frames
    assert frame.HasField("reject"), frame
    return frame.reject


def only_ack(frames: list[pb.ServerFrame]) -> pb.Ack:
    (frame,) = frames
    assert frame.HasField("ack"), frame
    return frame.ack


def codes(frames: list[pb.ServerFrame]) -> list[pb.RejectCode.ValueType]:
    return [frame.reject.code for frame in frames if frame.HasField("reject")]


def parsed(run: Run) -> log_pb2.LogRun:
    """The run as a reader of the log sees it."""
    (one,) = log_pb2.LogBatch.FromString(run.data).runs
    return one
