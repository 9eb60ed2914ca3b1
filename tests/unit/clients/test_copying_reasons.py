"""What is said about reductions, about what was refused or cancelled before, and about sizes that cannot be known."""

from __future__ import annotations

import pytest

from ecp_client.account import HoldingState
from ecp_client.books import Book
from ecp_client.copying import Action, Copier, CopySettings, Decision, Reason, Scaling, explain
from ecp_client.signals import CLOSE_BY, PARTIAL_CLOSE, PENDING_FILL
from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.copied import OPEN, copier, outcome, place, sync, take
from tests.unit.clients.made import lots, price, signal

OTHER = signal(OPEN, 2, side=pb.SIDE_SELL, volume_lots_e8=lots("0.30"))
BY = signal(CLOSE_BY, 1, opposite_position_id=2, volume_lots_e8=lots("0.20"))


def said(client: Copier, one: pb.Signal, **how: object) -> tuple[Decision, str]:
    decision = take(client, one, **how)
    return decision, explain(one, decision, client.settings)


class TestReductions:
    @pytest.mark.parametrize(
        "settings",
        [
            {"volume_multiplier_e4": 1_000},
            {"scaling": Scaling.FIXED, "volume_fixed_e8": lots("0.01")},
        ],
    )
    def test_what_is_closed_because_too_little_would_remain_is_told_so(
        self, settings: dict[str, object]
    ) -> None:
        client = copier(**settings)
        take(client, signal(OPEN, 1))
        half = signal(PARTIAL_CLOSE, 1, volume_lots_e8=lots("0.05"))
        decision, why = said(client, half)
        assert outcome(decision) == (Action.RESIZE, Reason.VOLUME_MIN, 0)
        assert why.endswith("to 0 lots (the master: 0.05): less than 0.01 lots would remain.")

    def test_the_largest_volume_is_named(self) -> None:
        client = copier(volume_max_e8=lots("1"))
        take(client, signal(OPEN, 1, volume_lots_e8=lots("10")))
        decision, why = said(client, signal(PARTIAL_CLOSE, 1, volume_lots_e8=lots("8")))
        assert outcome(decision) == (Action.RESIZE, Reason.VOLUME_MAX, lots("1"))
        assert why.endswith("no position may exceed 1 lots.")

    def test_an_earlier_refusal_is_named(self) -> None:
        """The master enlarged, the account did not, and now the master has still more than the account."""
        client = Copier(CopySettings(), protection=lambda one, _: _refuse_large(one.signal))
        take(client, signal(OPEN, 1, volume_lots_e8=lots("1")))
        take(client, signal(OPEN, 1, volume_lots_e8=lots("3")))
        decision, why = said(client, signal(PARTIAL_CLOSE, 1, volume_lots_e8=lots("2")))
        assert outcome(decision) == (Action.RESIZE, Reason.MARGIN, lots("1"))
        assert why.endswith("not enough margin.")

    def test_a_close_by_to_too_little_is_told_so(self) -> None:
        client = copier(volume_multiplier_e4=500)
        for one in (signal(OPEN, 1, volume_lots_e8=lots("0.20")), OTHER):
            take(client, one)
        decision, why = said(client, signal(CLOSE_BY, 1, opposite_position_id=2, volume_lots_e8=lots("0.10")))
        assert outcome(decision) == (Action.RESIZE, Reason.VOLUME_MIN, 0)
        assert why.endswith("less than 0.01 lots would remain.")

    def test_a_close_by_says_what_is_left_of_the_two(self) -> None:
        client = copier(volume_multiplier_e4=5_000)
        for one in (signal(OPEN, 1), OTHER):
            take(client, one)
        _, why = said(client, BY)
        assert "close by of EURUSD #1 to 0.1 lots (the master: 0.2)" in why

    def test_a_close_by_against_what_the_user_closed_says_so(self) -> None:
        client = copier()
        for one in (signal(OPEN, 1), OTHER):
            take(client, one)
        client.account.closed_by_user(2)
        decision, why = said(client, BY)
        assert outcome(decision) == (Action.RESIZE, Reason.CLOSED_BY_USER, 0)
        assert why.endswith("the user closed it by hand.")

    def test_a_close_by_of_what_was_never_held_and_what_the_user_closed_says_the_latter(self) -> None:
        client = Copier(CopySettings(sides=frozenset((pb.SIDE_SELL,))))
        for one in (signal(OPEN, 1), OTHER):
            take(client, one)
        client.account.closed_by_user(2)
        assert outcome(take(client, BY)) == (Action.SKIP, Reason.CLOSED_BY_USER, 0)


def _refuse_large(one: pb.Signal) -> Reason:
    return Reason.MARGIN if one.volume_lots_e8 > lots("1") else Reason.NONE


