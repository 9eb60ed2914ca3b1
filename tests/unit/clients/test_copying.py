"""What a subscriber copies, resizes and skips, and why."""

from __future__ import annotations

import pytest

from ecp_client.account import HoldingState
from ecp_client.books import Book
from ecp_client.copying import (
    Action,
    Copier,
    CopySettings,
    Decision,
    Reason,
    differences,
)
from ecp_client.copying.positions import tightens
from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.copied import CLOSE, NOW_US, OPEN, copier, outcome, place, take
from tests.unit.clients.made import lots, price, sequenced, signal


class TestOpening:
    def test_as_the_master_did(self) -> None:
        decision = take(copier(), signal(OPEN, 7, stop_loss_e8=1, take_profit_e8=2))
        assert outcome(decision) == (Action.COPY, Reason.NONE, lots("0.10"))
        assert (decision.symbol, decision.side, decision.price_e8) == ("EURUSD", pb.SIDE_BUY, price("1.1"))
        assert (decision.stop_loss_e8, decision.take_profit_e8) == (1, 2)

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"volume_multiplier_e4": 5_000}, (Action.RESIZE, Reason.MULTIPLIER, lots("0.05"))),
            ({"volume_multiplier_e4": 3_333}, (Action.RESIZE, Reason.MULTIPLIER, lots("0.03"))),
            ({"volume_multiplier_e4": 999}, (Action.SKIP, Reason.VOLUME_MIN, 0)),
            ({"volume_max_e8": lots("0.04")}, (Action.RESIZE, Reason.VOLUME_MAX, lots("0.04"))),
            ({"volume_min_e8": lots("0.2")}, (Action.SKIP, Reason.VOLUME_MIN, 0)),
            ({"volume_step_e8": lots("0.07")}, (Action.RESIZE, Reason.MULTIPLIER, lots("0.07"))),
            ({"symbols": frozenset({"GBPUSD"})}, (Action.SKIP, Reason.SYMBOL_FILTER, 0)),
            ({"symbols_excluded": frozenset({"EURUSD"})}, (Action.SKIP, Reason.SYMBOL_FILTER, 0)),
            ({"sides": frozenset({pb.SIDE_SELL})}, (Action.SKIP, Reason.SIDE_FILTER, 0)),
        ],
    )
    def test_settings_resize_and_filter(
        self, settings: dict[str, object], expected: tuple[Action, Reason, int]
    ) -> None:
        assert outcome(take(copier(**settings), signal(OPEN, 7))) == expected

    def test_symbols_are_mapped(self) -> None:
        decision = take(copier(symbol_map={"EURUSD": "EURUSD.pro"}), signal(OPEN, 7))
        assert decision.symbol == "EURUSD.pro"

    def test_reversed_the_side_turns_and_the_stops_change_places(self) -> None:
        decision = take(copier(reverse=True), signal(OPEN, 7, stop_loss_e8=1, take_profit_e8=2))
        assert (decision.side, decision.stop_loss_e8, decision.take_profit_e8) == (pb.SIDE_SELL, 2, 1)

    @pytest.mark.parametrize(("age_ms", "reason"), [(500, Reason.NONE), (501, Reason.LATENCY)])
    def test_what_is_too_old_is_skipped(self, age_ms: int, reason: Reason) -> None:
        one = signal(OPEN, 7, occurred_at_us=NOW_US)
        decision = take(copier(max_signal_age_ms=500), one, NOW_US + age_ms * 1_000)
        assert decision.reason is reason

    @pytest.mark.parametrize(
        ("side", "quote", "reason"),
        [
            (pb.SIDE_BUY, ("1.0999", "1.1002"), Reason.NONE),
            (pb.SIDE_BUY, ("1.0999", "1.1003"), Reason.SLIPPAGE),
            (pb.SIDE_BUY, ("1.0", "1.0"), Reason.NONE),
            (pb.SIDE_SELL, ("1.0998", "1.2"), Reason.NONE),
            (pb.SIDE_SELL, ("1.0997", "1.2"), Reason.SLIPPAGE),
        ],
    )
    def test_a_price_that_is_worse_than_allowed_is_skipped(
        self, side: int, quote: tuple[str, str], reason: Reason
    ) -> None:
        settings = CopySettings(max_slippage_e8=price("0.0002"))
        client = Copier(settings, quotes=lambda _symbol: (price(quote[0]), price(quote[1])))
        assert take(client, signal(OPEN, 7, side=side)).reason is reason

    def test_without_a_quote_slippage_is_not_judged(self) -> None:
        client = Copier(CopySettings(max_slippage_e8=1), quotes=lambda _symbol: None)
        assert take(client, signal(OPEN, 7)).action is Action.COPY

    def test_the_protection_has_the_last_word_and_is_asked_only_then(self) -> None:
        asked: list[int] = []

        def protection(one: pb.SequencedSignal, decision: Decision) -> Reason:
            asked.append(one.signal.position_id)
            assert decision.volume_lots_e8 > 0
            return Reason.MARGIN

        client = Copier(CopySettings(symbols=frozenset({"EURUSD"})), protection=protection)
        assert outcome(take(client, signal(OPEN, 7))) == (Action.SKIP, Reason.MARGIN, 0)
        take(client, signal(OPEN, 8, symbol="XAUUSD"))
        take(client, signal(CLOSE, 7))
        assert asked == [7]

    def test_degraded_nothing_is_opened(self) -> None:
        assert take(copier(), signal(OPEN, 7), degraded=True).reason is Reason.DEGRADED


