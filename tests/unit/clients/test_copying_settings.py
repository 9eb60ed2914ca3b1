"""Settings of copying: which are refused, how volumes are found, when positions are opened, and why, in words."""

from __future__ import annotations

import dataclasses

import pytest

from ecp_client.account import Account, HoldingState
from ecp_client.copying import (
    Action,
    Copier,
    CopySettings,
    Decision,
    Hours,
    Reason,
    Scale,
    Scaling,
    differences,
    explain,
)
from ecp_client.errors import SettingsError
from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.copied import CLOSE, NOW_US, OPEN, copier, outcome, place, sync, take
from tests.unit.clients.made import lots, price, sequenced, signal


class TestSettings:
    @pytest.mark.parametrize(
        "settings",
        [
            {"volume_multiplier_e4": 0},
            {"volume_step_e8": 0},
            {"volume_min_e8": -1},
            {"max_signal_age_ms": -1},
            {"volume_min_e8": 10, "volume_max_e8": 5},
            {"scaling": Scaling.FIXED},
            {"volume_fixed_e8": 5},
            {"scaling": Scaling.RISK},
            {"scaling": Scaling.RISK, "risk_bps": 10_001},
            {"risk_bps": 5},
            {"volume_multiplier_e4": 0.5},
            {"volume_multiplier_e4": True},
            {"max_slippage_e8": 0.0003},
            {"scaling": Scaling.RISK, "risk_bps": 1.5},
            {"symbols": "EURUSD"},
            {"symbols_excluded": "EURUSD"},
            {"symbol_map": None},
            {"sides": frozenset({"BUY"})},
            {"hours": Hours(0, 60)},
            {"scaling": "fixed", "volume_fixed_e8": 5},
            {"volume_max_e8": 500_000, "volume_min_e8": 0},
        ],
    )
    def test_bad_values_are_refused(self, settings: dict[str, object]) -> None:
        with pytest.raises(SettingsError):
            CopySettings(**settings)

    def test_a_signal_of_a_later_versions_kind_is_explained(self) -> None:
        client = copier()
        one = signal(200, 7)
        said = explain(one, take(client, one), client.settings)
        assert said == "Skipped signal of kind 200 of EURUSD #7: this kind of signal is not copied."

    @pytest.mark.parametrize(
        ("reason", "why"),
        [
            (Reason.LATENCY, "it came too late"),
            (Reason.VOLUME_MAX, "the volume is too large"),
            (Reason.SLIPPAGE, "the price has moved too far"),
        ],
    )
    def test_a_limit_that_is_not_set_is_not_named(self, reason: Reason, why: str) -> None:
        """A protection of the application may give any reason."""
        said = explain(signal(OPEN, 7), Decision(Action.SKIP, reason), CopySettings())
        assert said == f"Skipped open of EURUSD #7: {why}."

    def test_every_reason_is_explained(self) -> None:
        settings = CopySettings(max_signal_age_ms=5, max_slippage_e8=7)
        one = signal(OPEN, 7)
        said = {explain(one, Decision(Action.SKIP, reason), settings) for reason in Reason}
        assert len(said) == len(Reason)
        assert all(sentence.startswith("Skipped open of EURUSD #7: ") for sentence in said)

    def test_a_copy_and_a_resize_are_explained(self) -> None:
        client = copier(volume_multiplier_e4=5_000)
        one = signal(OPEN, 7)
        assert explain(one, take(client, one), client.settings) == (
            "Resized open of EURUSD #7 to 0.05 lots (the master: 0.1): volume × 0.5, rounded down to 0.01 lots."
        )
        copied = take(copier(), one)
        assert explain(one, copied, CopySettings()) == "Copied open of EURUSD #7: 0.1 lots of EURUSD held."


EQUITY, MASTERS_EQUITY = 5_000 * 10**8, 20_000 * 10**8


