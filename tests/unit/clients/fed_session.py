"""A subscriber's session and what is fed to it; for tests of the session."""

from __future__ import annotations

from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.session import (
    Delivery,
    Step,
    SubscriberSession,
)
from ecp_client.subscriber.track import Start, Track
from execution.common.v1 import position_pb2, snapshot_pb2
from execution.common.v1 import signal_pb2 as common_pb
from execution.fanout.v1 import fanout_service_pb2 as pb

P = Position


def sequenced(
    sequence: int, epoch: int = 1, previous: Position | None = None, master_id: int = 1
) -> common_pb.SequencedSignal:
    before = previous or P(epoch, sequence - 1)
    return common_pb.SequencedSignal(
        master_id=master_id,
        epoch=epoch,
        sequence=sequence,
        previous_epoch=before.epoch,
        previous_sequence=before.sequence,
    )


def stream_position(position: Position) -> position_pb2.StreamPosition:
    return position.to_pb()


class Fed:
    """A session and what is fed to it."""

    def __init__(self, start: Start = Start.BEGINNING, held: Position | None = None) -> None:
        self.session = SubscriberSession([Track(1, start, held, held or BEGINNING)], "a test")
        self.request = self.session.request()

    @property
    def track(self) -> Track:
        return self.session.tracks[1]

    def signals(self, *signals: common_pb.SequencedSignal) -> Delivery:
        return self.session.take_signals(pb.Signals(signals=signals))

    def run(self, first: int, last: int, epoch: int = 1) -> list[int]:
        delivery = self.signals(*(sequenced(number, epoch) for number in range(first, last + 1)))
        return [one.sequence for one in delivery.fresh]

    def gap(
        self,
        first: Position,
        last: Position,
        reason: position_pb2.GapReason.ValueType = position_pb2.GAP_REASON_REJECTED,
        resume_after: Position | None = None,
    ) -> list[Step]:
        gap = pb.Gap(master_id=1, to=last.to_pb(), reason=reason, resume_after=(resume_after or last).to_pb())
        getattr(gap, "from").CopyFrom(first.to_pb())
        return self.session.take(pb.SubscribeResponse(gap=gap))

    def snapshot(self, as_of: Position) -> list[Step]:
        snapshot = snapshot_pb2.Snapshot(master_id=1, as_of=as_of.to_pb())
        return self.session.take(pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=snapshot)))

    def progress(self, position: Position, master_id: int = 1) -> list[Step]:
        progress = pb.Progress()
        progress.positions.add(master_id=master_id, position=position.to_pb())
        return self.session.take(pb.SubscribeResponse(progress=progress))

    def state(self, state: pb.SubscriptionState.ValueType) -> list[Step]:
        change = pb.StateChange(master_id=1, state=state, reason="told to")
        return self.session.take(pb.SubscribeResponse(state_change=change))

    def again(self) -> pb.MasterStart:
        """The stream ends and the next one is asked for; what is asked for the master."""
        self.session.stream_ended()
        return self.session.request().masters[0]
