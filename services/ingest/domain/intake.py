"""The open session's dealings with signed bodies: sequence rules, validation, what is under way, acks; no handshake."""

from __future__ import annotations

from collections import deque
from typing import Final

from google.protobuf.message import DecodeError

from execution.common.v1 import position_pb2
from execution.common.v1.signal_pb2 import Signal
from execution.common.v1.snapshot_pb2 import Snapshot
from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.batches import BatchRules, fault_of, head_of, tail_of
from services.ingest.domain.frames import ack_payload, varint
from services.ingest.domain.log_format import RunEncoder
from services.ingest.domain.mac import MacKey, SessionKeys
from services.ingest.domain.outbox import RETRYABLE, Outbox
from services.ingest.domain.rate import TokenBucket
from services.ingest.domain.rules import SEQUENCE_MAX, Problem, is_note, snapshot_problem
from services.ingest.domain.values import (
    NO_DIGEST,
    AppendResult,
    Limits,
    LogHead,
    Run,
    StoreSnapshot,
    digest_of,
)

NOTE_BYTES_MAX: Final = 128
_GAP_REASONS: Final = frozenset({position_pb2.GAP_REASON_REJECTED, position_pb2.GAP_REASON_MASTER_LOST})

_parse_batch = pb.SignalBatch.FromString


