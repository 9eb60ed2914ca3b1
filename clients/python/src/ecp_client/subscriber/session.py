"""A subscriber's side of the stream as a state machine: positions, duplicates, gaps, full syncs; no I/O, no clock.

It decides what is new and what is missing. What a signal means for the account is not its affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.endings import PositionsUnavailable
from ecp_client.subscriber.events import Degraded, GapSeen, ServerDraining, StateChanged, SyncState
from ecp_client.subscriber.track import Start, Track
from execution.common.v1 import position_pb2, snapshot_pb2
from execution.common.v1.signal_pb2 import SequencedSignal
from execution.fanout.v1 import fanout_service_pb2 as pb

UNEXPLAINED = "UNEXPLAINED"
TOLD = "TOLD"
# So many streams may end before the first snapshot comes; then the stream begins without one.
SNAPSHOTS_MISSED_MAX = 3
_WITHHELD = position_pb2.GAP_REASON_WITHHELD

_STATES: dict[int, SyncState] = {
    pb.SUBSCRIPTION_STATE_SYNCED: SyncState.SYNCED,
    pb.SUBSCRIPTION_STATE_DEGRADED_GAP: SyncState.DEGRADED,
    pb.SUBSCRIPTION_STATE_RESYNCING: SyncState.RESYNCING,
    pb.SUBSCRIPTION_STATE_PAUSED_CLOSE_ONLY: SyncState.PAUSED_CLOSE_ONLY,
    pb.SUBSCRIPTION_STATE_PAUSED_ALL: SyncState.PAUSED_ALL,
    pb.SUBSCRIPTION_STATE_CANCELLED: SyncState.CANCELLED,
}
_PAUSES = (SyncState.PAUSED_CLOSE_ONLY, SyncState.PAUSED_ALL)


@dataclass(slots=True)
class Delivery:
    """What one Signals message brought, in order for each master."""

    fresh: list[SequencedSignal] = field(default_factory=list)
    replayed: list[SequencedSignal] = field(default_factory=list)
    """Delivered before: they bring the mirror up to date and are not to be acted on again."""
    gaps: list[GapSeen] = field(default_factory=list)
    """Jumps without a word; the stream must be opened anew."""


@dataclass(frozen=True, slots=True)
class SnapshotReceived:
    """A full sync begins: everything after the snapshot follows. Up to `previous`, signals were delivered before."""

    master_id: int
    snapshot: snapshot_pb2.Snapshot
    previous: Position


@dataclass(frozen=True, slots=True)
class Moved:
    """The position moved over what the stream had nothing to say about."""

    master_id: int
    previous: Position
    position: Position


@dataclass(frozen=True, slots=True)
class WithheldAgain:
    """A pause withheld, behind a snapshot, signals that had been delivered before: nobody will replay those."""

    master_id: int
    first: Position
    last: Position


Step = GapSeen | Degraded | SnapshotReceived | Moved | WithheldAgain | StateChanged | ServerDraining


class SubscriberSession:
    """All masters of one subscriber, over any number of streams one after the other.

    For each stream: `request`, then each response to `take_signals` or `take`, then `stream_ended`. Whenever
    `wants_new_stream` is set, end the stream and open the next one.
    """

    def __init__(self, tracks: Iterable[Track], client: str = "", default_start: Start = Start.NOW) -> None:
        """With no tracks at all, the server chooses: all masters that the user follows, each from now."""
        self.tracks: dict[int, Track] = {track.master_id: track for track in tracks}
        self.duplicates = 0
        self.jumps = 0
        self.wants_new_stream = False
        self.defers_full_syncs = False
        """While set, what misses signals is followed on, degraded: `ask_for_full_sync` asks when the time has come."""
        self._client = client
        self._follows_all = not self.tracks
        self._default_start = default_start
        self._acknowledged: dict[int, Position] = {}

    # Opening a stream

    def request(self) -> pb.SubscribeRequest:
        """The request of the next stream: each master from where it stands."""
        self.wants_new_stream = False
        request = pb.SubscribeRequest(client=self._client)
        for track in self.tracks.values():
            if not track.is_cancelled:
                self._ask_for(track, request.masters.add(master_id=track.master_id))
        return request

    def _ask_for(self, track: Track, start: pb.MasterStart) -> None:
        track.awaits_snapshot = track.wants_snapshot or (track.held is None and track.start is Start.SNAPSHOT)
        track.wants_snapshot = track.stalled = False
        track.pause_told = track.resyncing = False
        after = track.held
        if track.awaits_snapshot:
            start.from_snapshot.SetInParent()
        elif after is not None or track.start is Start.BEGINNING:
            after = after or BEGINNING
            start.after.epoch, start.after.sequence = after
            start.after.SetInParent()
            if track.held is None:
                track.held = after
        else:
            start.from_now.SetInParent()

    # Receiving

    def take_signals(self, signals: pb.Signals) -> Delivery:
        """Takes the signals of one message; what was received before is passed over and counted."""
        delivery = Delivery()
        fresh = delivery.fresh
        tracks = self.tracks
        track: Track | None = None
        held = processed = BEGINNING
        for sequenced in signals.signals:
            master_id = sequenced.master_id
            if track is None or track.master_id != master_id:
                if track is not None:
                    track.held = held
                track = self._track_of(master_id)
                if track is None:
                    continue
                held, processed = self._held_before(track, sequenced), track.processed
            position = Position(sequenced.epoch, sequenced.sequence)
            if position <= held or track.wants_snapshot or track.stalled:
                self.duplicates += position <= held
                continue
            # In the usual case the sequences follow and nothing else has to be looked at.
            if position[1] != held[1] + 1 or position[0] != held[0]:
                previous = Position(sequenced.previous_epoch, sequenced.previous_sequence)
                if previous != held and not (held == BEGINNING and previous.sequence == 0):
                    if previous < held:
                        # It says that what is held was never there.
                        previous = Position(position[0], max(0, position[1] - 1))
                    delivery.gaps.append(self._jump(track, held, previous))
                    continue
            held = position
            if position > processed:
                fresh.append(sequenced)
            else:
                delivery.replayed.append(sequenced)
        if track is not None:
            track.held = held
        for one in tracks.values():
            if one.held is not None and one.held > one.processed:
                one.processed = one.held
        return delivery

    def _held_before(self, track: Track, sequenced: SequencedSignal) -> Position:
        self._see_pause(track)
        if track.held is None:
            # From now: the first signal says behind what.
            track.held = Position(sequenced.previous_epoch, sequenced.previous_sequence)
            track.processed = max(track.processed, track.held)
        return track.held

    def _see_pause(self, track: Track) -> bool:
        """Once a pause is over, the mirror lacks what it withheld: asks for a full sync. Whether it does."""
        if not track.pause_told:
            track.pause = None
        is_over = track.withheld and track.pause is None
        if is_over and not track.awaits_snapshot and not self.defers_full_syncs:
            track.wants_snapshot = self.wants_new_stream = True
        return track.wants_snapshot

    def _jump(self, track: Track, held: Position, previous: Position) -> GapSeen:
        """Signals are missing and no Gap said so: ask again from where we stand; the second time, for a full sync."""
        self.jumps += 1
        if track.jumped_at == held:
            self._degrade(track, previous)
        track.jumped_at = held
        track.stalled = self.wants_new_stream = True
        first = Position(held.epoch, held.sequence + 1)
        return GapSeen(track.master_id, first, previous, UNEXPLAINED, held)

    def _track_of(self, master_id: int) -> Track | None:
        """The master's track; None where the master was not asked for: what is said about it is passed over."""
        track = self.tracks.get(master_id)
        if track is None and self._follows_all:
            track = self.tracks[master_id] = Track(master_id, self._default_start)
        if track is not None:
            track.heard_of = True
        return track

    def take(self, response: pb.SubscribeResponse) -> list[Step]:
        """Takes a response that is not Signals."""
        kind = response.WhichOneof("event")
        if kind == "progress":
            return self._take_progress(response.progress)
        if kind == "gap":
            return self._take_gap(response.gap)
        if kind == "snapshot":
            return self._take_snapshot(response.snapshot.snapshot)
        if kind == "state_change":
            return self._take_state(response.state_change)
        if kind == "drain":
            wait = response.drain.reconnect_after
            return [ServerDraining(wait.seconds * 1_000 + wait.nanos // 1_000_000)]
        return []

    def _take_progress(self, progress: pb.Progress) -> list[Step]:
        steps: list[Step] = []
        for entry in progress.positions:
            track = self._track_of(entry.master_id)
            if track is None or track.awaits_snapshot or track.wants_snapshot or track.stalled:
                continue
            before = track.state
            asks = self._see_pause(track)
            if track.state is not before:
                steps.append(StateChanged(track.master_id, track.state, "the pause is over"))
            if asks:
                continue
            position = Position.from_pb(entry.position)
            previous = track.held
            if previous is None or position > previous:
                track.held = position
                track.processed = max(track.processed, position)
                steps.append(Moved(track.master_id, BEGINNING if previous is None else previous, position))
        return steps

    def _take_gap(self, gap: pb.Gap) -> list[Step]:
        track = self._track_of(gap.master_id)
        if track is None:
            return []
        first: Position = Position.from_pb(getattr(gap, "from"))
        last, resume_after = Position.from_pb(gap.to), Position.from_pb(gap.resume_after)
        if track.wants_snapshot or track.stalled or (track.held is not None and resume_after <= track.held):
            return []
        track.held = resume_after
        steps: list[Step] = []
        if gap.reason == _WITHHELD:
            track.withheld = True
            if first <= track.processed:
                steps.append(WithheldAgain(track.master_id, first, min(last, track.processed)))
                first = Position(track.processed.epoch, track.processed.sequence + 1)
        named = position_pb2.GapReason.DESCRIPTOR.values_by_number.get(gap.reason)
        reason = "UNSPECIFIED" if named is None else named.name.removeprefix("GAP_REASON_")
        if resume_after <= track.processed:
            # Told before, or in a snapshot before. What an older snapshot and its replay bring lacks it again.
            is_known = gap.reason == _WITHHELD or resume_after <= (track.degraded_at or BEGINNING)
            return steps if is_known else [self._degrade(track, resume_after, reason)]
        first, last = track.unseen(first, last, resume_after)
        track.processed = resume_after
        seen = GapSeen(track.master_id, first, last, reason, resume_after, gap.note)
        if gap.reason == _WITHHELD:
            return [*steps, seen]
        return [seen, self._degrade(track, resume_after, reason)]

    def _degrade(self, track: Track, through: Position, reason: str = UNEXPLAINED) -> Degraded:
        track.degraded_at = max(track.degraded_at or BEGINNING, through)
        if not self.defers_full_syncs:
            track.wants_snapshot = self.wants_new_stream = True
        return Degraded(track.master_id, reason)

    def _take_snapshot(self, snapshot: snapshot_pb2.Snapshot) -> list[Step]:
        track = self._track_of(snapshot.master_id)
        if track is None:
            return []
        as_of = Position.from_pb(snapshot.as_of)
        before = track.state
        track.awaits_snapshot = track.resyncing = False
        track.jumped_at = None
        track.snapshots_missed = 0
        track.held = as_of
        previous, track.processed = track.processed, max(track.processed, as_of)
        track.withheld = False
        if track.degraded_at is not None and as_of >= track.degraded_at:
            track.degraded_at = None
        steps: list[Step] = [SnapshotReceived(track.master_id, snapshot, previous)]
        if track.state is not before:
            steps.append(StateChanged(track.master_id, track.state, "full sync"))
        return steps

    def _take_state(self, change: pb.StateChange) -> list[Step]:
        track, told = self._track_of(change.master_id), _STATES.get(change.state)
        if track is None or told is None:
            return []
        before = track.state
        if told is SyncState.CANCELLED:
            track.is_cancelled = True
        elif told in _PAUSES:
            track.pause = told
            track.pause_told = True
        else:
            track.pause = None
            track.resyncing = told is SyncState.RESYNCING
            self._see_pause(track)
        steps: list[Step] = []
        if told is SyncState.DEGRADED and self._is_news(track):
            # Another stream may have missed them, or the end of our full sync was not recorded. Nothing says where they
            # are, and what follows a snapshot is told in full: any snapshot from now on heals it.
            steps.append(self._degrade(track, BEGINNING, TOLD))
        if track.state is not before:
            steps.append(StateChanged(track.master_id, track.state, change.reason))
        return steps

    @staticmethod
    def _is_news(track: Track) -> bool:
        """Whether a server that says that something is missing knows more than is known here, or asked for already."""
        asked = track.awaits_snapshot or track.wants_snapshot or track.stalled
        return track.held is not None and not (track.degraded or asked or track.is_cancelled)

    # After a stream

    def stream_ended(self, unavailable: PositionsUnavailable | None = None) -> list[Step]:
        """The stream is over. A full sync that did not begin is not asked for again until `ask_for_full_sync`."""
        steps: list[Step] = []
        for track in self.tracks.values():
            if track.awaits_snapshot:
                track.awaits_snapshot = False
                track.snapshots_missed += 1
                if track.held is not None:
                    track.degraded_at = track.degraded_at or track.held
                elif track.snapshots_missed >= SNAPSHOTS_MISSED_MAX:
                    # This master sends none. Nothing of it is held here, so nothing can be missing from now on.
                    track.start = Start.NOW
        if unavailable is not None:
            for track in self.tracks.values():
                steps.extend(self._cannot_resume(track, unavailable))
        return steps

    def _cannot_resume(self, track: Track, unavailable: PositionsUnavailable) -> list[Step]:
        """The server no longer has what follows our position: full sync, or, without a snapshot, from its oldest on."""
        if unavailable.masters and track.master_id not in unavailable.masters:
            return []
        held = track.held or BEGINNING
        offer = unavailable.masters.get(track.master_id)
        if offer is None or offer.snapshot is not None:
            track.wants_snapshot = True
            track.degraded_at = track.degraded_at or held
            return [Degraded(track.master_id, "TRIMMED")]
        oldest = offer.oldest
        first, last = track.unseen(Position(held.epoch, held.sequence + 1), oldest, oldest)
        track.held = track.degraded_at = oldest
        degraded = Degraded(track.master_id, "TRIMMED")
        if oldest <= track.processed:
            # What is gone came before.
            return [degraded]
        track.processed = oldest
        return [GapSeen(track.master_id, first, last, "TRIMMED", oldest), degraded]

    @property
    def misses_something(self) -> bool:
        """Whether some master needs a full sync."""
        return any(self._misses_something(track) for track in self.tracks.values())

    def ask_for_full_sync(self) -> bool:
        """Asks for a full sync of every master that misses something; whether there is one."""
        for track in self.tracks.values():
            if self._misses_something(track) and not track.awaits_snapshot:
                track.wants_snapshot = self.wants_new_stream = True
        return self.wants_new_stream

    def _misses_something(self, track: Track) -> bool:
        over = track.withheld and track.pause is None
        return (track.degraded or over) and not track.is_cancelled

    # Acknowledging

    def unacknowledged(self) -> dict[int, Position]:
        """Positions beyond what the server was told, by master."""
        return {
            master_id: track.held
            for master_id, track in list(self.tracks.items())
            if track.held is not None
            and not track.is_cancelled
            and track.held != self._acknowledged.get(master_id, BEGINNING)
        }

    def acknowledged(self, positions: Mapping[int, Position]) -> None:
        """The server took note of these positions."""
        self._acknowledged.update(positions)
