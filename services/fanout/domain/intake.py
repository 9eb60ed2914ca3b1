"""Makes records of what the log and the archive hold; it reads neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from execution.common.v1 import position_pb2, signal_pb2
from execution.ingest.v1 import log_pb2
from execution.ledger.v1 import archive_service_pb2
from services.fanout.domain import filter as pauses
from services.fanout.domain.codec import signal_chunk
from services.fanout.domain.filter import PASSES_ALL, PASSES_CLOSE_ONLY, StopTracker
from services.fanout.domain.position import SEQUENCE_MAX, Position
from services.fanout.domain.ring import EpochRecord, GapRecord, MasterLog, Record, Ring, SignalRecord


class Intake:
    """Puts batches of the log into the ring, each position once, whatever is read twice."""

    def __init__(self, ring: Ring, *, tracked_positions_max: int) -> None:
        self._ring = ring
        self._tracked_positions_max = tracked_positions_max
        self._trackers: dict[int, StopTracker] = {}

    def apply(self, batch: log_pb2.LogBatch) -> tuple[list[MasterLog], list[int]]:
        """Takes one batch of sound runs; returns the logs that grew and the masters that have a new snapshot."""
        grown: dict[int, MasterLog] = {}
        snapshots: list[int] = []
        for run in batch.runs:
            if run.WhichOneof("record") == "snapshot":
                snapshots.append(run.master_id)
            else:
                log = self._ring.open(run.master_id, before(run))
                if self._append(log, run):
                    grown[run.master_id] = log
        self._ring.trim()
        return list(grown.values()), snapshots

    def advance(self, log: MasterLog, head: Position) -> bool:
        """The master's stream stands at `head`; False when that is known already."""
        self._trackers.pop(log.master_id, None)
        return self._ring.advance(log, head)

    def discard(self, is_idle: Callable[[MasterLog], bool]) -> int:
        """Forgets the masters that `is_idle` allows; returns how many."""
        gone = self._ring.discard(is_idle)
        for master_id in [one for one in self._trackers if self._ring.get(one) is None]:
            del self._trackers[master_id]
        return gone

    def _append(self, log: MasterLog, run: log_pb2.LogRun) -> bool:
        if before(run) > log.head:
            # What lies between was not read: stops may have moved unseen.
            self._trackers.pop(run.master_id, None)
        tracker = self._trackers.get(run.master_id)
        if tracker is None:
            tracker = self._trackers[run.master_id] = StopTracker(self._tracked_positions_max)
        appended = False
        for record in records_of_run(run, after=log.head, tracker=tracker):
            appended = self._ring.append(log, record) or appended
        return appended


def sound_batch(payload: bytes) -> tuple[log_pb2.LogBatch, int]:
    """What an entry of the log holds, without the runs that cannot be, and how many those are.

    Raises:
        DecodeError: it is no batch at all.
    """
    batch = log_pb2.LogBatch.FromString(payload)
    sound = [run for run in batch.runs if _is_sound(run)]
    unsound = len(batch.runs) - len(sound)
    return (batch if not unsound else log_pb2.LogBatch(runs=sound)), unsound


def _is_sound(run: log_pb2.LogRun) -> bool:
    kind = run.WhichOneof("record")
    if run.master_id == 0 or run.epoch == 0 or max(run.epoch, run.last_sequence) > SEQUENCE_MAX:
        return False
    length = run.last_sequence - run.first_sequence + 1
    if kind == "batch":
        return run.first_sequence >= 1 and length == len(run.batch.signals) > 0
    if kind == "gap":
        return run.first_sequence >= 1 and length > 0
    return kind in ("epoch_start", "snapshot") and length == 1


def before(run: log_pb2.LogRun) -> Position:
    """The place that a run follows."""
    if run.WhichOneof("record") == "epoch_start":
        previous = run.epoch_start.previous
        return Position(previous.epoch, previous.sequence)
    return Position(run.epoch, run.first_sequence - 1)


def records_of_run(
    run: log_pb2.LogRun, *, after: Position, tracker: StopTracker | None = None
) -> Iterator[Record]:
    """The run's records behind `after`, in order; none for a snapshot's marker."""
    kind = run.WhichOneof("record")
    if (run.epoch, run.last_sequence) <= after:
        return
    if kind == "batch":
        yield from _signals(run, after, tracker)
    elif kind == "gap":
        yield GapRecord(run.epoch, run.first_sequence, run.last_sequence, run.gap.reason, run.gap.note)
    elif kind == "epoch_start":
        yield EpochRecord(run.epoch, run.last_sequence, before(run), run.epoch_start.reason)


def _signals(run: log_pb2.LogRun, after: Position, tracker: StopTracker | None) -> Iterator[SignalRecord]:
    batch = run.batch
    skip = after.sequence + 1 - run.first_sequence if run.epoch == after.epoch else 0
    for index in range(max(0, skip), len(batch.signals)):
        sequence = run.first_sequence + index
        sequenced = signal_pb2.SequencedSignal(
            master_id=run.master_id,
            epoch=run.epoch,
            sequence=sequence,
            previous_epoch=run.epoch,
            previous_sequence=sequence - 1,
            signal=batch.signals[index],
            sent_at_us=batch.sent_at_us,
            received_at_us=run.received_at_us,
        )
        yield _signal_record(sequenced, tracker)


def _signal_record(sequenced: signal_pb2.SequencedSignal, tracker: StopTracker | None) -> SignalRecord:
    signal = sequenced.signal
    change = None if tracker is None else tracker.observe(signal)
    passes = pauses.passes(signal)
    if change is None and signal.kind == signal_pb2.SIGNAL_KIND_MODIFY:
        passes = PASSES_CLOSE_ONLY | PASSES_ALL
    return SignalRecord(
        sequenced.epoch,
        sequenced.sequence,
        signal_chunk(sequenced),
        sequenced.received_at_us,
        passes,
        change,
    )


def records_of_archive(
    records: Iterable[archive_service_pb2.ArchivedRecord], *, after: Position
) -> Iterator[Record]:
    """The archive's records behind `after`, in order."""
    for record in records:
        made = _archived_gap(record.gap) if record.HasField("gap") else _archived_signal(record.signal)
        if made.position > after:
            yield made


def _archived_signal(sequenced: signal_pb2.SequencedSignal) -> SignalRecord:
    # What a reader holds before a signal is the place before it in its epoch, however it was archived.
    sequenced.previous_epoch = sequenced.epoch
    sequenced.previous_sequence = sequenced.sequence - 1
    return _signal_record(sequenced, None)


def _archived_gap(gap: archive_service_pb2.ArchivedGap) -> Record:
    first: position_pb2.StreamPosition = getattr(gap, "from")
    resume_after = gap.resume_after
    if resume_after.epoch in (0, first.epoch) and gap.to.epoch == first.epoch:
        return GapRecord(first.epoch, first.sequence, gap.to.sequence, gap.reason)
    previous = Position(first.epoch, max(0, first.sequence - 1))
    return EpochRecord(resume_after.epoch, resume_after.sequence, previous, gap.reason)