class TestWhatFollows:
    @pytest.fixture
    def held(self) -> Copier:
        client = copier(max_signal_age_ms=1)
        take(client, signal(OPEN, 7, occurred_at_us=NOW_US))
        return client

    @pytest.mark.parametrize("degraded", [True, False])
    def test_closes_are_copied_however_old_and_degraded(self, held: Copier, degraded: bool) -> None:
        decision = take(held, signal(CLOSE, 7), NOW_US * 1_000, degraded=degraded)
        assert outcome(decision) == (Action.COPY, Reason.NONE, 0)
        assert not held.account.holdings

    def test_a_partial_close_scales_and_never_enlarges(self) -> None:
        client = copier(volume_multiplier_e4=5_000)
        take(client, signal(OPEN, 7))
        partial = pb.SIGNAL_KIND_PARTIAL_CLOSE
        decision = take(client, signal(partial, 7, volume_lots_e8=lots("0.06")))
        assert outcome(decision) == (Action.RESIZE, Reason.MULTIPLIER, lots("0.03"))
        decision = take(client, signal(partial, 7, volume_lots_e8=lots("0.08")))
        assert decision.volume_lots_e8 == lots("0.03")

    def test_a_rest_below_the_least_volume_is_closed(self) -> None:
        client = copier(volume_multiplier_e4=5_000)
        take(client, signal(OPEN, 7))
        decision = take(client, signal(pb.SIGNAL_KIND_PARTIAL_CLOSE, 7, volume_lots_e8=lots("0.01")))
        assert decision.volume_lots_e8 == 0
        assert not list(client.account.held())
        assert take(client, signal(CLOSE, 7)).reason is Reason.NOT_HELD
        assert not client.account.holdings

    @pytest.mark.parametrize(
        "kind",
        [CLOSE, pb.SIGNAL_KIND_MODIFY, pb.SIGNAL_KIND_PARTIAL_CLOSE, pb.SIGNAL_KIND_CLOSE_BY],
    )
    def test_what_is_not_held_is_skipped(self, kind: pb.SignalKind.ValueType) -> None:
        decision = take(copier(), signal(kind, 7, opposite_position_id=8))
        assert outcome(decision) == (Action.SKIP, Reason.NOT_HELD, 0)

    @pytest.mark.parametrize("kind", [CLOSE, pb.SIGNAL_KIND_MODIFY, pb.SIGNAL_KIND_PARTIAL_CLOSE])
    def test_what_the_user_closed_is_skipped(self, held: Copier, kind: pb.SignalKind.ValueType) -> None:
        assert held.account.closed_by_user(7)
        assert not held.account.closed_by_user(7)
        assert take(held, signal(kind, 7)).reason is Reason.CLOSED_BY_USER

    def test_what_the_user_closed_is_not_opened_by_an_enlargement(self, held: Copier) -> None:
        held.account.closed_by_user(7)
        enlarged = signal(OPEN, 7, volume_lots_e8=lots("0.5"), occurred_at_us=NOW_US)
        assert outcome(take(held, enlarged)) == (Action.SKIP, Reason.CLOSED_BY_USER, 0)

    def test_modify_copies_the_stops(self, held: Copier) -> None:
        decision = take(held, signal(pb.SIGNAL_KIND_MODIFY, 7, stop_loss_e8=5, take_profit_e8=6))
        assert (decision.action, decision.stop_loss_e8, decision.take_profit_e8) == (Action.COPY, 5, 6)

    def test_degraded_only_a_tightened_stop_is_copied(self, held: Copier) -> None:
        modify = pb.SIGNAL_KIND_MODIFY
        assert take(held, signal(modify, 7, stop_loss_e8=5), degraded=True).action is Action.COPY
        assert take(held, signal(modify, 7, stop_loss_e8=4), degraded=True).reason is Reason.DEGRADED
        assert take(held, signal(modify, 7, stop_loss_e8=6), degraded=True).action is Action.COPY

    @pytest.mark.parametrize(
        ("side", "old", "new", "expected"),
        [
            (pb.SIDE_BUY, 0, 0, True), (pb.SIDE_BUY, 0, 5, True), (pb.SIDE_BUY, 5, 0, False),
            (pb.SIDE_BUY, 5, 6, True), (pb.SIDE_BUY, 5, 4, False), (pb.SIDE_SELL, 5, 4, True),
            (pb.SIDE_SELL, 5, 6, False), (pb.SIDE_SELL, 0, 6, True), (pb.SIDE_SELL, 6, 0, False),
        ],
    )  # fmt: skip
    def test_tightening(self, side: int, old: int, new: int, expected: bool) -> None:
        assert tightens(side, old, new) is expected

    def test_close_by_with_both_held(self) -> None:
        client = copier()
        take(client, signal(OPEN, 7, volume_lots_e8=lots("0.30")))
        take(client, signal(OPEN, 8, side=pb.SIDE_SELL))
        by = signal(pb.SIGNAL_KIND_CLOSE_BY, 7, opposite_position_id=8, volume_lots_e8=lots("0.20"))
        decision = take(client, by)
        assert (decision.action, decision.volume_lots_e8) == (Action.COPY, lots("0.20"))
        assert decision.opposite_volume_lots_e8 == 0
        assert [one.position_id for one in client.account.held()] == [7]

    def test_close_by_with_only_one_held_brings_it_down(self) -> None:
        client = copier(sides=frozenset({pb.SIDE_BUY}))
        take(client, signal(OPEN, 7, volume_lots_e8=lots("0.30")))
        take(client, signal(OPEN, 8, side=pb.SIDE_SELL))
        by = signal(pb.SIGNAL_KIND_CLOSE_BY, 8, opposite_position_id=7, volume_lots_e8=lots("0.20"))
        decision = take(client, by)
        assert (decision.volume_lots_e8, decision.opposite_volume_lots_e8) == (0, lots("0.20"))
        assert list(differences(client, client.mirror)) == []


