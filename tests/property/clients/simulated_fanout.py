"""One master's history as the contract says that the fan-out tells it: resume, pauses, gaps, epochs, snapshots."""

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
    """`truth` is the master's account now; `snapshots` its stored pictures."""

    records: list[Record] = field(default_factory=list)
    truth: Book = field(default_factory=Book)
    snapshot: snapshot_pb2.Snapshot | None = None
    is_paused: bool = False
    trimmed_through: Position = BEGINNING

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

    def take_snapshot(self) -> None:
        self.snapshot = self.truth.to_snapshot(MASTER, self.head.sequence, 1, epoch=self.head.epoch)

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
        if kind == "after":
            held = Position.from_pb(start.after)
            if held < self.trimmed_through:
                stored = Position.from_pb(self.snapshot.as_of) if self.snapshot is not None else None
                if stored is not None and stored < self.trimmed_through:
                    stored = None
                offer = Offer(self.trimmed_through, self.head, stored)
                raise OutOfRangeError(PositionsUnavailable({MASTER: offer}))
            return self._from(held)
        if kind == "from_now":
            return self._from(self.head, said=True)
        return self.full_sync()

    def full_sync(self) -> Iterator[pb.SubscribeResponse]:
        """The stored snapshot, then everything after it; nothing when there is none."""
        snapshot = self.snapshot
        if snapshot is None or Position.from_pb(snapshot.as_of) < self.trimmed_through:
            return
        yield pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=snapshot))
        yield from self._from(Position.from_pb(snapshot.as_of))

    def _from(self, held: Position, *, said: bool = False) -> Iterator[pb.SubscribeResponse]:
        if said:
            yield self._progress(held)
        while True:
            record = next((one for one in self.records if one.position > held), None)
            if record is None:
                yield self._progress(max(held, Position(1, 0)))
                continue
            response = self._tell(record, held)
            held = record.position
            yield response

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
        gap = pb.Gap(
            master_id=MASTER,
            to=Position(first.epoch, record.position.sequence).to_pb(),
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
        state = pb.SUBSCRIPTION_STATE_PAUSED_CLOSE_ONLY if self.is_paused else pb.SUBSCRIPTION_STATE_SYNCED
        return pb.SubscribeResponse(state_change=pb.StateChange(master_id=MASTER, state=state))
