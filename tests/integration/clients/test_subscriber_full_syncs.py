"""Full syncs from snapshots that are older than what was delivered, through crashes: nothing is closed on a guess."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecp_client.account import HoldingState
from ecp_client.books import Book
from ecp_client.clock import ServerClock
from ecp_client.copying import CopySettings, Plan, Step
from ecp_client.positions import Position
from ecp_client.subscriber import (
    Journal,
    JournalSettings,
    Resynced,
    Start,
    SubscriberEvent,
    SubscriberSettings,
)
from ecp_client.subscriber.hooks import Hooks
from ecp_client.subscriber.journal_format import Entry, EntryType, checkpoint_body, encode
from ecp_client.subscriber.processing import Processor
from ecp_client.subscriber.recovery import recover
from execution.common.v1 import position_pb2
from execution.common.v1 import signal_pb2 as common_pb
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.unit.clients.made import lots, sequenced, signal

OPEN, CLOSE, CLOSE_BY = (
    common_pb.SIGNAL_KIND_OPEN,
    common_pb.SIGNAL_KIND_CLOSE,
    common_pb.SIGNAL_KIND_CLOSE_BY,
)
PLACE, FILL = common_pb.SIGNAL_KIND_PENDING_PLACE, common_pb.SIGNAL_KIND_PENDING_FILL
P = Position
WITHHELD, LOG_LOST = position_pb2.GAP_REASON_WITHHELD, position_pb2.GAP_REASON_LOG_LOST


class Process:
    """One run of a subscriber without its network, and without a journal where there is no folder."""

    def __init__(
        self, folder: Path, held: set[int] | None = None, kept: JournalSettings | None = None
    ) -> None:
        settings = SubscriberSettings(
            addresses=["127.0.0.1:1"],
            license_token="t",
            masters={1: CopySettings()},
            start=Start.BEGINNING,
        )
        self.plans: list[Plan] = []
        hooks = Hooks(
            on_event=self._take_event, held_positions=None if held is None else lambda _master: held
        )
        self.journal = Journal(folder, kept)
        self.processor = Processor(settings, hooks, self.journal, recover(folder), ServerClock(0, 0))
        self.asked = self.processor.session.request().masters[0]

    def _take_event(self, event: SubscriberEvent) -> None:
        if isinstance(event, Resynced):
            self.plans.append(event.plan)

    def signals(self, *signals: common_pb.Signal, first: int) -> list[int]:
        response = pb.SubscribeResponse()
        for sequence, one in enumerate(signals, first):
            response.signals.signals.append(sequenced(one, sequence))
        batch = self.processor.handle(response)
        return [] if batch is None else [decision.volume_lots_e8 for decision in batch.decisions]

    def gap(self, first: int, last: Position, reason: position_pb2.GapReason.ValueType = WITHHELD) -> None:
        gap = pb.Gap(master_id=1, to=P(1, last.sequence).to_pb(), reason=reason, resume_after=last.to_pb())
        getattr(gap, "from").CopyFrom(P(1, first).to_pb())
        self.processor.handle(pb.SubscribeResponse(gap=gap))

    def snapshot(self, sequence: int, *signals: common_pb.Signal, epoch: int = 1) -> None:
        """What `signals` make of a master's account."""
        book = Book()
        for one in signals:
            book.apply(one)
        made = book.to_snapshot(1, sequence, 1, epoch=epoch)
        self.processor.handle(pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=made)))

    def pause(self) -> None:
        change = pb.StateChange(master_id=1, state=pb.SUBSCRIPTION_STATE_PAUSED_CLOSE_ONLY)
        self.processor.handle(pb.SubscribeResponse(state_change=change))

    def resume(self) -> None:
        """The pause is over: so the next stream asks for a full sync."""
        change = pb.StateChange(master_id=1, state=pb.SUBSCRIPTION_STATE_SYNCED)
        self.processor.handle(pb.SubscribeResponse(state_change=change))
        self.processor.stream_ended(self.processor.session.stream_ended())
        assert self.processor.session.request().masters[0].HasField("from_snapshot")

    @property
    def held(self) -> set[int]:
        return {one.position_id for one in self.processor.following(1).copier.account.held()}


