"""The front door's real session over a log in memory that fails, forgets and fences on demand; no sockets, no Redis."""

from __future__ import annotations

from dataclasses import dataclass, field

from execution.common.v1 import position_pb2
from execution.ingest.v1 import log_pb2
from services.ingest.domain.frames import FrameDecoder, encode_frames
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
    StoreSnapshot,
)

SECRET = b"s" * 32
HOUR_US = 3_600_000_000


@dataclass
class MemoryLog:
    """One master's stream. `entries` says of each sequence what it is: a serialized signal, or a gap's reason."""

    epoch: int = 0
    sequence: int = 0
    session_epoch: int = 0
    digest: str = "-"
    entries: dict[int, bytes | int] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    """Sequences that are missing because an epoch began behind them."""
    snapshots: list[int] = field(default_factory=list)

    def open_session(self, command: OpenLog) -> LogHead:
        seen = (command.acknowledged_epoch, command.acknowledged_sequence)
        log_lost = seen > (self.epoch, self.sequence)
        if self.epoch == 0 and not log_lost and not command.begin_epoch:
            self.epoch = 1
        elif log_lost or command.begin_epoch:
            resume = max(self.sequence, seen[1])
            self.lost.update(range(self.sequence + 1, resume + 1))
            self.epoch = max(self.epoch, seen[0]) + 1
            self.sequence = resume
        self.session_epoch += 1
        return self.head()

    def head(self) -> LogHead:
        return LogHead(self.epoch, self.sequence, self.session_epoch, self.digest)

    def append(self, session_epoch: int, run: Run) -> AppendResult:
        if session_epoch != self.session_epoch:
            return AppendResult.FENCED
        if run.first != self.sequence + 1:
            return AppendResult.MOVED
        (record,) = log_pb2.LogBatch.FromString(run.data).runs
        for sequence in range(run.first, run.last + 1):
            assert sequence not in self.entries, f"{sequence} is in the log twice"
            if record.HasField("gap"):
                self.entries[sequence] = record.gap.reason
            else:
                signal = record.batch.signals[sequence - record.batch.first_sequence]
                self.entries[sequence] = signal.SerializeToString()
        self.sequence, self.digest = run.last, run.digest
        return AppendResult.APPENDED

    def forget(self, count: int) -> None:
        """The last `count` sequences are gone, as after a restart from an older file."""
        for sequence in range(max(0, self.sequence - count) + 1, self.sequence + 1):
            self.entries.pop(sequence, None)
            self.lost.add(sequence)
        self.sequence = max(0, self.sequence - count)
        self.digest = "-"


@dataclass
class SimulatedFrontDoor:
    """One connection to the server at a time; `log` outlives them all."""

    limits: Limits
    log: MemoryLog
    now_us: int
    connections: int = 0

    def connect(self) -> None:
        self.connections += 1
        self.session = Session(self.limits, b"%032d" % self.connections, self.seconds)
        self.decoder = FrameDecoder()
        self.handed_over: list[Run] = []
        self.is_up = True

    @property
    def seconds(self) -> float:
        return self.now_us / 1e6

    def receive(self, data: bytes) -> bytes:
        """Takes bytes from the client; returns the answer that is ready at once."""
        self.decoder.receive_data(data)
        while (payload := self.decoder.next_frame()) is not None:
            self.session.receive_payload(payload, self.now_us, self.seconds)
            self._obey()
        self._take_runs()
        return self._output()

    def flush(self, *, fails: bool = False, appended: int = 0) -> bytes:
        """The log answers to what was handed over; or fails, after it had appended some of it without a word."""
        if fails:
            for run in self.handed_over[:appended]:
                self.log.append(self._session_epoch(), run)
            self.handed_over.clear()
            self.session.log_failed()
            return self._output()
        for run in self.handed_over:
            result = self.log.append(self._session_epoch(), run)
            at = self.log.sequence if result is AppendResult.MOVED else run.last
            self.session.appended(result, at)
            if result is not AppendResult.APPENDED:
                self.handed_over.clear()
                break
        self.handed_over.clear()
        return self._output()

    def restore(self) -> bytes:
        """The log answers again."""
        if self.session.intake is not None:
            self.session.log_restored(self.log.head())
        return self._output()

    def drain(self) -> bytes:
        self.session.drain(10)
        return self._output()

    def request_snapshot(self) -> bytes:
        self.session.request_snapshot("a test")
        return self._output()

    def tick(self) -> bytes:
        self.session.tick(self.now_us, self.seconds)
        return self._output()

    def _session_epoch(self) -> int:
        assert self.session.intake is not None
        return self.session.intake.session_epoch

    def _take_runs(self) -> None:
        if self.session.intake is not None:
            self.handed_over += self.session.intake.take_runs()

    def _obey(self) -> None:
        for command in self.session.take_commands():
            if isinstance(command, Authorise):
                allowed = Authorisation(SECRET, "license", self.now_us + 10_000 * HOUR_US)
                self.session.authorised(allowed, self.now_us)
                self._obey()
            elif isinstance(command, OpenLog):
                bucket = TokenBucket(self.limits.signals_per_second_max, 50, self.seconds)
                self.session.log_opened(self.log.open_session(command), bucket, self.seconds)
            elif isinstance(command, StoreSnapshot):
                self.log.snapshots.append(command.sequence)
                self.session.snapshot_stored(command, True)

    def _output(self) -> bytes:
        return encode_frames(self.session.data_to_send(self.seconds))


REJECTED = int(position_pb2.GAP_REASON_REJECTED)
MASTER_LOST = int(position_pb2.GAP_REASON_MASTER_LOST)
