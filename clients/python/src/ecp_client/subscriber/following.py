"""One followed master: position track, mirror and account together, through replays and full syncs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ecp_client.account import Account, Holding, HoldingState, OrderHolding
from ecp_client.books import Book
from ecp_client.copying import (
    Action,
    Copier,
    Decision,
    Plan,
    Reason,
    Scale,
    Unconfirmed,
    reconcile,
)
from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.journal_format import DEGRADED, WITHHELD, Entry, EntryType, checkpoint_body, encode
from ecp_client.subscriber.statements import Endings, dump_statements, keep_unconfirmed
from ecp_client.subscriber.track import Track
from execution.common.v1 import signal_pb2, snapshot_pb2

_OPENS_POSITION = frozenset((signal_pb2.SIGNAL_KIND_OPEN, signal_pb2.SIGNAL_KIND_PENDING_FILL))
_SETS_VOLUME = _OPENS_POSITION | {signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE}


@dataclass(slots=True)
class Following:
    """What one subscriber knows about one master."""

    track: Track
    copier: Copier
    decided: dict[Position, Entry] = field(default_factory=dict)
    """Signals that were decided before a restart and are not in the checkpoint: they come again as replays, or else are
    taken from the journal."""
    scales: dict[Position, Scale] = field(default_factory=dict)
    """What those opened is scaled by, where that is not the multiplier of the settings."""
    told: list[Entry] = field(default_factory=list)
    """What user and broker did then: each reaches the account behind the decisions that came before it."""
    synced_over: Position | None = None
    """A snapshot was taken when signals had been delivered up to here, and the account is compared with the mirror once
    that has caught up; None when there is nothing to compare."""
    synced_as_of: Position = BEGINNING
    """The last snapshot stands for everything up to here."""
    mirror_before: Book | None = None
    """The mirror that the snapshot replaced, until the full sync is finished."""
    endings: Endings = field(default_factory=Endings)
    """What the full sync showed to have ended."""

    def __post_init__(self) -> None:
        self.told.sort(key=lambda entry: entry.position)
        self._take_told()

    @property
    def account_at(self) -> Position:
        """The account shows what was decided up to here."""
        held = self.track.held or BEGINNING
        return held if self.decided else max(held, self.track.processed)

    def take(self, sequenced: signal_pb2.SequencedSignal, server_now_us: int) -> Decision:
        """Takes a new signal."""
        if self.decided:
            self.pass_over()
        return self.copier.take(sequenced, server_now_us, degraded=self.track.degraded_at is not None)

    def replay(self, sequenced: signal_pb2.SequencedSignal) -> None:
        """Takes a signal that was decided before: the mirror follows, and the account if it has not yet."""
        position = Position(sequenced.epoch, sequenced.sequence)
        if self.mirror_before is not None:
            self.endings.take(sequenced.signal, sequenced.sequence)
        entry = self.decided.pop(position, None)
        if entry is None:
            self.copier.mirror.apply(sequenced.signal, sequenced.sequence)
        else:
            self._replay_decided(entry, sequenced)

    def _replay_decided(self, entry: Entry, sequenced: signal_pb2.SequencedSignal) -> None:
        scale = self.scales.pop(entry.position, None)
        self.copier.replay(sequenced, Action(entry.action), Reason(entry.reason), scale)
        self._take_told()

    def pass_over(self) -> None:
        """Takes from the journal what was decided before a restart and was not told again on the way to here."""
        held = self.track.held or BEGINNING
        while self.decided:
            position, entry = next(iter(self.decided.items()))
            if position > held or not entry.body:
                # Older versions kept no signals: what is about those comes with the next full sync.
                return
            del self.decided[position]
            self._replay_decided(entry, _sequenced(entry))

    def _take_told(self) -> None:
        """Lets the account know what user and broker did before the next decision that it does not show yet."""
        next_at = next(iter(self.decided), None)
        while self.told and (next_at is None or self.told[0].position < next_at):
            _note(self.copier.account, self.told.pop(0))

    def begin_full_sync(self, snapshot: snapshot_pb2.Snapshot, previous: Position) -> None:
        """Makes the snapshot the mirror. Decisions that will not be replayed are taken from the journal before."""
        while self.decided:
            position = next(iter(self.decided))
            entry = self.decided.pop(position)
            if entry.body:
                self._replay_decided(entry, _sequenced(entry))
            else:
                _patch(self.copier.account, entry, self.scales.get(position))
                self._take_told()
        self.scales.clear()
        if self.mirror_before is None:
            self.mirror_before, self.endings = self.copier.mirror, Endings()
        self.copier.mirror = Book.from_snapshot(snapshot)
        self.synced_over = previous
        self.synced_as_of = Position.from_pb(snapshot.as_of)

    @property
    def has_caught_up(self) -> bool:
        """Whether a full sync can be finished: everything that was delivered before is in the mirror."""
        held = self.track.held
        return self.synced_over is not None and held is not None and held >= self.track.processed

    def finish_full_sync(self, server_now_us: int, held: Collection[int] | None) -> Plan:
        """Brings the account in step with the mirror; `held` is what the terminal really has, if it can tell.

        While a pause withholds signals, or some are missing, it leaves alone what it cannot know to have ended, and
        opens nothing that may have been closed.
        """
        track, mirror = self.track, self.copier.mirror
        before, previous = self.mirror_before, self.synced_over or BEGINNING
        self.synced_over = self.mirror_before = None
        unconfirmed = None
        is_first_in_a_pause = previous == BEGINNING and track.pause is not None
        if track.withheld or track.degraded:
            kept = keep_unconfirmed(mirror, before or Book(), self.synced_as_of.sequence, self.endings)
            unconfirmed = Unconfirmed(*kept, opens_nothing=self.synced_as_of < previous)
        elif is_first_in_a_pause:
            # What the terminal has without a journal may have been opened behind the snapshot.
            unconfirmed = Unconfirmed()
        plan = reconcile(
            self.copier, mirror, server_now_us, master_id=track.master_id, held=held, unconfirmed=unconfirmed
        )
        if is_first_in_a_pause and plan.unconfirmed:
            track.withheld = True
        return plan

    def checkpoint(self, now_us: int, mirror_at: Position | None = None) -> bytes | None:
        """The journal entry from which a later process can go on, or None while a replay is under way.

        The mirror is as of `mirror_at` when signals behind that were received and not yet taken.
        """
        position = mirror_at or self.track.held
        if (
            position is None
            or self.decided
            or self.synced_over is not None
            or (mirror_at is None and position < self.track.processed)
        ):
            return None
        book = self.copier.mirror
        # A journal may hold more than a master may send.
        mirror = book.to_snapshot(
            self.track.master_id, position.sequence, now_us, epoch=position.epoch, entries_max=len(book)
        )
        body = checkpoint_body(
            mirror.SerializeToString(), self.copier.account.to_json(), dump_statements(book)
        )
        degraded_at = self.track.degraded_at
        kind = WITHHELD * self.track.withheld + DEGRADED * (degraded_at is not None)
        entry = Entry(
            EntryType.CHECKPOINT,
            self.track.master_id,
            position,
            degraded_at or position,
            now_us,
            kind,
            body=body,
        )
        return encode(entry)


def _sequenced(entry: Entry) -> signal_pb2.SequencedSignal:
    """The signal that a journal's entry holds."""
    return signal_pb2.SequencedSignal(
        master_id=entry.master_id,
        epoch=entry.position.epoch,
        sequence=entry.position.sequence,
        signal=signal_pb2.Signal.FromString(entry.body),
    )