class Intake:
    """Takes one master's signed bodies in order and knows, at any time, what is durable and what is under way.

    `durable` is the last sequence known to be in the log; `expected` is the next one that is taken.
    """

    def __init__(
        self,
        limits: Limits,
        outbox: Outbox,
        keys: SessionKeys,
        bucket: TokenBucket,
        *,
        master_id: int,
        key_id: str,
        head: LogHead,
        signal_age_ms_max: int,
        now_seconds: float,
    ) -> None:
        self._limits = limits
        self._outbox = outbox
        self._keys = keys
        self._batches = BatchRules(signal_age_ms_max, bucket)
        self._snapshots = TokenBucket(1 / limits.snapshot_seconds_min, limits.snapshot_burst, now_seconds)
        self._master_id = master_id
        self._encoder = RunEncoder(
            master_id=master_id, epoch=head.epoch, session_epoch=head.session_epoch, key_id=key_id
        )
        self.epoch = head.epoch
        self.session_epoch = head.session_epoch
        self.durable = head.sequence
        self.expected = head.sequence + 1
        self.runs: list[Run] = []
        """Taken and not yet handed to the log; the driver takes them after each chunk of frames."""
        self._under_way: deque[Run] = deque()
        self._signals_under_way = 0
        self._snapshots_under_way = 0
        self._digest = head.digest
        self._last_signal: Signal | None = None
        self._log_is_up = True
        self._ack_due = False
        self.is_draining = False
        self.credits = limits.window
        """What acks offer; the driver lowers it while the log is slow."""

    @property
    def in_flight(self) -> int:
        """Signals taken and not yet durable."""
        return self._signals_under_way

    @property
    def is_idle(self) -> bool:
        """Whether everything taken is durable or refused."""
        return not self._under_way and not self._snapshots_under_way

    # Frames

    def take_signals(self, signed: pb.SignedSignals, now_us: int, now_seconds: float) -> None:
        """Takes a batch up to its first bad signal."""
        body = signed.body
        if not self._is_authentic(self._keys.signals, body, signed.mac):
            return
        try:
            batch = _parse_batch(body)
        except DecodeError:
            self._malformed("the body is not a SignalBatch")
            return
        first, count = batch.first_sequence, len(batch.signals)
        last = first + count - 1
        fault = fault_of(batch, self._limits.batch_signals_max)
        if fault is not None:
            self._malformed(fault)
            return
        if first != self.expected or self._blocks(first, last):
            if not self._comes_partly_next(batch, first, last):
                return
            batch = tail_of(batch, self.expected - first)
            body, first = batch.SerializeToString(), self.expected
        taken, refusal = self._batches.check(batch, now_us, now_seconds)
        if taken:
            if first + taken - 1 < last:
                last = first + taken - 1
                body = head_of(batch, taken).SerializeToString()
            data = self._encoder.signals(first, last, varint(now_us), body)
            self._take(Run(first, last, data, batch.signals[taken - 1], now_seconds))
            self._signals_under_way += taken
        if refusal is not None:
            self._reject(refusal.code, refusal.message, self.expected, refusal.field, refusal.retry_after_ms)

    def take_gap_fill(self, signed: pb.SignedGapFill, now_us: int, now_seconds: float) -> None:
        """Takes the declaration that sequences will never come."""
        if not self._is_authentic(self._keys.gap_fill, signed.body, signed.mac):
            return
        try:
            body = pb.GapFillBody.FromString(signed.body)
        except DecodeError:
            self._malformed("the body is not a GapFillBody")
            return
        first, last = body.from_sequence, body.to_sequence
        if not 0 < first <= last <= SEQUENCE_MAX or last - first >= self._limits.gap_sequences_max:
            self._malformed(f"a gap has 1 to {self._limits.gap_sequences_max} sequences")
        elif body.reason not in _GAP_REASONS or not is_note(body.note, NOTE_BYTES_MAX):
            self._malformed("a gap's reason is REJECTED or MASTER_LOST, its note at most 128 bytes")
        elif last < self.expected:
            self._ack_due = True
        elif not self._is_refused_for_state(first):
            first = max(first, self.expected)
            data = self._encoder.gap(first, last, varint(now_us), body.reason, body.note)
            self._take(Run(first, last, data, None, now_seconds))

    def take_snapshot(self, signed: pb.SignedSnapshot, now_seconds: float) -> None:
        """Takes the state of the master's account, to be stored behind everything under way."""
        if not self._is_authentic(self._keys.snapshot, signed.body, signed.mac):
            return
        try:
            snapshot = Snapshot.FromString(signed.body)
        except DecodeError:
            self._malformed("the body is not a Snapshot")
            return
        problem = self._snapshot_problem(snapshot)
        if problem is not None:
            self._reject_snapshot(pb.REJECT_CODE_INVALID_SIGNAL, *problem)
        elif self.is_draining:
            self._reject_snapshot(pb.REJECT_CODE_DRAINING, "", "the server is stopping")
        elif not self._log_is_up:
            self._reject_snapshot(pb.REJECT_CODE_UNAVAILABLE, "", "the log cannot be reached")
        elif not self._snapshots.take(1, now_seconds):
            self._reject_snapshot(pb.REJECT_CODE_RATE_LIMITED, "", "too many snapshots")
        else:
            snapshot.as_of.epoch = self.epoch
            self._snapshots_under_way += 1
            self._outbox.commands.append(
                StoreSnapshot(snapshot.SerializeToString(), self.epoch, snapshot.as_of.sequence)
            )

    # Answers of the log

    def appended(self, result: AppendResult, sequence: int) -> list[Run]:
        """The log's answer about runs up to `sequence`; for MOVED, where the head is. Returns the runs now durable."""
        if result is AppendResult.FENCED:
            self.fenced()
        elif result is AppendResult.CONFLICT:
            self._reject_conflict()
        elif result is AppendResult.MOVED and sequence < self.durable:
            self._log_lost()
        else:
            done = self._advance(sequence)
            if result is AppendResult.MOVED:
                self._refuse_under_way(pb.REJECT_CODE_GAP, f"the log's head is {sequence}")
            return done
        return []

    def snapshot_stored(self, command: StoreSnapshot) -> None:
        """The snapshot is in the log."""
        self._snapshots_under_way -= 1
        ack = pb.Ack(
            sequence=self.durable,
            durability=self._limits.durability,
            credits=self.credits,
            snapshot_sequence=command.sequence,
        )
        self._outbox.send(pb.ServerFrame(ack=ack))

    def snapshot_not_stored(self) -> None:
        """The log could not take the snapshot."""
        self._snapshots_under_way -= 1
        self._reject_snapshot(pb.REJECT_CODE_UNAVAILABLE, "", "the log cannot be reached")

    def log_failed(self) -> None:
        """The log does not answer: nothing under way is acknowledged, and nothing is taken until `log_restored`."""
        if self._log_is_up:
            self._log_is_up = False
            self._refuse_under_way(pb.REJECT_CODE_UNAVAILABLE, "the log cannot be reached")

    def log_restored(self, head: LogHead | None) -> None:
        """The log answers again and this is the master's head in it (None: it has nothing of this master)."""
        if head is None or (head.session_epoch == self.session_epoch and head.sequence < self.durable):
            self._log_lost()
        elif head.session_epoch != self.session_epoch:
            self.fenced()
        else:
            self._log_is_up = True
            self._ack_due = head.sequence > self.durable
            self.durable = head.sequence
            self.expected = head.sequence + 1
            self._digest, self._last_signal = head.digest, None

    def fenced(self) -> None:
        """A later session of the same master has taken over."""
        self._outbox.reject(
            pb.REJECT_CODE_FENCED,
            "a later login of this master has taken over",
            sequence=self._first_under_way(),
            expected=self.durable + 1,
        )

    # Acks

    def flush_ack(self) -> None:
        """Adds the cumulative Ack, if one is due; called when the driver is about to write."""
        if self._ack_due:
            self._ack_due = False
            if not self._outbox.closing:
                payload = ack_payload(self.durable, self._limits.durability, self.credits)
                self._outbox.frames.append(payload)

    def take_runs(self) -> list[Run]:
        """The runs to hand to the log now, in order."""
        runs, self.runs = self.runs, []
        return runs

    # Inside

    def _is_authentic(self, key: MacKey, body: bytes, mac: bytes) -> bool:
        if key.fits(body, mac):
            return True
        self._outbox.reject(pb.REJECT_CODE_BAD_MAC, "the MAC does not fit the body", expected=self.expected)
        return False

    def _blocks(self, first: int, last: int) -> bool:
        """Whether something other than its signals keeps a batch that comes next from being taken."""
        return (
            not self._log_is_up
            or self.is_draining
            or self._signals_under_way + last - first >= self._limits.window
        )

    def _comes_partly_next(self, batch: pb.SignalBatch, first: int, last: int) -> bool:
        """Deals with a batch that is not simply the next one; True if its later part is to be taken now."""
        if self._is_conflict(batch):
            self._reject_conflict()
            return False
        if last < self.expected:
            # What is still under way will be acknowledged when it is durable.
            self._outbox.duplicates += last - first + 1
            self._ack_due = True
            return False
        if self._is_refused_for_state(first):
            return False
        if self._signals_under_way + last - self.expected >= self._limits.window:
            message = f"at most {self._limits.window} signals may be under way"
            self._reject(
                pb.REJECT_CODE_WINDOW_EXCEEDED,
                message,
                self.expected,
                retry_after_ms=self._limits.retry_after_ms,
            )
            return False
        self._outbox.duplicates += self.expected - first
        return True

    def _is_refused_for_state(self, first: int) -> bool:
        """Refuses what begins beyond the expected sequence, or comes while the log is away or the server stops."""
        retry_after_ms = self._limits.retry_after_ms
        if first > self.expected:
            self._reject(pb.REJECT_CODE_GAP, f"sequence {self.expected} is missing", first)
        elif self.is_draining:
            message = "the server is stopping: reconnect"
            self._reject(pb.REJECT_CODE_DRAINING, message, self.expected, retry_after_ms=retry_after_ms)
        elif not self._log_is_up:
            message = "the log cannot be reached"
            self._reject(pb.REJECT_CODE_UNAVAILABLE, message, self.expected, retry_after_ms=retry_after_ms)
        else:
            return False
        return True

    def _is_conflict(self, batch: pb.SignalBatch) -> bool:
        """Whether the batch holds the last sequence taken, with other content."""
        index = self.expected - 1 - batch.first_sequence
        if not 0 <= index < len(batch.signals):
            return False
        return self._last_digest() not in (NO_DIGEST, digest_of(batch.signals[index]))

    def _snapshot_problem(self, snapshot: Snapshot) -> Problem | None:
        if snapshot.master_id != self._master_id:
            return Problem("master_id", "must be the session's master")
        if snapshot.as_of.epoch not in (0, self.epoch):
            return Problem("as_of", "must be of the session's epoch")
        if snapshot.as_of.sequence >= self.expected:
            return Problem("as_of", "must be acknowledged or under way")
        return snapshot_problem(snapshot)

    def _take(self, run: Run) -> None:
        self.expected = run.last + 1
        self._last_signal = run.last_signal
        self._digest = NO_DIGEST
        self.runs.append(run)
        self._under_way.append(run)

    def _advance(self, sequence: int) -> list[Run]:
        """Everything up to `sequence` is durable. Returns the runs that this completes."""
        under_way, done = self._under_way, []
        while under_way and under_way[0].last <= sequence:
            run = under_way.popleft()
            done.append(run)
            if run.last_signal is not None:
                self._signals_under_way -= run.last - run.first + 1
        self.durable = max(self.durable, sequence)
        self.expected = max(self.expected, sequence + 1)
        self._ack_due = True
        return done

    def _refuse_under_way(self, code: pb.RejectCode.ValueType, message: str) -> None:
        """Refuses what is under way: the first frame with `code`, those behind it with GAP. The client starts over."""
        self.expected = self.durable + 1
        for run in self._under_way:
            retry_after_ms = self._limits.retry_after_ms if code == pb.REJECT_CODE_UNAVAILABLE else 0
            sequence = max(run.first, self.expected)
            self._reject(code, message, sequence, retry_after_ms=retry_after_ms)
            code, message = pb.REJECT_CODE_GAP, f"sequence {self.expected} is missing"
        self._under_way.clear()
        self.runs.clear()
        self._signals_under_way = 0
        self._digest, self._last_signal = NO_DIGEST, None

    def _log_lost(self) -> None:
        self._outbox.bye("the log lost acknowledged signals: log in again")

    def _first_under_way(self) -> int:
        return self._under_way[0].first if self._under_way else 0

    def _last_digest(self) -> str:
        return self._digest if self._last_signal is None else digest_of(self._last_signal)

    def _reject_conflict(self) -> None:
        self._reject(
            pb.REJECT_CODE_CONFLICT,
            "the last sequence came again with other content: does another terminal use this master's key?",
            self.expected - 1,
        )

    def _reject_snapshot(self, code: pb.RejectCode.ValueType, field: str, message: str) -> None:
        retry_after_ms = self._limits.retry_after_ms if code in RETRYABLE else 0
        message = f"snapshot: {field} {message}" if field else f"snapshot: {message}"
        self._reject(code, message, 0, field, retry_after_ms)

    def _malformed(self, message: str) -> None:
        self._reject(pb.REJECT_CODE_MALFORMED, message, 0)

    def _reject(
        self,
        code: pb.RejectCode.ValueType,
        message: str,
        sequence: int,
        field: str = "",
        retry_after_ms: int = 0,
    ) -> None:
        self._outbox.reject(
            code,
            message,
            sequence=sequence,
            expected=self.expected,
            field=field,
            retry_after_ms=retry_after_ms,
        )