class TestNetting:
    def test_a_refused_opening_may_come_back_with_the_next_total(self) -> None:
        client = copier(max_signal_age_ms=1)
        assert take(client, signal(OPEN, 7), NOW_US * 9).reason is Reason.LATENCY
        total = signal(OPEN, 7, volume_lots_e8=lots("0.3"), occurred_at_us=NOW_US * 9)
        assert outcome(take(client, total, NOW_US * 9)) == (Action.COPY, Reason.NONE, lots("0.3"))

    @pytest.mark.parametrize(
        ("degraded", "stop", "moves"),
        [(False, 5, True), (False, 20, True), (True, 5, False), (True, 20, True)],
    )
    def test_a_refused_enlargement_follows_the_stops(self, degraded: bool, stop: int, moves: bool) -> None:
        """While signals are missing only where the stop tightens."""
        client = Copier(CopySettings(), protection=lambda _one, _decision: Reason.NONE)
        take(client, signal(OPEN, 7, stop_loss_e8=10))
        refusing = Copier(
            CopySettings(), Book(), client.account, protection=lambda _one, _decision: Reason.SPREAD
        )
        larger = signal(OPEN, 7, volume_lots_e8=lots("0.3"), stop_loss_e8=stop)
        decision = take(refusing, larger, degraded=degraded)
        reason = Reason.DEGRADED if degraded else Reason.SPREAD
        assert outcome(decision) == (Action.RESIZE if moves else Action.SKIP, reason, lots("0.10"))
        assert refusing.account.holdings[7].stop_loss_e8 == (stop if moves else 10)
        again = copier()
        take(again, signal(OPEN, 7, stop_loss_e8=10))
        again.replay(sequenced(larger), decision.action, decision.reason)
        assert again.account == refusing.account

    def test_a_refused_enlargement_keeps_what_is_held(self) -> None:
        client = copier(max_signal_age_ms=1)
        take(client, signal(OPEN, 7))
        decision = take(client, signal(OPEN, 7, volume_lots_e8=lots("0.3")), NOW_US * 9)
        assert outcome(decision) == (Action.SKIP, Reason.LATENCY, lots("0.10"))
        assert list(differences(client, client.mirror)) == []

    def test_a_refused_reversal_still_leaves_the_old_side(self) -> None:
        client = copier(max_signal_age_ms=1)
        take(client, signal(OPEN, 7))
        decision = take(client, signal(OPEN, 7, side=pb.SIDE_SELL), NOW_US * 9)
        assert outcome(decision) == (Action.RESIZE, Reason.LATENCY, 0)
        assert not list(client.account.held())

    def test_a_reduction_is_copied_however_old(self) -> None:
        client = copier(max_signal_age_ms=1)
        take(client, signal(OPEN, 7))
        decision = take(client, signal(OPEN, 7, volume_lots_e8=lots("0.04")), NOW_US * 9, degraded=True)
        assert decision.volume_lots_e8 == lots("0.04")


