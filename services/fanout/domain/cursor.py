"""One master within one stream: where it stands and what comes next; it writes nothing."""

from __future__ import annotations

from enum import Enum
from typing import Final

from execution.common.v1 import position_pb2, snapshot_pb2
from services.fanout.domain.codec import Message, gap_message, snapshot_message
from services.fanout.domain.filter import PASSES_ALL, PASSES_CLOSE_ONLY, Pause, StopChange
from services.fanout.domain.position import Position, held
from services.fanout.domain.ring import (
    EpochRecord,
    GapRecord,
    MasterLog,
    Record,
    Segment,
    SignalRecord,
    Slice,
)

Piece = Slice | Message

_SCAN_RECORDS_MAX: Final = 1_000
"""A paused cursor looks at so many records at most before others have their turn."""


class Place(Enum):
    """Where a cursor reads."""

    LIVE = "live"
    """In the ring."""
    BEHIND = "behind"
    """Before the ring's oldest record: it waits for a page from further back."""
    PAGE = "page"
    """In such a page."""
    SNAPSHOT = "snapshot"
    """Nowhere yet: it waits for a snapshot to begin with."""


class Sync(Enum):
    """Whether a subscriber is in step with a master, as far as this process knows."""

    UNKNOWN = "unknown"
    SYNCED = "synced"
    DEGRADED_GAP = "degraded_gap"
    RESYNCING = "resyncing"


