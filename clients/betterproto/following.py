"""Where a subscriber stands with each master, and what a stream's messages change about that; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ecp_betterproto.execution.common.v1 import GapReason, SequencedSignal, Snapshot, StreamPosition
from ecp_betterproto.execution.fanout.v1 import (
    FromNow,
    FromSnapshot,
    Gap,
    MasterStart,
    PositionUnavailable,
    Progress,
    StateChange,
    SubscribeRequest,
    SubscriptionState,
)

Position = tuple[int, int]
"""Epoch and sequence; positions of one master compare as such pairs do."""

BEGINNING: Position = (0, 0)
_PAUSES = (SubscriptionState.PAUSED_CLOSE_ONLY, SubscriptionState.PAUSED_ALL)


@dataclass(frozen=True, slots=True)
class Hole:
    """Signals are missing and no Gap said so: the stream is to be opened anew."""

    master_id: int
    held: Position
    previous: Position
    """What the server says was sent before; everything after `held` up to here is missing."""


@dataclass(slots=True)
class Master:
    """Where one master's stream stands."""

    held: Position | None = None
    """Everything up to here was processed or is known not to come; None before the start is known."""
    misses_something: bool = False
    """A full sync is needed: the account may no longer show what the master has open."""
    is_paused: bool = False
    awaits_snapshot: bool = False
    has_no_snapshot: bool = False
    """The server has just said so: the next stream begins without one."""
    is_stalled: bool = False
    """The stream jumped without a word: nothing more of it is taken."""
    jumped_at: Position | None = None


class Following:
    """All masters of one subscriber, over any number of streams one after the other."""

    def __init__(self, masters: dict[int, Master], start: str) -> None:
        """`start` is where to begin with masters that hold no position: "beginning", "now" or "snapshot"."""
        self.masters = masters
        self.wants_new_stream = False
        self._start = start

    # Opening a stream.

    @property
    def wants_full_sync(self) -> bool:
        """Whether a full sync would help now."""
        return any(one.misses_something and not one.is_paused for one in self.masters.values())

    def request(self, client: str, *, full_sync: bool) -> SubscribeRequest:
        """The next stream's request; `full_sync` begins what misses something with a snapshot."""
        self.wants_new_stream = False
        starts = [self._start_of(master_id, one, full_sync) for master_id, one in self.masters.items()]
        return SubscribeRequest(masters=starts, client=client)

    def _start_of(self, master_id: int, master: Master, full_sync: bool) -> MasterStart:
        is_new = master.held is None
        may_sync = full_sync and master.misses_something and not master.has_no_snapshot
        master.awaits_snapshot = self._start == "snapshot" if is_new else may_sync
        master.has_no_snapshot = False
        # A pause that goes on is told again.
        master.is_stalled = master.is_paused = False
        if master.awaits_snapshot:
            return MasterStart(master_id=master_id, from_snapshot=FromSnapshot())
        if is_new and self._start == "now":
            return MasterStart(master_id=master_id, from_now=FromNow())
        if master.held is None:
            master.held = BEGINNING
        epoch, sequence = master.held
        return MasterStart(master_id=master_id, after=StreamPosition(epoch=epoch, sequence=sequence))

    # What comes.

    def fresh(self, signals: Iterable[SequencedSignal]) -> Iterator[SequencedSignal | Hole]:
        """Those to act upon, in order, each moving the position; what was held already is passed over."""
        for one in signals:
            master = self.masters.get(one.master_id)
            if master is None or master.is_stalled:
                continue
            position, previous = (one.epoch, one.sequence), (one.previous_epoch, one.previous_sequence)
            if master.held is None:
                master.held = previous
            if position <= master.held:
                continue
            if previous > master.held and not (master.held == BEGINNING and previous[1] == 0):
                yield self._jump(one.master_id, master, master.held, previous)
                continue
            master.held = position
            yield one

    def _jump(self, master_id: int, master: Master, held: Position, previous: Position) -> Hole:
        # The first time it is asked for again from where we stand; the second time, for a full sync.
        master.misses_something |= master.jumped_at == held
        master.jumped_at = held
        master.is_stalled = self.wants_new_stream = True
        return Hole(master_id, held, previous)

    def take_gap(self, gap: Gap) -> bool:
        """Moves behind the gap; False when it was known."""
        master, resume_after = self.masters.get(gap.master_id), _position(gap.resume_after)
        if master is None or master.is_stalled or (master.held is not None and resume_after <= master.held):
            return False
        master.held = resume_after
        # The start of an epoch that lost nothing is told as a gap of no length.
        master.misses_something |= not (gap.from_ == gap.to == gap.resume_after)
        return True

    def take_snapshot(self, snapshot: Snapshot) -> bool:
        """The account is to be brought in line with it, and everything after it follows; False when nobody asked."""
        before = self.masters.get(snapshot.master_id)
        if before is None:
            return False
        self.masters[snapshot.master_id] = Master(_position(snapshot.as_of), is_paused=before.is_paused)
        return True

    def take_progress(self, progress: Progress) -> bool:
        """Moves over what the stream had nothing to say about; whether any position moved."""
        has_moved = False
        for entry in progress.positions:
            master, position = self.masters.get(entry.master_id), _position(entry.position)
            if master is None or master.awaits_snapshot or master.is_stalled:
                continue
            if master.held is None or position > master.held:
                master.held = position
                has_moved = True
        return has_moved

    def take_state(self, change: StateChange) -> None:
        """Remembers pauses and what the server says is missing; forgets a master whose subscription ended."""
        master = self.masters.get(change.master_id)
        if master is None:
            return
        master.is_paused = change.state in _PAUSES
        if change.state == SubscriptionState.DEGRADED_GAP:
            # Also without a Gap here: an earlier stream may have told it. Only a full sync ends this state.
            master.misses_something = True
        if change.state == SubscriptionState.CANCELLED:
            del self.masters[change.master_id]

    def cannot_resume(self, offers: Iterable[PositionUnavailable]) -> None:
        """What we hold is too old. A full sync heals that; where there is no snapshot, go on with the oldest left."""
        offered = {offer.master_id: offer for offer in offers}
        for master_id, master in self.masters.items():
            if offered and master_id not in offered:
                continue
            master.misses_something = True
            offer = offered.get(master_id)
            if offer is not None and offer.snapshot is None:
                master.held = _position(offer.oldest)
                master.has_no_snapshot = True

    # What is kept on disk.

    def as_json(self) -> dict[str, Any]:
        """Where each master stands."""
        return {
            str(master_id): {
                "epoch": one.held[0],
                "sequence": one.held[1],
                "misses_something": one.misses_something,
            }
            for master_id, one in self.masters.items()
            if one.held is not None
        }

    @staticmethod
    def masters_of(master_ids: Iterable[int], document: dict[str, Any]) -> dict[int, Master]:
        """The masters to follow, each where the document, if it knows the master, says that it stands."""
        masters: dict[int, Master] = {}
        for master_id in master_ids:
            known = document.get(str(master_id))
            held = None if known is None else (known["epoch"], known["sequence"])
            masters[master_id] = Master(held, known is not None and known["misses_something"])
        return masters


def name_of(reason: GapReason | SubscriptionState) -> str:
    """The name, or the number of one that is newer than this program."""
    return reason.name or str(int(reason))


def shown(position: StreamPosition | None) -> str:
    """The position for people."""
    epoch, sequence = _position(position)
    return f"{epoch}/{sequence}"


def _position(position: StreamPosition | None) -> Position:
    return BEGINNING if position is None else (position.epoch, position.sequence)
