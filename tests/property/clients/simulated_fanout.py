"""One master's history as the contract says that fan-out tells it: resume, pauses, gaps, epochs, snapshots, states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ecp_client.books import Book
from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.endings import Offer, PositionsUnavailable
from execution.common.v1 import position_pb2, snapshot_pb2
from execution.common.v1 import signal_pb2 as common_pb
from execution.fanout.v1 import fanout_service_pb2 as pb

MASTER = 1
UNKNOWN = pb.SUBSCRIPTION_STATE_UNSPECIFIED
SYNCED = pb.SUBSCRIPTION_STATE_SYNCED
DEGRADED_GAP = pb.SUBSCRIPTION_STATE_DEGRADED_GAP
RESYNCING = pb.SUBSCRIPTION_STATE_RESYNCING
OPENS = frozenset(
    (common_pb.SIGNAL_KIND_OPEN, common_pb.SIGNAL_KIND_PENDING_PLACE, common_pb.SIGNAL_KIND_PENDING_FILL)
)


class OutOfRangeError(Exception):
    def __init__(self, unavailable: PositionsUnavailable) -> None:
        super().__init__("out of range")
        self.unavailable = unavailable


@dataclass
class Record:
    """Everything up to `position`: a signal, or a gap that ends there."""

    position: Position
    previous: Position
    signal: common_pb.Signal | None = None
    reason: int = 0


@dataclass
class SimulatedFanout:
    """`truth` is the master's account now; `snapshot` its stored picture.

    `recorded` has the turns that the ledger knows of, of this stream and those before; what an older process told last
    may be missing.
    """

    records: list[Record] = field(default_factory=list)
    truth: Book = field(default_factory=Book)
    snapshot: snapshot_pb2.Snapshot | None = None
    stored: list[snapshot_pb2.Snapshot] = field(default_factory=list)
    """All there ever were, newest first."""
    lost: list[Record] = field(default_factory=list)
    """Signals that the log came back without."""
    is_paused: bool = False
    trimmed_through: Position = BEGINNING
    recorded: list[int] = field(default_factory=lambda: [UNKNOWN])
    stands_after: int = 0
    """So many responses of a stream that resumes come before the ledger has said how the subscription stood."""
    _recorded_before: int = 1
    _sync: int = UNKNOWN
    _target: Position | None = None
    """In step as soon as everything up to here was told."""
    _is_untold: bool = False

    @property
    def head(self) -> Position:
        return self.records[-1].position if self.records else Position(1, 0)

    # What the master and the log do

    def add_signal(self, signal: common_pb.Signal) -> Position:
        head = self.head
        position = Position(head.epoch, head.sequence + 1)
        self.truth.apply(signal, position.sequence)
        self.records.append(Record(position, head, signal))
        return position

    def add_hidden(self, signals: list[common_pb.Signal]) -> None:
        """Signals that the front door refused: the master's account has them, the stream has a hole."""
        head = self.head
        for signal in signals:
            self.truth.apply(signal)
        position = Position(head.epoch, head.sequence + len(signals))
        self.records.append(Record(position, head, reason=position_pb2.GAP_REASON_REJECTED))

    def begin_epoch(self, lost: int) -> None:
        head = self.head
        position = Position(head.epoch + 1, head.sequence + lost)
        self.records.append(Record(position, head, reason=position_pb2.GAP_REASON_MASTER_LOST))

    def lose_log(self, keep: int) -> None:
        """The log comes back with its first records only, and perhaps an older snapshot; all had been acknowledged."""
        head = self.head
        kept = self.records[:keep]
        self.lost += [one for one in self.records[keep:] if one.signal is not None]
        before = kept[-1].position if kept else Position(1, 0)
        start = Position(head.epoch + 1, head.sequence)
        self.records = [*kept, Record(start, before, reason=position_pb2.GAP_REASON_LOG_LOST)]
        self.trimmed_through = min(self.trimmed_through, before)
        if self.snapshot is not None and Position.from_pb(self.snapshot.as_of) > before:
            self.snapshot = next((one for one in self.stored if Position.from_pb(one.as_of) <= before), None)

    def take_snapshot(self) -> None:
        self.snapshot = self.truth.to_snapshot(MASTER, self.head.sequence, 1, epoch=self.head.epoch)
        self.stored.insert(0, self.snapshot)

    def trim(self, keep: int) -> None:
        if len(self.records) > keep:
            self.trimmed_through = self.records[-keep - 1].position

    # What a stream tells

    def open(self, start: pb.MasterStart) -> Iterator[pb.SubscribeResponse]:
        """The stream from `start` on, one response for each record; it ends at the head and may be read on later.

        Raises:
            OutOfRangeError: the position is gone.
        """
        kind = start.WhichOneof("start")
        self._sync, self._target, self._is_untold = UNKNOWN, None, False
        self._recorded_before = len(self.recorded)
        if kind == "after":
            held = Position.from_pb(start.after)
            if held < self.trimmed_through:
                stored = Position.from_pb(self.snapshot.as_of) if self.snapshot is not None else None
                if stored is not None and stored < self.trimmed_through:
                    stored = None
                offer = Offer(self.trimmed_through, self.head, stored)
                raise OutOfRangeError(PositionsUnavailable({MASTER: offer}))
            return self._with_standing(self._from(held))
        if kind == "from_now":
            self._target = self.head
            return self._from(self.head, said=True)
        return self.full_sync()

    def full_sync(self) -> Iterator[pb.SubscribeResponse]:
        """The stored snapshot, then everything after it; nothing when there is none."""
        self._target = None
        self._turn(RESYNCING)
        yield from self._state_if_untold()
        snapshot = self.snapshot
        if snapshot is None or Position.from_pb(snapshot.as_of) < self.trimmed_through:
            return
        self._target = max(self.head, Position.from_pb(snapshot.as_of))
        yield pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=snapshot))
        yield from self._from(Position.from_pb(snapshot.as_of))

    def _from(self, held: Position, *, said: bool = False) -> Iterator[pb.SubscribeResponse]:
        if said:
            yield self._progress(held)
        while True:
            record = next((one for one in self.records if one.position > held), None)
            if record is None:
                response = self._progress(max(held, Position(1, 0)))
            else:
                response = self._tell(record, held)
                held = record.position
            # What is told is recorded, whether or not it still reaches the reader.
            self._note(response, max(held, Position(1, 0)))
            yield response
            yield from self._state_if_untold()

    # How the subscription stands

    @property
    def is_settled(self) -> bool:
        """Whether this stream has come to know how the subscription stands, and has told it."""
        return self._sync != UNKNOWN and self._target is None and not self._is_untold

    def lose_last_records(self, count: int) -> None:
        """The process is killed before the last turns of its stream are in the ledger."""
        del self.recorded[max(self._recorded_before, len(self.recorded) - count) :]

    def _with_standing(self, told: Iterator[pb.SubscribeResponse]) -> Iterator[pb.SubscribeResponse]:
        """What the ledger knows of the streams before comes when it comes."""
        count = 0
        while count < self.stands_after:
            yield next(told)
            count += 1
        if self._sync == UNKNOWN and self._target is None:
            self._stand()
            yield from self._state_if_untold()
        yield from told

    def _stand(self) -> None:
        if self.recorded[-1] == SYNCED:
            self._sync = SYNCED
        elif self.recorded[-1] == DEGRADED_GAP:
            self._sync = DEGRADED_GAP
            self._is_untold = not self.is_paused
        else:
            self._target = self.head

    def _note(self, response: pb.SubscribeResponse, held: Position) -> None:
        """What this message makes of the subscription: each gap but a pause's is one, empty or not."""
        if response.HasField("gap") and response.gap.reason != position_pb2.GAP_REASON_WITHHELD:
            self._target = None
            self._turn(DEGRADED_GAP)
        elif self._target is not None and held >= self._target:
            self._target = None
            self._turn(SYNCED)

    def _turn(self, sync: int) -> None:
        if sync != self._sync:
            # A pause counts before it: what it is then is told when the pause ends.
            self._is_untold = not self.is_paused
            self.recorded.append(sync)
        self._sync = sync

    def _state_if_untold(self) -> Iterator[pb.SubscribeResponse]:
        if self._is_untold:
            yield self.state()

    def _tell(self, record: Record, held: Position) -> pb.SubscribeResponse:
        if record.signal is None:
            return self._gap(record, held, record.reason)
        if self.is_paused and record.signal.kind in OPENS:
            return self._gap(record, held, position_pb2.GAP_REASON_WITHHELD)
        response = pb.SubscribeResponse()
        response.signals.signals.add(
            master_id=MASTER,
            epoch=record.position.epoch,
            sequence=record.position.sequence,
            previous_epoch=record.previous.epoch,
            previous_sequence=record.previous.sequence,
            signal=record.signal,
        )
        return response

    def _gap(self, record: Record, held: Position, reason: int) -> pb.SubscribeResponse:
        first = Position(held.epoch or 1, held.sequence + 1)
        last = Position(first.epoch, record.position.sequence)
        if first.sequence > last.sequence:
            # An epoch that begins where the reader is.
            first = last = record.position
        gap = pb.Gap(
            master_id=MASTER,
            to=last.to_pb(),
            reason=reason,
            resume_after=record.position.to_pb(),
        )
        getattr(gap, "from").CopyFrom(first.to_pb())
        return pb.SubscribeResponse(gap=gap)

    def _progress(self, position: Position) -> pb.SubscribeResponse:
        response = pb.SubscribeResponse()
        response.progress.positions.add(master_id=MASTER, position=position.to_pb())
        response.progress.server_time_us = 1
        return response

    def state(self) -> pb.SubscribeResponse:
        self._is_untold = False
        state = pb.SUBSCRIPTION_STATE_PAUSED_CLOSE_ONLY if self.is_paused else self._sync or SYNCED
        return pb.SubscribeResponse(state_change=pb.StateChange(master_id=MASTER, state=state))