def scaled(
    scaling: Scaling, *, equity: int | None = EQUITY, value: int | None = 100_000 * 10**8, **settings: object
) -> Copier:
    """A copier with sources of equity, and of what a lot of EURUSD is worth: 100,000 for each 1.0."""
    chosen = CopySettings(scaling=scaling, **settings)
    made = Copier(chosen, equity=lambda: equity, point_value=lambda _symbol: value)
    made.mirror.equity_e8 = MASTERS_EQUITY
    return made


class TestScaling:
    def test_a_fixed_volume_is_the_same_for_every_position_and_halves_with_the_masters(self) -> None:
        client = scaled(Scaling.FIXED, volume_fixed_e8=lots("0.30"))
        for ticket, volume in ((7, "0.10"), (8, "2.00")):
            decision = take(client, signal(OPEN, ticket, volume_lots_e8=lots(volume)))
            assert outcome(decision) == (Action.RESIZE, Reason.FIXED_VOLUME, lots("0.30"))
        half = signal(pb.SIGNAL_KIND_PARTIAL_CLOSE, 8, volume_lots_e8=lots("1.00"))
        assert outcome(take(client, half)) == (Action.RESIZE, Reason.FIXED_VOLUME, lots("0.15"))

    def test_in_proportion_to_equity(self) -> None:
        client = scaled(Scaling.EQUITY)
        decision = take(client, signal(OPEN, 7, volume_lots_e8=lots("1.00")))
        assert outcome(decision) == (Action.RESIZE, Reason.EQUITY, lots("0.25"))
        client = scaled(Scaling.EQUITY, volume_multiplier_e4=20_000)
        assert take(client, signal(OPEN, 7, volume_lots_e8=lots("1.00"))).volume_lots_e8 == lots("0.50")

    def test_by_what_the_stop_may_cost(self) -> None:
        """One percent of 5,000 is 50; a lot loses 500 from 1.1 to 1.095."""
        one = signal(OPEN, 7, volume_lots_e8=lots("3"), stop_loss_e8=price("1.095"))
        assert outcome(take(scaled(Scaling.RISK, risk_bps=100), one)) == (
            Action.RESIZE,
            Reason.RISK,
            lots("0.10"),
        )
        in_reverse = scaled(Scaling.RISK, risk_bps=100, reverse=True)
        one = signal(OPEN, 7, take_profit_e8=price("1.125"), stop_loss_e8=price("1.095"))
        assert take(in_reverse, one).volume_lots_e8 == lots("0.02")

    @pytest.mark.parametrize(
        ("client", "reason"),
        [
            (scaled(Scaling.EQUITY, equity=None), Reason.NO_EQUITY),
            (Copier(CopySettings(scaling=Scaling.EQUITY)), Reason.NO_EQUITY),
            (scaled(Scaling.RISK, risk_bps=100, value=None), Reason.NO_EQUITY),
            (scaled(Scaling.RISK, risk_bps=100), Reason.NO_STOP),
        ],
    )
    def test_without_what_it_depends_on_nothing_is_opened(self, client: Copier, reason: Reason) -> None:
        stop = 0 if reason is Reason.NO_STOP else price("1.09")
        assert outcome(take(client, signal(OPEN, 7, stop_loss_e8=stop))) == (Action.SKIP, reason, 0)

    def test_a_master_whose_equity_is_not_known_is_not_copied_in_proportion(self) -> None:
        client = scaled(Scaling.EQUITY)
        client.mirror.equity_e8 = 0
        assert take(client, signal(OPEN, 7)).reason is Reason.NO_EQUITY

    def test_limits_count_for_every_scaling(self) -> None:
        client = scaled(Scaling.FIXED, volume_fixed_e8=lots("5"), volume_max_e8=lots("0.5"))
        assert outcome(take(client, signal(OPEN, 7))) == (Action.RESIZE, Reason.VOLUME_MAX, lots("0.5"))
        client = scaled(Scaling.FIXED, volume_fixed_e8=5)
        assert outcome(take(client, signal(OPEN, 7))) == (Action.SKIP, Reason.VOLUME_MIN, 0)

    def test_a_position_keeps_its_scale_whatever_equity_becomes(self) -> None:
        equity = EQUITY
        client = Copier(CopySettings(scaling=Scaling.EQUITY), equity=lambda: equity)
        client.mirror.equity_e8 = MASTERS_EQUITY
        take(client, signal(OPEN, 7, volume_lots_e8=lots("1.00")))
        equity = 10 * EQUITY
        restored = Account.from_json(client.account.to_json())
        assert restored == client.account
        half = signal(pb.SIGNAL_KIND_PARTIAL_CLOSE, 7, volume_lots_e8=lots("0.40"))
        assert take(client, half).volume_lots_e8 == lots("0.10")
        assert not sync(client, signal(OPEN, 7, volume_lots_e8=lots("0.40")))
        assert list(differences(client, client.mirror)) == []

    def test_an_order_gives_its_scale_to_what_it_opens(self) -> None:
        equity = EQUITY
        client = Copier(CopySettings(scaling=Scaling.EQUITY), equity=lambda: equity)
        client.mirror.equity_e8 = MASTERS_EQUITY
        take(client, place(volume_lots_e8=lots("1.00")))
        equity = 10 * EQUITY
        fill = signal(pb.SIGNAL_KIND_PENDING_FILL, 7, order_id=3, volume_lots_e8=lots("1.00"))
        assert take(client, fill).volume_lots_e8 == lots("0.25")

    def test_a_replay_repeats_the_volume_that_was_decided(self) -> None:
        one = sequenced(signal(OPEN, 7, volume_lots_e8=lots("1.00")))
        first = scaled(Scaling.EQUITY)
        decision = first.take(one, NOW_US)
        second = scaled(Scaling.EQUITY, equity=10 * EQUITY)
        second.replay(one, decision.action, decision.reason, decision.scale)
        assert second.account == first.account

    @pytest.mark.parametrize("text", ["", "1", "1/0", "-1/2", "a/b"])
    def test_what_is_no_scale_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r".*"):
            Scale.from_text(text)