class Cursor:
    """Reads one master's log for one stream. Everything up to `position` was told."""

    __slots__ = (
        "_ahead",
        "_segment",
        "_stops_held",
        "_sync_is_hearsay",
        "_sync_reason_at_target",
        "_withheld_from",
        "_withheld_to",
        "acknowledged",
        "full_sync",
        "full_sync_told",
        "log",
        "master_id",
        "offset",
        "pause",
        "place",
        "position",
        "subscription_id",
        "sync",
        "sync_changed",
        "sync_reason",
        "sync_target",
        "version",
        "was_live",
    )

    def __init__(
        self, log: MasterLog, *, subscription_id: str = "", pause: Pause = Pause.NONE, version: int = 0
    ) -> None:
        """A cursor that waits for a snapshot; `start` lets it begin at a position instead."""
        self.log = log
        self.master_id = log.master_id
        self.subscription_id = subscription_id
        self.place = Place.SNAPSHOT
        self.position = Position(0, 0)
        self.acknowledged = Position(0, 0)
        self.full_sync = 0
        """Number of the last full sync that was asked for, as far as this stream knows."""
        self.full_sync_told = 0
        """The last of them whose snapshot was told."""
        self.pause = pause
        self.version = version
        self.sync = Sync.UNKNOWN
        self.sync_reason = ""
        self.sync_changed = False
        self.sync_target: Position | None = None
        self.was_live = False
        self._segment: Segment = log
        self.offset = 0
        """Where it reads next, in the log or in a page."""
        self._ahead = False
        self._withheld_from: Position | None = None
        self._withheld_to = Position(0, 0)
        self._stops_held: dict[int, int] = {}
        self._sync_is_hearsay = False
        self._sync_reason_at_target = "the full sync is complete"

    @property
    def scanned(self) -> Position:
        """Everything up to here was told or is about to be told as withheld."""
        return self.position if self._withheld_from is None else self._withheld_to

    @property
    def lag_signals(self) -> int:
        """About how many positions of the log were not looked at yet."""
        if self.place is Place.SNAPSHOT:
            return 0
        return max(0, self.log.head.sequence - self.scanned.sequence)

    @property
    def has_next(self) -> bool:
        """Whether `take` may have something to give, or must be called to find out where to read on."""
        if self.place is Place.SNAPSHOT or self.place is Place.BEHIND:
            return False
        return self.place is Place.PAGE or self.offset < self._segment.end

    @property
    def is_plain(self) -> bool:
        """Whether `take` gives what the log brings from `offset` on just as it is."""
        return (
            self.place is Place.LIVE
            and self.pause is Pause.NONE
            and self._withheld_from is None
            and self.sync_target is None
            and not self._ahead
        )

    def start(self, position: Position) -> None:
        """Begins behind `position`, which the reader holds."""
        self.position = held(position)
        self._find()

    def resync(self, reason: str = "a full sync is under way") -> None:
        """A full sync is under way: in step again when everything up to now was told after the snapshot."""
        self.sync_target = None
        self._turn(Sync.RESYNCING, reason)

    def start_with(self, snapshot: snapshot_pb2.Snapshot) -> Message:
        """Begins with a snapshot; returns the message that tells it."""
        self.start(Position(snapshot.as_of.epoch, snapshot.as_of.sequence))
        self.sync_target = max(self.log.head, self.position)
        self._sync_reason_at_target = "the full sync is complete"
        self.full_sync_told = self.full_sync
        return snapshot_message(snapshot)

    def in_step_at(self, target: Position, reason: str) -> None:
        """Counts as in step as soon as everything up to `target` was told."""
        self.sync_target = target
        self._sync_reason_at_target = reason

    def was_known_as(self, sync: Sync) -> None:
        """Takes over how the subscriber stood before this stream; what happened in it meanwhile counts more.

        One who was in the middle of a full sync, or of whom nothing is known, is in step as soon as everything up to
        now was told: it holds what it resumed after, and nothing is missing behind it.
        """
        if self.sync is not Sync.UNKNOWN or self.sync_target is not None:
            return
        if sync is Sync.SYNCED:
            self.sync = Sync.SYNCED
        elif sync is Sync.DEGRADED_GAP:
            self._turn(sync, "positions were missed before and there was no full sync since")
            self._sync_is_hearsay = True
        else:
            self.in_step_at(max(self.log.head, self.position), "everything was delivered")

    def note_sync(self) -> None:
        """Sees whether the target is reached."""
        if self.sync_target is not None and self.scanned >= self.sync_target:
            self.sync_target = None
            self._turn(Sync.SYNCED, self._sync_reason_at_target)

    def feed(self, page: Segment) -> None:
        """Goes on in a page of older records; meaningful while BEHIND, and where the page covers the position."""
        if self.place is not Place.BEHIND or not page.covers(self.position):
            return
        self._segment = page
        self.offset = page.offset_after(self.position)
        self.place = Place.PAGE

    def skip_to(self, floor: Position, reason: position_pb2.GapReason.ValueType, note: str) -> Message:
        """Tells that everything up to `floor` is not to be had any more, and goes on behind it."""
        message = gap_message(
            self.master_id,
            Position(self.position.epoch, self.position.sequence + 1),
            floor,
            resume_after=floor,
            reason=reason,
            note=note,
        )
        self.position = floor
        self._missed("positions are not to be had any more")
        self._find()
        return message

    def set_pause(self, pause: Pause) -> None:
        """What is withheld from now on."""
        if pause is Pause.NONE:
            self._stops_held.clear()
        self.pause = pause

    def take(self, bytes_max: int, signals_max: int) -> Piece | None:
        """The next thing to tell, at most about `bytes_max` and `signals_max`; None when there is nothing now."""
        if not self.has_next:
            return None
        if self._withheld_from is not None and not self._is_inside():
            # Told before reading on elsewhere: what is read there may not cover it.
            return self.flush_withheld()
        if not self._is_inside() and not self._move():
            return None
        if self._ahead and not self._skip_held():
            return None
        if self.pause is not Pause.NONE or self._withheld_from is not None:
            return self._take_filtered(bytes_max, signals_max)
        piece = self._segment.slice(self.offset, bytes_max, signals_max)
        if piece is None:
            return self._take_other()
        self.offset = piece.end
        self.position = piece.last
        return piece

    def flush_withheld(self) -> Message | None:
        """The Gap for what was withheld since the last one, if anything was."""
        first = self._withheld_from
        if first is None:
            return None
        self._withheld_from = None
        self.position = self._withheld_to
        return gap_message(
            self.master_id,
            first,
            self.position,
            resume_after=self.position,
            reason=position_pb2.GAP_REASON_WITHHELD,
        )

    def _find(self) -> None:
        self._segment = self.log
        self._ahead = False
        if self.log.covers(self.position):
            self.place = Place.LIVE
            self.was_live = True
            self.offset = self.log.offset_after(self.position)
            self._ahead = self.position > self.log.head
        else:
            self.place = Place.BEHIND

    def _is_inside(self) -> bool:
        return self._segment.base <= self.offset < self._segment.end

    def _move(self) -> bool:
        """Finds out where to read on: the ring let go of the place, or the page is at its end."""
        self._find()
        return self.place is Place.LIVE and self._is_inside()

    def _skip_held(self) -> bool:
        """Passes over what the reader holds: it came with more than this process had read."""
        self.offset = max(self.offset, self.log.offset_after(self.position))
        self._ahead = self.offset >= self.log.end
        return not self._ahead

    def _take_other(self) -> Piece | None:
        record = self._segment.record(self.offset)
        self.offset += 1
        if isinstance(record, GapRecord):
            return self._tell_gap(record)
        if isinstance(record, EpochRecord):
            return self._tell_epoch(record)
        raise AssertionError("signals are taken as slices")

    def _tell_gap(self, gap: GapRecord) -> Message:
        first = gap.first_sequence
        if gap.epoch == self.position.epoch:
            first = max(first, self.position.sequence + 1)
        self.position = gap.position
        self._missed(gap.note or "the master's stream has a hole")
        return gap_message(
            self.master_id,
            Position(gap.epoch, first),
            gap.position,
            resume_after=gap.position,
            reason=gap.reason,
            note=gap.note,
        )

    def _tell_epoch(self, start: EpochRecord) -> Message:
        """What a new epoch means depends on what this reader held of the former one."""
        before, begin = self.position, start.position
        first, last, resume_after, note = begin, begin, begin, "a new epoch begins"
        if before.sequence < begin.sequence:
            first = Position(before.epoch, before.sequence + 1)
            last = Position(before.epoch, begin.sequence)
            note = "a new epoch begins; what was lost before it will not come"
        elif start.reason == position_pb2.GAP_REASON_LOG_LOST and before.sequence > begin.sequence:
            # The reader had these before the log lost them, and the master sends them again under the same sequences.
            last = resume_after = Position(begin.epoch, before.sequence)
            note = "a new epoch begins; what was received in the former one is not sent again"
        self.position = resume_after
        self._missed("a new epoch began")
        if resume_after > begin:
            self.offset = max(self.offset, self._segment.offset_after(resume_after))
            self._ahead = self._segment is self.log and resume_after > self.log.head
        return gap_message(
            self.master_id, first, last, resume_after=resume_after, reason=start.reason, note=note
        )

    def _missed(self, reason: str) -> None:
        self.sync_target = None
        if self._sync_is_hearsay:
            # It may have been outdated; this is not.
            self.sync = Sync.UNKNOWN
        self._turn(Sync.DEGRADED_GAP, reason)

    def _turn(self, sync: Sync, reason: str) -> None:
        self._sync_is_hearsay = False
        if sync is not self.sync:
            self.sync = sync
            self.sync_reason = reason
            self.sync_changed = True

    def _take_filtered(self, bytes_max: int, signals_max: int) -> Piece | None:
        taken: list[SignalRecord] = []
        budget = bytes_max
        for _ in range(_SCAN_RECORDS_MAX):
            if not self._segment.base <= self.offset < self._segment.end:
                break
            record = self._segment.record(self.offset)
            if not isinstance(record, SignalRecord):
                return self._before_other(taken)
            if self._passes(record):
                budget -= len(record.chunk)
                if self._withheld_from is not None:
                    return self.flush_withheld()
                if taken and (budget < 0 or len(taken) >= signals_max):
                    break
                self._note_sent(record)
                taken.append(record)
            elif taken:
                break
            else:
                self._withhold(record)
            self.offset += 1
        return self._taken(taken)

    def _before_other(self, taken: list[SignalRecord]) -> Piece | None:
        if taken:
            return self._taken(taken)
        return self.flush_withheld() or self._take_other()

    def _taken(self, taken: list[SignalRecord]) -> Slice | None:
        if not taken:
            return None
        piece = Slice(taken, self.offset)
        self.position = piece.last
        return piece

    def _passes(self, record: SignalRecord) -> bool:
        if self.pause is Pause.NONE:
            return True
        change = record.stop_change
        if change is not None and not change.is_opening:
            return change.tightens(self._stops_held.get(change.position_id, change.stop_before_e8))
        needed = PASSES_ALL if self.pause is Pause.ALL else PASSES_CLOSE_ONLY
        return bool(record.passes & needed)

    def _note_sent(self, record: SignalRecord) -> None:
        if record.stop_change is not None:
            self._stops_held.pop(record.stop_change.position_id, None)

    def _hold_stop(self, withheld: StopChange) -> None:
        """Remembers what the subscriber holds instead of what was withheld."""
        if len(self._stops_held) >= _SCAN_RECORDS_MAX:
            return
        if withheld.turns:
            self._stops_held[withheld.position_id] = withheld.stop_held_without()
        else:
            self._stops_held.setdefault(withheld.position_id, withheld.stop_held_without())

    def _withhold(self, record: Record) -> None:
        if self._withheld_from is None:
            self._withheld_from = record.position
        self._withheld_to = record.position
        if isinstance(record, SignalRecord) and record.stop_change is not None:
            self._hold_stop(record.stop_change)
