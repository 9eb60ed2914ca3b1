"""What each follower should have seen of a master, against what its journal says it saw: pure, and the judge of a
schedule.

A sequence is given once and means one signal for ever, also across epochs. So, whatever happened: a journal names every
sequence from its beginning to the head just once, as a signal, as missing, or as covered by a full sync; it names them
in order; and it calls missing only what the log truly lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.journal_format import Entry, EntryType
from execution.common.v1 import position_pb2


@dataclass(slots=True)
class Truth:
    """One master: what it has put in, and what the log came back without after it was acknowledged."""

    master_id: int
    head: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    """(first, last) sequence of each loss."""

    def was_lost(self, sequence: int) -> bool:
        """Whether the log ever came back without it."""
        return any(first <= sequence <= last for first, last in self.lost)


@dataclass(slots=True)
class Seen:
    """What a journal says of one master, and where it breaks a rule."""

    name: str
    truth: Truth
    begins_at: Position | None = None
    held: Position = BEGINNING
    signals: int = 0
    missing: int = 0
    withheld: int = 0
    synced_over: int = 0
    full_syncs: int = 0
    problems: list[str] = field(default_factory=list)
    _needs_full_sync: bool = True
    """At its beginning, after a gap, or when somebody asked."""
    _gap_at: Position = BEGINNING
    """Where the last gap ended: an older snapshot does not heal it."""

    def take(self, entry: Entry, *, may_be_synced: bool, may_be_withheld: bool) -> None:
        """The next entry of the journal."""
        match entry.entry_type:
            case EntryType.SIGNAL:
                self._signal(entry)
            case EntryType.GAP:
                self._gap(entry, may_be_withheld)
            case EntryType.PROGRESS:
                self._progress(entry)
            case EntryType.SNAPSHOT:
                self._snapshot(entry, may_be_synced)
            case _:
                pass

    def ends_at(self, head: int) -> None:
        """The journal's end: everything up to the head must be in it."""
        if self.begins_at is None:
            self._problem("nothing was ever received")
        elif self.held.sequence != head:
            self._problem(f"silently behind: it ends at {self.held.sequence}, the master at {head}")

    def _signal(self, entry: Entry) -> None:
        self._begin(entry.previous)
        sequence = entry.position.sequence
        if entry.previous != self.held:
            self._problem(
                f"{_text(entry.position)} follows {_text(entry.previous)}, held is {_text(self.held)}"
            )
        if sequence <= self.held.sequence and entry.position.epoch == self.held.epoch:
            self._problem(f"{_text(entry.position)} came again behind {_text(self.held)}")
        elif sequence <= self.held.sequence:
            self._problem(f"sequence {sequence} came again in epoch {entry.position.epoch}")
        elif sequence != self.held.sequence + 1:
            self._problem(f"{_text(entry.position)} leaves out what follows {_text(self.held)}")
        expected = sequence if sequence % 2 else sequence - 1
        if entry.ticket != expected:
            self._problem(f"{_text(entry.position)} is about position {entry.ticket} instead of {expected}")
        self.signals += 1
        self.held = entry.position

    def _gap(self, entry: Entry, may_be_withheld: bool) -> None:
        self._begin(Position(entry.previous.epoch, entry.previous.sequence))
        reason = position_pb2.GapReason.Name(position_pb2.GapReason.ValueType(entry.kind)).removeprefix(
            "GAP_REASON_"
        )
        first, last = self.held.sequence + 1, entry.position.sequence
        if entry.position <= self.held:
            self._problem(f"a gap {reason} up to {_text(entry.position)} behind {_text(self.held)}")
            return
        if entry.previous.sequence + 1 != first and first <= last:
            self._problem(f"a gap {reason} begins at {entry.previous.sequence + 1} instead of {first}")
        named = range(first, last + 1)
        if entry.kind == position_pb2.GAP_REASON_WITHHELD and may_be_withheld:
            # Openings have odd sequences; what closes is never withheld.
            wrong = [sequence for sequence in named if sequence % 2 == 0]
            self.withheld += len(named)
        elif entry.kind == position_pb2.GAP_REASON_LOG_LOST:
            wrong = [sequence for sequence in named if not self.truth.was_lost(sequence)]
            self.missing += len(named)
        else:
            wrong = []
            self._problem(f"a gap {reason} over {first} to {last}: nothing of that kind happened")
        if wrong:
            self._problem(
                f"a gap {reason} over {first} to {last} names {len(wrong)} that came or must come, {wrong[0]} first"
            )
        self._needs_full_sync = True
        self.held = self._gap_at = entry.position

    def _progress(self, entry: Entry) -> None:
        is_first = self.begins_at is None
        self._begin(entry.position if entry.previous == BEGINNING else entry.previous)
        if entry.position.sequence > self.held.sequence and not is_first:
            self._problem(f"passed over {self.held.sequence + 1} to {entry.position.sequence} in silence")
        self.held = max(self.held, entry.position)

    def _snapshot(self, entry: Entry, may_be_synced: bool) -> None:
        first = self.begins_at is None
        self._begin(entry.position)
        self.full_syncs += 1
        jumped = entry.position.sequence - self.held.sequence
        if entry.position > self.held:
            if not (first or self._needs_full_sync or may_be_synced):
                self._problem(
                    f"a full sync from {_text(self.held)} to {_text(entry.position)} without a cause"
                )
            self.synced_over += max(0, jumped)
            self.held = entry.position
        if entry.position >= self._gap_at:
            self._needs_full_sync = False

    def _begin(self, position: Position) -> None:
        if self.begins_at is None:
            self.begins_at = self.held = position

    def _problem(self, what: str) -> None:
        self.problems.append(f"{self.name}, master {self.truth.master_id}: {what}")


def judge(
    name: str,
    entries: Iterable[Entry],
    truths: dict[int, Truth],
    *,
    place: str,
    resynced: set[int],
    was_paused: bool = False,
) -> list[Seen]:
    """What one follower's journal says of each master.

    It began at `place` ("beginning", "snapshot" or "now"). Of the masters in `resynced`, full syncs were asked for.
    """
    seen = {master_id: Seen(name, truth) for master_id, truth in truths.items()}
    for entry in entries:
        one = seen.get(entry.master_id)
        if one is not None:
            one.take(
                entry, may_be_synced=was_paused or entry.master_id in resynced, may_be_withheld=was_paused
            )
    for one in seen.values():
        one.ends_at(one.truth.head)
        if place == "beginning" and one.begins_at is not None and one.begins_at.sequence != 0:
            one.problems.append(f"{name}: it began at {_text(one.begins_at)} and not at the beginning")
    return list(seen.values())


def _text(position: Position) -> str:
    return f"{position.epoch}:{position.sequence}"