class TestFills:
    """In a netting account an order may enlarge what is held."""

    FILL = signal(PENDING_FILL, 1, order_id=3, volume_lots_e8=lots("0.20"))

    def test_what_the_user_cancelled_enlarges_nothing_now_or_later(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1))
        take(client, place())
        client.account.order_cancelled_by_user(3)
        decision = take(client, self.FILL)
        assert outcome(decision) == (Action.SKIP, Reason.CLOSED_BY_USER, lots("0.10"))
        assert not sync(client, signal(OPEN, 1, volume_lots_e8=lots("0.20")))
        assert client.account.holdings[1].volume_lots_e8 == lots("0.10")

    def test_an_order_of_the_accounts_own_fills_however_late_the_signal_comes(self) -> None:
        client = copier(max_signal_age_ms=1_000)
        take(client, signal(OPEN, 1))
        take(client, place())
        decision = take(client, self.FILL, now_us=60_000_000)
        assert outcome(decision) == (Action.COPY, Reason.NONE, lots("0.20"))
        assert client.account.holdings[1].volume_lots_e8 == lots("0.20")

    def test_what_the_user_cancelled_reduces_and_turns_all_the_same(self) -> None:
        """The master has less than the account now, or is on the other side."""
        for change in ({"volume_lots_e8": lots("0.04")}, {"side": pb.SIDE_SELL}):
            client = copier()
            take(client, signal(OPEN, 1))
            take(client, place())
            client.account.order_cancelled_by_user(3)
            left = 0 if "side" in change else lots("0.04")
            fill = signal(PENDING_FILL, 1, order_id=3, **change)
            assert take(client, fill).volume_lots_e8 == left
            assert client.account.holdings[1].volume_lots_e8 == left

    def test_so_it_does_while_signals_are_missing(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1))
        take(client, place())
        assert take(client, self.FILL, degraded=True).volume_lots_e8 == lots("0.20")


def risking(quotes: tuple[str, str] | None = None, **settings: object) -> Copier:
    """Risks 100 of 10,000 in a symbol where one lot gains 100,000 for each 1.0."""
    given = None if quotes is None else (price(quotes[0]), price(quotes[1]))
    return Copier(
        CopySettings(scaling=Scaling.RISK, risk_bps=100, **settings),
        equity=lambda: lots("10000"),
        point_value=lambda _symbol: lots("100000"),
        quotes=lambda _symbol: given,
    )


class TestRisk:
    def opening(self, stop: str, **more: object) -> pb.Signal:
        return signal(OPEN, 1, volume_lots_e8=lots("1"), stop_loss_e8=price(stop), **more)

    def test_a_stop_on_the_wrong_side_is_none(self) -> None:
        """It would be hit at once; the distance to it says nothing about what may be lost."""
        assert outcome(take(risking(), self.opening("1.1001"))) == (Action.SKIP, Reason.NO_STOP, 0)
        short = self.opening("1.0999", side=pb.SIDE_SELL)
        assert outcome(take(risking(), short)) == (Action.SKIP, Reason.NO_STOP, 0)

    def test_in_reverse_the_take_profit_is_what_may_be_lost(self) -> None:
        one = self.opening("1.0900", take_profit_e8=price("1.1100"))
        decision = take(risking(reverse=True), one)
        assert (decision.volume_lots_e8, decision.stop_loss_e8) == (lots("0.10"), price("1.1100"))

    def test_what_the_price_is_now_counts_where_it_is_known(self) -> None:
        """It has run away from where the master opened, so that the stop is twice as far."""
        assert take(risking(), self.opening("1.0900")).volume_lots_e8 == lots("0.10")
        client = risking(("1.1098", "1.1100"))
        assert take(client, self.opening("1.0900")).volume_lots_e8 == lots("0.05")

    def test_an_order_counts_from_its_own_price(self) -> None:
        client = risking(("1.1998", "1.2000"))
        one = place(volume_lots_e8=lots("1"), stop_loss_e8=price("1.0900"))
        assert take(client, one).volume_lots_e8 == lots("0.10")
        one = place(
            pb.ORDER_TYPE_STOP_LIMIT, stop_limit_price_e8=price("1.0950"), stop_loss_e8=price("1.0900")
        )
        assert take(client, one).volume_lots_e8 == lots("0.20")

    def test_a_full_sync_opens_nothing_where_the_price_is_not_known(self) -> None:
        """The stop may have been moved close to where the position was opened, far from where the price is now."""
        trailed = self.opening("1.0999")
        plan = sync(risking(), trailed)
        assert (plan.actions, plan.skipped) == ((), ((1, Reason.NO_PRICE),))
        (opened,) = sync(risking(("1.1498", "1.1500")), trailed).actions
        assert opened.decision.volume_lots_e8 == lots("0.01")

    def test_what_is_held_already_keeps_its_volume_when_the_scaling_is_changed(self) -> None:
        before = copier()
        take(before, self.opening("1.0900"))
        after = risking()
        after.account = before.account
        assert not sync(after, self.opening("1.0999")).skipped
        assert after.account.holdings[1].volume_lots_e8 == lots("1")

    def test_it_is_explained(self) -> None:
        one = self.opening("1.0900")
        client = risking()
        decision = Decision(Action.SKIP, Reason.NO_PRICE)
        assert explain(one, decision, client.settings).endswith(
            "the volume depends on what the price is now, and there is no quote."
        )


def test_a_settled_position_that_was_short_is_not_short_any_more() -> None:
    client = Copier(CopySettings(), protection=lambda one, _: _refuse_large(one.signal))
    take(client, signal(OPEN, 1, volume_lots_e8=lots("1")))
    take(client, signal(OPEN, 1, volume_lots_e8=lots("3")))
    take(client, signal(OPEN, 1, volume_lots_e8=lots("0.5")))
    assert not client.account.holdings[1].short


def test_what_was_short_while_degraded_and_then_closed_by_hand_stays_closed() -> None:
    client = copier()
    take(client, signal(OPEN, 1))
    take(client, signal(OPEN, 1, volume_lots_e8=lots("0.20")), degraded=True)
    client.account.closed_by_user(1)
    plan = sync(client, signal(OPEN, 1, volume_lots_e8=lots("0.20")))
    assert (plan.actions, plan.skipped) == ((), ((1, Reason.CLOSED_BY_USER),))
    assert client.account.holdings[1].state is HoldingState.CLOSED_BY_USER
    assert isinstance(client.mirror, Book)