class TestHours:
    MONDAY_10_00_US = 1_704_708_000 * 1_000_000  # 2024-01-08

    @pytest.mark.parametrize(
        ("hours", "opens"),
        [
            (Hours(600, 601), True),
            (Hours(601, 700), False),
            (Hours(540, 600), False),
            (Hours(0, 1_440, frozenset({0})), True),
            (Hours(0, 1_440, frozenset({1})), False),
            (Hours(1_380, 601), True),
            (Hours(1_380, 600), False),
            (Hours(1_380, 601, frozenset({6})), True),
            (Hours(1_380, 601, frozenset({0})), False),
            (Hours(599, 540, frozenset({0})), True),
        ],
    )
    def test_positions_are_opened_within_and_always_closed(self, hours: Hours, opens: bool) -> None:
        client = copier(hours=(hours,))
        at = {"occurred_at_us": self.MONDAY_10_00_US}
        decision = take(client, signal(OPEN, 7, **at))
        assert decision.reason is (Reason.NONE if opens else Reason.TIME_FILTER)
        take(client, signal(OPEN, 8, occurred_at_us=0), self.MONDAY_10_00_US)
        client.account.holdings[9] = dataclasses.replace(
            client.account.holdings[7], position_id=9, state=HoldingState.HELD
        )
        assert take(client, signal(CLOSE, 9, **at)).action is Action.COPY

    def test_an_order_that_fills_outside_is_the_accounts_own(self) -> None:
        client = copier(hours=(Hours(600, 601),))
        take(client, place(occurred_at_us=self.MONDAY_10_00_US))
        later = self.MONDAY_10_00_US + 3_600_000_000
        fill = signal(pb.SIGNAL_KIND_PENDING_FILL, 7, order_id=3, occurred_at_us=later)
        assert take(client, fill).action is Action.COPY

    @pytest.mark.parametrize(
        ("begin", "end", "weekdays"),
        [(-1, 5, {1}), (0, 1_441, {1}), (5, 5, {1}), (0, 5, set()), (0, 5, {7})],
    )
    def test_bad_hours_are_refused(self, begin: int, end: int, weekdays: set[int]) -> None:
        with pytest.raises(SettingsError):
            Hours(begin, end, frozenset(weekdays))