Begin = Callable[..., Process]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Kills the process before, if there is one, and starts another on the same journal."""
    processes: list[Process] = []

    def start(held: set[int] | None = None, kept: JournalSettings | None = None) -> Process:
        for process in processes:
            process.journal.close()
        processes.append(Process(tmp_path, held, kept))
        return processes[-1]

    yield start
    for process in processes:
        process.journal.close()


def opened(*tickets: int) -> list[common_pb.Signal]:
    return [signal(OPEN, ticket) for ticket in tickets]


def follow(begin: Begin) -> Process:
    """Delivered: 1 and 2 up to a checkpoint, 3 and 4 behind that, which only their entries in the journal show."""
    one = begin()
    one.signals(*opened(1, 2), first=1)
    one.processor.checkpoint()
    one.signals(*opened(3, 4), first=3)
    return one


@pytest.mark.parametrize("crashes", [1, 2, 3])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("told_first", [False, True])
def test_what_a_pause_withholds_again_is_not_closed(
    begin: Begin, crashes: int, checkpointed: bool, told_first: bool
) -> None:
    """However often it crashes, before, between and after the full syncs."""
    follow(begin)
    for _ in range(crashes):
        process = begin()
        process.pause()
        if told_first:
            process.gap(3, P(1, 4))
        process.snapshot(1, *opened(1))
        process.gap(2, P(1, 4))
        (plan,) = process.plans
        assert plan.actions == ()
        assert plan.unconfirmed == ((2, 3, 4) if crashes else ())
        assert process.held == {1, 2, 3, 4}
        if checkpointed:
            process.processor.checkpoint()
    process = begin()
    process.pause()
    assert process.held == {1, 2, 3, 4}
    # What the master closes now is known, and so is what the first full sync after the pause shows.
    assert process.signals(signal(CLOSE, 3), first=5) == [0]
    process.resume()
    process.snapshot(6, *opened(1, 4))
    (plan,) = process.plans
    assert [(action.step, action.ticket) for action in plan.actions] == [(Step.CLOSE, 2)]
    assert plan.unconfirmed == ()
    assert process.held == {1, 4}


def test_what_the_snapshot_lacks_and_was_stated_before_it_is_closed(begin: Begin) -> None:
    """It is known then: the pause withholds only what followed."""
    follow(begin)
    process = begin()
    process.pause()
    process.snapshot(2, *opened(1))
    process.gap(3, P(1, 4))
    (plan,) = process.plans
    assert [(action.step, action.ticket) for action in plan.actions] == [(Step.CLOSE, 2)]
    assert plan.unconfirmed == (3, 4)


def test_the_mirror_knows_which_of_two_is_left(begin: Begin) -> None:
    """Both openings were delivered before the crash, and withheld when they would have come again."""
    one = begin()
    one.signals(*opened(1), first=1)
    one.processor.checkpoint()
    one.signals(
        signal(OPEN, 2, volume_lots_e8=lots("3")),
        signal(OPEN, 3, side=common_pb.SIDE_SELL, volume_lots_e8=lots("1")),
        first=2,
    )
    process = begin()
    process.pause()
    process.gap(2, P(1, 3))
    closing = signal(CLOSE_BY, 3, opposite_position_id=2, volume_lots_e8=lots("2"))
    process.signals(closing, first=4)
    assert process.held == {1, 2}
    process.snapshot(1, *opened(1))
    process.gap(2, P(1, 3))
    process.signals(closing, first=4)
    (plan,) = process.plans
    assert plan.actions == ()
    assert plan.unconfirmed == (2,)
    (held,) = [one for one in process.processor.following(1).copier.account.held() if one.position_id == 2]
    assert held.volume_lots_e8 == lots("2")


def test_the_one_that_is_left_of_two_stays_though_the_snapshot_knows_only_that_one(begin: Begin) -> None:
    one = begin()
    one.signals(signal(OPEN, 1, volume_lots_e8=lots("3")), first=1)
    one.processor.checkpoint()
    closing = signal(CLOSE_BY, 2, opposite_position_id=1, volume_lots_e8=lots("2"))
    one.signals(signal(OPEN, 2, side=common_pb.SIDE_SELL, volume_lots_e8=lots("1")), closing, first=2)
    process = begin()
    process.pause()
    process.snapshot(1, signal(OPEN, 1, volume_lots_e8=lots("3")))
    process.gap(2, P(1, 2))
    process.signals(closing, first=3)
    assert process.plans == [Plan(unconfirmed=(1,))]


def test_an_enlargement_that_is_withheld_again_is_not_undone(begin: Begin) -> None:
    one = begin()
    one.signals(signal(OPEN, 1, volume_lots_e8=lots("1")), first=1)
    one.processor.checkpoint()
    one.signals(signal(OPEN, 1, volume_lots_e8=lots("3")), first=2)
    process = begin()
    process.pause()
    process.snapshot(1, signal(OPEN, 1, volume_lots_e8=lots("1")))
    process.gap(2, P(1, 2))
    assert process.plans == [Plan(unconfirmed=(1,))]


def test_an_order_whose_fill_is_withheld_again_is_not_placed_anew(begin: Begin) -> None:
    order = signal(PLACE, 0, order_id=9, order_type=common_pb.ORDER_TYPE_LIMIT)
    one = begin()
    one.signals(order, first=1)
    one.processor.checkpoint()
    one.signals(signal(FILL, 5, order_id=9), first=2)
    process = begin()
    process.pause()
    process.snapshot(1, order)
    process.gap(2, P(1, 2))
    (plan,) = process.plans
    assert plan.actions == ()
    assert plan.unconfirmed == (5,)
    assert process.held == {5}


def test_what_the_log_lost_after_it_was_delivered_is_not_closed(begin: Begin) -> None:
    """Nor is what ended there opened again."""
    one = follow(begin)
    one.signals(signal(CLOSE, 1), first=5)
    for _ in range(2):
        process = begin()
        process.snapshot(2, *opened(1, 2))
        process.gap(3, P(2, 5), LOG_LOST)
        (plan,) = process.plans
        assert plan.actions == ()
        assert plan.unconfirmed == (3, 4)
        assert process.processor.session.tracks[1].degraded
    process.snapshot(5, *opened(2, 3), epoch=2)
    assert [(one.step, one.ticket) for one in process.plans[-1].actions] == [(Step.CLOSE, 4)]


def test_with_a_lost_journal_nothing_is_closed_that_a_pause_withholds(begin: Begin) -> None:
    process = begin(held={1, 7})
    process.pause()
    process.snapshot(1, *opened(1))
    process.gap(2, P(1, 2))
    process.snapshot(1, *opened(1))
    process.gap(2, P(1, 2))
    assert [plan.unconfirmed for plan in process.plans] == [(7,), (7,)]
    assert Step.CLOSE not in {action.step for plan in process.plans for action in plan.actions}
    process = begin(held={1, 7})
    process.resume()
    process.snapshot(2, *opened(1))
    assert [(one.step, one.ticket) for one in process.plans[-1].actions] == [(Step.CLOSE, 7)]


def test_a_journal_of_an_older_version_is_read_and_closes_nothing_either(
    begin: Begin, tmp_path: Path
) -> None:
    """It has no signals in it, only their tickets, and no statements in its checkpoint."""
    account = b'{"holdings":[[1,"EURUSD",1,10000000,0,0,1,0,false]],"orders":[]}'
    book = Book()
    book.apply(opened(1)[0], 1)
    snapshot = book.to_snapshot(1, 1, 1, epoch=1).SerializeToString()
    body = checkpoint_body(snapshot, account, b"").removesuffix(b"\n")
    with Journal(tmp_path) as journal:
        journal.append(encode(Entry(EntryType.CHECKPOINT, 1, P(1, 1), P(1, 1), 0, body=body)))
        journal.append(encode(Entry(EntryType.SIGNAL, 1, P(1, 2), P(1, 1), 0, OPEN, 1, ticket=2)))
    for _ in range(2):
        process = begin()
        process.pause()
        process.gap(2, P(1, 2))
        process.snapshot(1, *opened(1))
        process.gap(2, P(1, 2))
        assert process.plans == [Plan(unconfirmed=(2,))]
        assert process.held == {1, 2}
    process.resume()
    process.snapshot(2, *opened(1, 2))
    assert [(one.step, one.ticket) for one in process.plans[-1].actions] == [(Step.ADJUST, 2)]
    assert {one.state for one in process.processor.following(1).copier.account.holdings.values()} == {
        HoldingState.HELD
    }


def test_no_file_of_the_journal_is_removed_that_a_full_sync_under_way_may_need(begin: Begin) -> None:
    """The last checkpoint is in the first file until the next one can be written."""
    kept = JournalSettings(file_bytes=4_096, files_max=1)
    one = begin(kept=kept)
    one.signals(*opened(1, 2), first=1)
    one.processor.checkpoint()
    one.signals(*opened(*range(3, 60)), first=3)
    one.pause()
    one.snapshot(1, *opened(1))
    one.processor.checkpoint()
    two = begin(kept=kept)
    two.pause()
    two.snapshot(1, *opened(1))
    two.gap(2, P(1, 59))
    assert two.held == set(range(1, 60))
    (plan,) = two.plans
    assert plan.actions == ()


def test_books_of_more_than_a_master_may_send_are_kept(begin: Begin) -> None:
    one = begin()
    one.signals(*opened(*range(1, 1_102)), first=1)
    one.processor.checkpoint()
    other = begin()
    assert other.asked.after.sequence == 1_101
    assert len(other.held) == 1_101
