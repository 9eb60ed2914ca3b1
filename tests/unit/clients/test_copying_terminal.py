"""Full syncs that are told what the terminal really holds, and what settings that changed mean for what is open."""

from __future__ import annotations

from ecp_client.account import Account, HoldingState
from ecp_client.copying import (
    Action,
    Copier,
    CopySettings,
    Plan,
    Reason,
    Scale,
    Scaling,
    Step,
    differences,
)
from ecp_client.signals import MODIFY, PARTIAL_CLOSE
from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.copied import CLOSE, OPEN, copier, outcome, place, steps, sync, take
from tests.unit.clients.made import lots, sequenced, signal


def volumes(plan: Plan) -> list[int]:
    return [action.decision.volume_lots_e8 for action in plan.actions]


class TestWhatTheTerminalHolds:
    def test_a_close_that_a_crash_kept_from_the_broker_is_planned_again(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1))
        take(client, signal(CLOSE, 1))
        plan = sync(client, held={1})
        assert steps(plan) == [(Step.CLOSE, 1)]
        assert volumes(plan) == [0]

    def test_what_was_closed_because_too_little_remained_is_closed_again(self) -> None:
        client = copier(volume_multiplier_e4=1_000)
        take(client, signal(OPEN, 1))
        take(client, signal(PARTIAL_CLOSE, 1, volume_lots_e8=lots("0.05")))
        plan = sync(client, signal(OPEN, 1, volume_lots_e8=lots("0.05")), held={1})
        assert steps(plan) == [(Step.CLOSE, 1)]
        assert plan.skipped == ((1, Reason.VOLUME_MIN),)

    def test_without_its_journal_nothing_is_opened_twice(self) -> None:
        client = copier(volume_multiplier_e4=5_000)
        plan = sync(client, signal(OPEN, 1), signal(OPEN, 2), held={1})
        assert steps(plan) == [(Step.ADJUST, 1), (Step.OPEN, 2)]
        assert volumes(plan) == [lots("0.05")] * 2
        assert list(differences(client, client.mirror)) == []

    def test_what_is_there_is_taken_over_whatever_the_limits_are(self) -> None:
        client = copier(max_signal_age_ms=1, symbols=frozenset({"XAUUSD"}))
        plan = sync(client, signal(OPEN, 1), held={1}, now_us=9_000_000)
        assert steps(plan) == [(Step.ADJUST, 1)]
        assert client.account.holdings[1].state is HoldingState.HELD

    def test_what_is_there_and_cannot_be_sized_is_closed(self) -> None:
        client = copier(scaling=Scaling.RISK, risk_bps=100)
        plan = sync(client, signal(OPEN, 1, stop_loss_e8=5), held={1})
        assert steps(plan) == [(Step.CLOSE, 1)]
        assert plan.skipped == ((1, Reason.NO_PRICE),)

    def test_what_was_skipped_while_degraded_and_is_there_is_not_opened_twice(self) -> None:
        client = copier()
        take(client, signal(OPEN, 1), degraded=True)
        assert steps(sync(client, signal(OPEN, 1), held={1})) == [(Step.ADJUST, 1)]

    def test_what_the_user_closed_is_left_to_the_user(self) -> None:
        """The terminal may still show it for a moment."""
        client = copier()
        take(client, signal(OPEN, 1))
        client.account.closed_by_user(1)
        plan = sync(client, signal(OPEN, 1), held={1})
        assert (plan.actions, plan.skipped) == ((), ((1, Reason.CLOSED_BY_USER),))


class TestOtherSettingsThanBefore:
    def test_a_decision_stands_whatever_today_s_filters_are(self) -> None:
        client = copier(symbols=frozenset({"XAUUSD"}), copy_pending=False)
        client.replay(sequenced(signal(OPEN, 1)), Action.COPY, Reason.NONE)
        client.replay(sequenced(place()), Action.COPY, Reason.NONE)
        assert client.account.holdings[1].state is HoldingState.HELD
        assert client.account.orders[3].state is HoldingState.HELD

    def test_a_volume_stands_whatever_today_s_scaling_is(self) -> None:
        client = copier(scaling=Scaling.FIXED, volume_fixed_e8=lots("0.02"))
        client.replay(sequenced(signal(OPEN, 1)), Action.COPY, Reason.NONE)
        client.replay(sequenced(signal(OPEN, 2)), Action.RESIZE, Reason.FIXED_VOLUME, Scale(3, 10))
        assert [entry.volume_lots_e8 for entry in client.account.held()] == [lots("0.10"), lots("0.03")]
        client = copier()
        client.replay(sequenced(signal(OPEN, 2)), Action.RESIZE, Reason.FIXED_VOLUME, Scale(3, 10))
        assert [entry.volume_lots_e8 for entry in client.account.held()] == [lots("0.03")]

    def test_a_refusal_stands_too(self) -> None:
        client = copier()
        client.replay(sequenced(signal(OPEN, 1)), Action.SKIP, Reason.SYMBOL_FILTER)
        entry = client.account.holdings[1]
        assert (entry.state, entry.reason) == (HoldingState.REFUSED, Reason.SYMBOL_FILTER)

    def test_stops_belong_to_the_side_on_which_the_position_was_opened(self) -> None:
        """Turned round, the take profit of a long position would be its stop loss."""
        before = copier()
        take(before, signal(OPEN, 1))
        take(before, place())
        after = Copier(CopySettings(reverse=True), before.mirror, before.account)
        moved = take(after, signal(MODIFY, 1, stop_loss_e8=5, take_profit_e8=9))
        assert (moved.side, moved.stop_loss_e8, moved.take_profit_e8) == (pb.SIDE_BUY, 5, 9)
        changed = signal(
            pb.SIGNAL_KIND_PENDING_MODIFY, 0, order_id=3, price_e8=4, stop_loss_e8=5, take_profit_e8=9
        )
        moved = take(after, changed)
        assert (moved.side, moved.stop_loss_e8, moved.take_profit_e8) == (pb.SIDE_BUY, 5, 9)

    def test_an_enlargement_stays_on_the_side_on_which_the_position_was_opened(self) -> None:
        before = copier()
        take(before, signal(OPEN, 1, stop_loss_e8=5))
        after = Copier(CopySettings(reverse=True), before.mirror, before.account)
        more = take(after, signal(OPEN, 1, volume_lots_e8=lots("0.20"), stop_loss_e8=5))
        assert outcome(more) == (Action.COPY, Reason.NONE, lots("0.20"))
        assert (more.side, more.stop_loss_e8) == (pb.SIDE_BUY, 5)
        bought = signal(OPEN, 1, volume_lots_e8=lots("0.20"), stop_loss_e8=5)
        assert not sync(after, bought)
        assert list(differences(after, after.mirror)) == []

    def test_a_position_keeps_the_symbol_in_which_it_was_opened(self) -> None:
        before = copier()
        take(before, signal(OPEN, 1))
        after = Copier(CopySettings(symbol_map={"EURUSD": "EURUSD.m"}), before.mirror, before.account)
        more = take(after, signal(OPEN, 1, volume_lots_e8=lots("0.20")))
        assert more.symbol == after.account.holdings[1].symbol == "EURUSD"
        assert isinstance(after.account, Account)
