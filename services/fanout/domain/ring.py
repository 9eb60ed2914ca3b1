"""The newest records of every master, serialized once and shared by all streams; it knows no subscriber.

A record has a place (an offset that only rises) in its master's log, so a cursor is a number, and reading what follows
it is a slice. Within a log records are dense: each follows the one before it, or the log begins anew behind the hole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Final

from execution.common.v1 import position_pb2
from services.fanout.domain.codec import Message, signals_message
from services.fanout.domain.filter import StopChange
from services.fanout.domain.position import BEGINNING, Position, held

_RECORD_BYTES: Final = 250
"""What a record costs in memory beside its chunk, measured on CPython 3.11."""
_SLICES_MAX: Final = 8
"""How many ready slices a log remembers until it grows; live cursors ask for one or two."""
_EVICT_SHARE: Final = 16
"""A full ring lets go of this fraction of its largest log at a time, so that letting go is rare."""


class SignalRecord:
    """One signal, ready to send."""

    __slots__ = ("chunk", "epoch", "passes", "received_at_us", "sequence", "stop_change")
    is_signal: ClassVar[bool] = True

    def __init__(
        self,
        epoch: int,
        sequence: int,
        chunk: bytes,
        received_at_us: int,
        passes: int,
        stop_change: StopChange | None,
    ) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.chunk = chunk
        self.received_at_us = received_at_us
        self.passes = passes
        self.stop_change = stop_change

    @property
    def position(self) -> Position:
        """The signal's place."""
        return Position(self.epoch, self.sequence)

    @property
    def before(self) -> Position:
        """The place that it follows."""
        return Position(self.epoch, self.sequence - 1)

    def follows(self, position: Position) -> bool:
        """Whether a reader at `position` misses nothing before this."""
        return self.epoch == position.epoch and self.sequence == position.sequence + 1

    @property
    def memory_bytes(self) -> int:
        """About what it costs to keep."""
        return _RECORD_BYTES + len(self.chunk)


class GapRecord:
    """Sequences `first_sequence` to `sequence` of an epoch that will never come."""

    __slots__ = ("epoch", "first_sequence", "note", "reason", "sequence")
    is_signal: ClassVar[bool] = False
    memory_bytes: ClassVar[int] = _RECORD_BYTES

    def __init__(
        self,
        epoch: int,
        first_sequence: int,
        sequence: int,
        reason: position_pb2.GapReason.ValueType,
        note: str = "",
    ) -> None:
        self.epoch = epoch
        self.first_sequence = first_sequence
        self.sequence = sequence
        self.reason = reason
        self.note = note

    @property
    def position(self) -> Position:
        """The last missing place."""
        return Position(self.epoch, self.sequence)

    @property
    def before(self) -> Position:
        """The place that it follows."""
        return Position(self.epoch, self.first_sequence - 1)

    def follows(self, position: Position) -> bool:
        """Whether a reader at `position` misses nothing before this."""
        return self.epoch == position.epoch and self.first_sequence <= position.sequence + 1 <= self.sequence


class EpochRecord:
    """A new epoch began behind `sequence`; `previous` is the last place of the former one that the log still had."""

    __slots__ = ("epoch", "previous", "reason", "sequence")
    is_signal: ClassVar[bool] = False
    memory_bytes: ClassVar[int] = _RECORD_BYTES

    def __init__(
        self, epoch: int, sequence: int, previous: Position, reason: position_pb2.GapReason.ValueType
    ) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.previous = previous
        self.reason = reason

    @property
    def position(self) -> Position:
        """Where the new epoch begins."""
        return Position(self.epoch, self.sequence)

    @property
    def before(self) -> Position:
        """The place that it follows."""
        return held(self.previous)

    def follows(self, position: Position) -> bool:
        """Whether a reader at `position` misses nothing before this but what the record itself tells.

        A reader may hold more of the former epoch than the log had left, because it read it before the loss.
        """
        return self.before <= position < self.position


Record = SignalRecord | GapRecord | EpochRecord


def _order(record: Record) -> Position:
    return Position(record.epoch, record.sequence)


class Slice:
    """Signals that follow one another, joined; `end` is the offset behind the last."""

    __slots__ = ("_message", "chunks", "end", "last", "received_at_us", "signals")

    def __init__(self, records: Sequence[SignalRecord], end: int) -> None:
        self.chunks = b"".join([record.chunk for record in records])
        self.signals = len(records)
        self.end = end
        self.last = records[-1].position
        self.received_at_us = records[0].received_at_us
        self._message: Message | None = None

    @property
    def message(self) -> Message:
        """The message that carries just these signals; made once, the same for all who ask."""
        if self._message is None:
            self._message = signals_message(self.chunks, self.signals, self.received_at_us)
        return self._message


def joined_message(slices: Sequence[Slice]) -> Message:
    """One message that carries the signals of them all, at least one, in this order."""
    if len(slices) == 1:
        return slices[0].message
    return signals_message(
        b"".join([one.chunks for one in slices]),
        sum(one.signals for one in slices),
        min(one.received_at_us for one in slices),
    )