def _patch(account: Account, entry: Entry, scale: Scale | None) -> None:
    """Notes what a journalled decision opened or closed; symbol, side and stops follow from the full sync."""
    too_little = entry.reason == Reason.VOLUME_MIN
    copied = entry.action != Action.SKIP and not too_little
    state = HoldingState.HELD if copied else HoldingState.REFUSED
    if entry.reason == Reason.CLOSED_BY_USER:
        state = HoldingState.CLOSED_BY_USER
    reason = 0 if copied else entry.reason
    known = account.holdings.get(entry.ticket)
    if entry.kind in _OPENS_POSITION and (known is None or known.state is HoldingState.REFUSED):
        account.holdings[entry.ticket] = Holding(
            entry.ticket, "", signal_pb2.SIDE_UNSPECIFIED, 0, 0, 0, state, reason, scale=scale
        )
    elif entry.kind in _SETS_VOLUME and too_little:
        account.refused(entry.ticket, reason)
    elif entry.kind == signal_pb2.SIGNAL_KIND_PENDING_PLACE:
        account.orders.setdefault(entry.ticket, _unknown_order(entry.ticket, state, reason, scale))
    elif entry.kind == signal_pb2.SIGNAL_KIND_CLOSE and copied:
        account.holdings.pop(entry.ticket, None)
    elif entry.kind == signal_pb2.SIGNAL_KIND_PENDING_CANCEL and copied:
        account.orders.pop(entry.ticket, None)


def _note(account: Account, entry: Entry) -> None:
    """Notes what user or broker did."""
    is_order = entry.kind == signal_pb2.SIGNAL_KIND_PENDING_PLACE
    if entry.entry_type is EntryType.CLOSED_BY_USER:
        (account.order_cancelled_by_user if is_order else account.closed_by_user)(entry.ticket)
    else:
        (account.order_refused if is_order else account.refused)(entry.ticket, entry.reason)


def _unknown_order(ticket: int, state: HoldingState, reason: int, scale: Scale | None) -> OrderHolding:
    side, order_type = signal_pb2.SIDE_UNSPECIFIED, signal_pb2.ORDER_TYPE_UNSPECIFIED
    return OrderHolding(ticket, "", side, order_type, 0, 0, 0, 0, 0, 0, state, reason, scale)


FollowingMap = Mapping[int, Following]