class TestPendingOrders:
    def test_an_order_lives_like_the_masters(self) -> None:
        client = copier()
        assert take(client, place()).order_type == pb.ORDER_TYPE_LIMIT
        changed = signal(pb.SIGNAL_KIND_PENDING_MODIFY, 0, order_id=3, price_e8=5, expires_at_us=6)
        assert take(client, changed).price_e8 == 5
        assert take(client, signal(pb.SIGNAL_KIND_PENDING_CANCEL, 0, order_id=3)).action is Action.COPY
        assert not client.account.orders

    @pytest.mark.parametrize(
        ("order_type", "turned"),
        [
            (pb.ORDER_TYPE_LIMIT, pb.ORDER_TYPE_STOP),
            (pb.ORDER_TYPE_STOP, pb.ORDER_TYPE_LIMIT),
        ],
    )
    def test_reversed_a_limit_is_a_stop(
        self, order_type: pb.OrderType.ValueType, turned: pb.OrderType.ValueType
    ) -> None:
        decision = take(copier(reverse=True), place(order_type))
        assert (decision.order_type, decision.side) == (turned, pb.SIDE_SELL)

    def test_a_stop_limit_has_no_reverse(self) -> None:
        decision = take(copier(reverse=True), place(pb.ORDER_TYPE_STOP_LIMIT))
        assert decision.reason is Reason.NOT_REPRESENTABLE

    def test_without_pending_orders_the_fill_is_a_market_order(self) -> None:
        client = copier(copy_pending=False)
        assert take(client, place()).reason is Reason.KIND_FILTER
        cancelled = signal(pb.SIGNAL_KIND_PENDING_MODIFY, 0, order_id=3)
        assert take(client, cancelled).reason is Reason.NOT_HELD
        fill = signal(pb.SIGNAL_KIND_PENDING_FILL, 9, order_id=3)
        assert outcome(take(client, fill)) == (Action.COPY, Reason.NONE, lots("0.10"))

    def test_the_accounts_own_order_fills_however_late_the_news(self) -> None:
        client = copier(max_signal_age_ms=1)
        take(client, place())
        fill = signal(pb.SIGNAL_KIND_PENDING_FILL, 9, order_id=3)
        assert take(client, fill, NOW_US * 9, degraded=True).action is Action.COPY

    def test_a_fill_without_an_order_is_as_old_as_any_opening(self) -> None:
        fill = signal(pb.SIGNAL_KIND_PENDING_FILL, 9, order_id=3)
        assert take(copier(max_signal_age_ms=1), fill, NOW_US * 9).reason is Reason.LATENCY

    def test_what_the_user_cancelled_does_not_fill(self) -> None:
        client = copier()
        take(client, place())
        assert client.account.order_cancelled_by_user(3)
        fill = signal(pb.SIGNAL_KIND_PENDING_FILL, 9, order_id=3)
        assert take(client, fill).reason is Reason.CLOSED_BY_USER
        assert client.account.holdings[9].state is HoldingState.CLOSED_BY_USER

    def test_degraded_orders_are_neither_placed_nor_moved_but_cancelled(self) -> None:
        client = copier()
        assert take(client, place(), degraded=True).reason is Reason.DEGRADED
        take(client, place())
        moved = signal(pb.SIGNAL_KIND_PENDING_MODIFY, 0, order_id=3, price_e8=5)
        assert take(client, moved, degraded=True).reason is Reason.DEGRADED
        cancel = signal(pb.SIGNAL_KIND_PENDING_CANCEL, 0, order_id=3)
        assert take(client, cancel, degraded=True).action is Action.COPY