class Segment:
    """Dense records of one master with their offsets. `floor` is what a reader must hold to be served from here."""

    def __init__(self, floor: Position, records: Iterable[Record] = (), base: int = 0) -> None:
        self.floor = floor
        self._records: list[Record] = list(records)
        self._base = base
        self.head = self._records[-1].position if self._records else floor
        """Place of the newest record; the floor while there is none."""
        self._slices: dict[tuple[int, int, int], Slice] = {}

    @property
    def base(self) -> int:
        """Offset of the oldest record."""
        return self._base

    @property
    def end(self) -> int:
        """Offset behind the newest record."""
        return self._base + len(self._records)

    def record(self, offset: int) -> Record:
        """The record at an offset in [base, end)."""
        return self._records[offset - self._base]

    def records(self, offset: int) -> Iterator[Record]:
        """The records from an offset on."""
        return iter(self._records[offset - self._base :])

    def covers(self, position: Position) -> bool:
        """Whether a reader at `position` can go on from here without missing anything."""
        return self.floor <= position

    def offset_after(self, position: Position) -> int:
        """Offset of the first record behind `position`; meaningful where `covers(position)`."""
        return self._base + bisect_right(self._records, position, key=_order)

    def slice(self, offset: int, bytes_max: int, signals_max: int) -> Slice | None:
        """The signals from `offset` up to the next record of another kind or a limit, at least one.

        None when the record at `offset` is no signal, or there is none. Those who ask for the same get the same.
        """
        key = (offset, bytes_max, signals_max)
        known = self._slices.get(key)
        if known is not None:
            return known
        made = self._slice(offset, bytes_max, signals_max)
        if made is not None:
            if len(self._slices) >= _SLICES_MAX:
                self._slices.clear()
            self._slices[key] = made
        return made

    def _slice(self, offset: int, bytes_max: int, signals_max: int) -> Slice | None:
        taken: list[SignalRecord] = []
        index = offset - self._base
        budget = bytes_max
        for record in self._records[index : index + signals_max]:
            if not isinstance(record, SignalRecord):
                break
            budget -= len(record.chunk)
            if budget < 0 and taken:
                break
            taken.append(record)
        return Slice(taken, offset + len(taken)) if taken else None


class MasterLog(Segment):
    """The newest records of one master."""

    def __init__(self, master_id: int, floor: Position, base: int = 0) -> None:
        super().__init__(floor, base=base)
        self.master_id = master_id
        self.memory_bytes = 0
        self.signals_seen = 0
        self.chunk_bytes_seen = 0

    @property
    def chunk_bytes_mean(self) -> int:
        """Mean size of the signals seen so far, in bytes."""
        return self.chunk_bytes_seen // self.signals_seen if self.signals_seen else 0

    def append(self, record: Record) -> None:
        """Adds the record that follows the head; `Ring` sees to that."""
        self._slices.clear()
        self._records.append(record)
        self.head = record.position
        self.memory_bytes += record.memory_bytes
        if isinstance(record, SignalRecord):
            self.signals_seen += 1
            self.chunk_bytes_seen += len(record.chunk)

    def forget(self, count: int) -> None:
        """Lets go of the `count` oldest records; cursors before them are behind the ring from now on."""
        if count <= 0:
            return
        gone = self._records[:count]
        self.floor = gone[-1].position
        self.memory_bytes -= sum(record.memory_bytes for record in gone)
        del self._records[:count]
        self._base += len(gone)
        self._slices.clear()

    def restart(self, floor: Position) -> None:
        """Lets go of everything and begins anew behind a hole."""
        self.forget(len(self._records))
        self.floor = self.head = floor
        # A cursor that had read everything stands before the hole, not behind it.
        self._base += 1

    def __len__(self) -> int:
        return len(self._records)


class Ring:
    """The logs of all masters of this process, bounded per master and in all."""

    def __init__(self, *, records_per_master_max: int, memory_bytes_max: int) -> None:
        self._records_per_master_max = records_per_master_max
        self._memory_bytes_max = memory_bytes_max
        self._logs: dict[int, MasterLog] = {}
        self._memory_bytes = 0

    @property
    def memory_bytes(self) -> int:
        """About what all records cost."""
        return self._memory_bytes

    def __len__(self) -> int:
        return len(self._logs)

    def __iter__(self) -> Iterator[MasterLog]:
        return iter(self._logs.values())

    def get(self, master_id: int) -> MasterLog | None:
        """The master's log, if there is one."""
        return self._logs.get(master_id)

    def open(self, master_id: int, head: Position = BEGINNING) -> MasterLog:
        """The master's log; a new one is empty and stands at `head`."""
        log = self._logs.get(master_id)
        if log is None:
            log = self._logs[master_id] = MasterLog(master_id, held(head))
        return log

    def append(self, log: MasterLog, record: Record) -> bool:
        """Adds a record; False when the log has it already. One that leaves a hole lets the log begin anew."""
        head = log.head
        if (record.epoch, record.sequence) <= head:
            return False
        before = log.memory_bytes
        if not record.follows(head):
            log.restart(record.before)
        log.append(record)
        if len(log) > self._records_per_master_max:
            log.forget(max(1, len(log) // _EVICT_SHARE))
        self._memory_bytes += log.memory_bytes - before
        return True

    def advance(self, log: MasterLog, head: Position) -> bool:
        """The stream stands at `head`, and what led there was not seen; False when the log knows as much or more."""
        if head <= log.head:
            return False
        self._memory_bytes -= log.memory_bytes
        log.restart(head)
        return True

    def trim(self) -> None:
        """Lets go of the oldest records of the largest logs until the memory bound holds again."""
        while self._memory_bytes > self._memory_bytes_max:
            largest = max(self._logs.values(), key=lambda log: log.memory_bytes)
            before = largest.memory_bytes
            largest.forget(max(1, len(largest) // _EVICT_SHARE))
            self._memory_bytes += largest.memory_bytes - before

    def discard(self, is_idle: Callable[[MasterLog], bool]) -> int:
        """Forgets the logs that `is_idle` allows; returns how many. What they held is still behind the ring."""
        gone = [log.master_id for log in self._logs.values() if is_idle(log)]
        for master_id in gone:
            self._memory_bytes -= self._logs.pop(master_id).memory_bytes
        return len(gone)
