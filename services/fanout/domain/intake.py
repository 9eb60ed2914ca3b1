"""Makes records of what the log and the archive hold; it reads neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from execution.common.v1 import position_pb2, signal_pb2
from execution.ledger.v1 import archive_service_pb2
from services.fanout.domain import filter as pauses
from services.fanout.domain.codec import signal_chunk
from services.fanout.domain.filter import PASSES_ALL, PASSES_CLOSE_ONLY, StopTracker
from services.fanout.domain.position import Position
from services.fanout.domain.ring import EpochRecord, GapRecord, MasterLog, Record, Ring, SignalRecord
from services.fanout.domain.runs import Run


class Intake:
    """Puts runs of the log into the ring, each position once, whatever is read twice."""

    def __init__(self, ring: Ring, *, tracked_positions_max: int) -> None:
        self._ring = ring
        self._tracked_positions_max = tracked_positions_max
        self._trackers: dict[int, StopTracker] = {}

    def apply(self, runs: Iterable[Run]) -> tuple[list[MasterLog], list[int]]:
        """Takes runs in order; returns the logs that grew and the masters that have a new snapshot."""
        grown: dict[int, MasterLog] = {}
        snapshots: list[int] = []
        for run in runs:
            if run.kind == "snapshot":
                snapshots.append(run.master_id)
            else:
                log = self._ring.open(run.master_id, run.before)
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

    def _append(self, log: MasterLog, run: Run) -> bool:
        head = log.head
        if run.before > head:
            # What lies between was not read: stops may have moved unseen.
            self._trackers.pop(run.master_id, None)
        tracker = self._trackers.get(run.master_id)
        if tracker is None:
            tracker = self._trackers[run.master_id] = StopTracker(self._tracked_positions_max)
        appended = False
        for record in records_of_run(run, after=head, tracker=tracker):
            appended = self._ring.append(log, record) or appended
        return appended


def records_of_run(run: Run, *, after: Position, tracker: StopTracker | None = None) -> list[Record]:
    """The run's records behind `after`, in order; none for a snapshot's marker."""
    if run.last <= after or run.kind == "snapshot":
        return []
    if run.kind == "batch":
        return _signals(run, after, tracker)
    epoch, sequence = run.last
    if run.kind == "gap":
        gap = run.message.gap
        return [GapRecord(epoch, run.before.sequence + 1, sequence, gap.reason, gap.note)]
    return [EpochRecord(epoch, sequence, run.before, run.message.epoch_start.reason)]


def _signals(run: Run, after: Position, tracker: StopTracker | None) -> list[Record]:
    epoch, before = run.before
    batch, received_at_us = run.message.batch, run.message.received_at_us
    known = max(0, after.sequence - before) if after.epoch == epoch else 0
    records: list[Record] = []
    for sequence, signal in enumerate(batch.signals[known:], before + known + 1):
        sequenced = signal_pb2.SequencedSignal(
            master_id=run.master_id,
            epoch=epoch,
            sequence=sequence,
            previous_epoch=epoch,
            previous_sequence=sequence - 1,
            signal=signal,
            sent_at_us=batch.sent_at_us,
            received_at_us=received_at_us,
        )
        records.append(_signal_record(sequenced, signal, tracker))
    return records


def _signal_record(
    sequenced: signal_pb2.SequencedSignal, signal: signal_pb2.Signal, tracker: StopTracker | None
) -> SignalRecord:
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
    return _signal_record(sequenced, sequenced.signal, None)


def _archived_gap(gap: archive_service_pb2.ArchivedGap) -> Record:
    first: position_pb2.StreamPosition = getattr(gap, "from")
    resume_after = gap.resume_after
    if resume_after.epoch in (0, first.epoch) and gap.to.epoch == first.epoch:
        return GapRecord(first.epoch, first.sequence, gap.to.sequence, gap.reason)
    previous = Position(first.epoch, max(0, first.sequence - 1))
    return EpochRecord(resume_after.epoch, resume_after.sequence, previous, gap.reason)
