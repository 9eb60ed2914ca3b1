"""What a full sync plans: what is there and should not be, what differs, and what is missing."""

from __future__ import annotations

from ecp_client.books import Book
from ecp_client.copying import (
    Copier,
    CopySettings,
    Reason,
    Step,
    differences,
)
from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.copied import NOW_US, OPEN, PLACE, copier, place, steps, sync, take
from tests.unit.clients.made import lots, signal


class TestFullSync:
    def test_closes_come_before_openings(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1))
        take(client, place())
        placed = signal(PLACE, 0, order_id=5, order_type=pb.ORDER_TYPE_STOP)
        plan = sync(client, signal(OPEN, 2), placed)
        assert steps(plan) == [(Step.CLOSE, 1), (Step.CANCEL, 3), (Step.OPEN, 2), (Step.PLACE, 5)]
        assert list(differences(client, client.mirror)) == []

    def test_volume_and_stops_are_adjusted(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1))
        plan = sync(client, signal(OPEN, 1, volume_lots_e8=lots("0.04"), stop_loss_e8=9))
        assert steps(plan) == [(Step.ADJUST, 1)]
        assert (plan.actions[0].decision.volume_lots_e8, plan.actions[0].decision.stop_loss_e8) == (
            lots("0.04"),
            9,
        )

    def test_an_order_is_adjusted(self) -> None:
        client = copier()
        take(client, place())
        assert steps(sync(client, place(price_e8=5))) == [(Step.ADJUST_ORDER, 3)]

    def test_what_is_too_old_is_not_opened_late(self) -> None:
        plan = sync(copier(max_signal_age_ms=1), signal(OPEN, 1), now_us=NOW_US * 9)
        assert not plan
        assert plan.skipped == ((1, Reason.LATENCY),)

    def test_what_was_refused_stays_refused(self) -> None:
        client = Copier(CopySettings(), protection=lambda _one, _decision: Reason.SPREAD)
        take(client, signal(OPEN, 1))
        take(client, place())
        plan = sync(client, signal(OPEN, 1), place())
        assert not plan
        assert plan.skipped == ((1, Reason.SPREAD), (3, Reason.SPREAD))

    def test_what_was_skipped_while_degraded_is_looked_at_again(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1), degraded=True)
        take(client, place(), degraded=True)
        plan = sync(client, signal(OPEN, 1), place())
        assert steps(plan) == [(Step.OPEN, 1), (Step.PLACE, 3)]

    def test_what_the_terminal_no_longer_has_was_closed_by_hand(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1))
        take(client, signal(OPEN, 2))
        plan = sync(client, signal(OPEN, 1), signal(OPEN, 2), held={2})
        assert not plan
        assert plan.skipped == ((1, Reason.CLOSED_BY_USER),)

    def test_a_refused_enlargement_is_not_made_up_for_but_a_reduction_is(self) -> None:
        client = copier(max_signal_age_ms=1)
        take(client, signal(OPEN, 1))
        take(client, signal(OPEN, 1, volume_lots_e8=lots("0.3")), NOW_US * 9)
        plan = sync(client, signal(OPEN, 1, volume_lots_e8=lots("0.3"), stop_loss_e8=4))
        assert steps(plan) == [(Step.ADJUST, 1)]
        assert plan.actions[0].decision.volume_lots_e8 == lots("0.10")
        plan = sync(client, signal(OPEN, 1, volume_lots_e8=lots("0.05"), stop_loss_e8=4))
        assert plan.actions[0].decision.volume_lots_e8 == lots("0.05")

    def test_differences_are_named(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1))
        take(client, place())
        master = Book()
        master.apply(signal(OPEN, 1, volume_lots_e8=lots("0.2")))
        master.apply(signal(OPEN, 2))
        assert [str(one) for one in differences(client, master)] == [
            "position 1: volume_lots_e8 is 10000000, not 20000000",
            "position 2: presence is False, not True",
            "order 3: presence is True, not False",
        ]
        assert len(list(differences(client, master, allow_missing=True))) == 2
