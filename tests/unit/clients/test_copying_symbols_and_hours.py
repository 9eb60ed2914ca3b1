"""Symbols with steps and slippages of their own, and hours that follow a place's clock through the year."""

from __future__ import annotations

import datetime

import pytest

from ecp_client.copying import (
    Action,
    Copier,
    CopySettings,
    Hours,
    Reason,
    SymbolRules,
    differences,
    explain,
)
from ecp_client.errors import SettingsError
from ecp_client.signals import PARTIAL_CLOSE
from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.copied import OPEN, outcome, place, sync, take
from tests.unit.clients.made import lots, price, signal

RULES = {
    "US30.cash": SymbolRules(
        volume_step_e8=lots("0.1"), volume_min_e8=lots("0.2"), max_slippage_e8=price("5")
    ),
    "USDJPY": SymbolRules(volume_max_e8=lots("0.05"), max_slippage_e8=price("0.020")),
}


def copier(quote: tuple[str, str] | None = None, **settings: object) -> Copier:
    given = None if quote is None else (price(quote[0]), price(quote[1]))
    values: dict[str, object] = {
        "symbol_map": {"US30": "US30.cash"},
        "symbol_rules": RULES,
        "max_slippage_e8": price("0.00030"),
    }
    return Copier(CopySettings(**{**values, **settings}), quotes=lambda _symbol: given)


def index(kind: pb.SignalKind.ValueType = OPEN, **more: object) -> pb.Signal:
    return signal(
        kind, 1, **{"symbol": "US30", "volume_lots_e8": lots("0.57"), "price_e8": price("39000"), **more}
    )


class TestSymbols:
    def test_each_symbol_has_its_own_step_and_least_volume(self) -> None:
        client = copier()
        assert outcome(take(client, index())) == (Action.RESIZE, Reason.MULTIPLIER, lots("0.5"))
        assert outcome(take(client, signal(OPEN, 2, volume_lots_e8=lots("0.57")))) == (
            Action.COPY,
            Reason.NONE,
            lots("0.57"),
        )
        assert list(differences(client, client.mirror)) == []
        assert not sync(client, index(), signal(OPEN, 2, volume_lots_e8=lots("0.57")))

    def test_what_remains_is_rounded_by_it_too(self) -> None:
        client = copier()
        take(client, index())
        left = take(client, index(PARTIAL_CLOSE, volume_lots_e8=lots("0.39")))
        assert outcome(left) == (Action.RESIZE, Reason.MULTIPLIER, lots("0.3"))
        gone = index(PARTIAL_CLOSE, volume_lots_e8=lots("0.19"))
        decision = take(client, gone)
        assert outcome(decision) == (Action.RESIZE, Reason.VOLUME_MIN, 0)
        assert explain(gone, decision, client.settings).endswith("less than 0.2 lots would remain.")

    def test_orders_and_largest_volumes_follow_it(self) -> None:
        client = copier()
        one = place(symbol="USDJPY", price_e8=price("150.000"))
        decision = take(client, one)
        assert outcome(decision) == (Action.RESIZE, Reason.VOLUME_MAX, lots("0.05"))
        assert explain(one, decision, client.settings).endswith("no position may exceed 0.05 lots.")

    @pytest.mark.parametrize(
        ("one", "quote", "reason"),
        [
            (signal(OPEN, 1), ("1.10020", "1.10030"), Reason.NONE),
            (signal(OPEN, 1), ("1.10021", "1.10031"), Reason.SLIPPAGE),
            (
                signal(OPEN, 1, symbol="USDJPY", price_e8=price("150.000")),
                ("150.010", "150.020"),
                Reason.NONE,
            ),
            (
                signal(OPEN, 1, symbol="USDJPY", price_e8=price("150.000")),
                ("150.011", "150.021"),
                Reason.SLIPPAGE,
            ),
            (index(), ("39003", "39005"), Reason.NONE),
            (index(), ("39004", "39006"), Reason.SLIPPAGE),
        ],
    )
    def test_slippage_is_in_the_units_of_each_symbols_price(
        self, one: pb.Signal, quote: tuple[str, str], reason: Reason
    ) -> None:
        client = copier(quote)
        decision = take(client, one)
        assert (decision.reason if decision.action is Action.SKIP else Reason.NONE) is reason

    def test_the_slippage_that_counts_is_named(self) -> None:
        client = copier(("39004", "39006"))
        one = index()
        said = explain(one, take(client, one), client.settings)
        assert said.endswith("worse than the master's by more than 5.")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"volume_step_e8": 0},
            {"volume_min_e8": -1},
            {"volume_step_e8": 0.1},
            {"volume_max_e8": 5},
            {"max_slippage_e8": -1},
        ],
    )
    def test_rules_that_cannot_work_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(SettingsError):
            SymbolRules(**wrong)

    def test_rules_are_rules(self) -> None:
        with pytest.raises(SettingsError, match="symbol_rules"):
            CopySettings(symbol_rules={"EURUSD": {"volume_step_e8": 1}})


def at(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp()) * 1_000_000


class TestPlaces:
    NEW_YORK = Hours(9 * 60 + 30, 16 * 60, frozenset(range(5)), "America/New_York")

    @pytest.mark.parametrize(
        ("moment", "holds"),
        [
            ("2026-01-05T14:29:59+00:00", False),
            ("2026-01-05T14:30:00+00:00", True),
            ("2026-01-05T20:59:59+00:00", True),
            ("2026-01-05T21:00:00+00:00", False),
            # In summer it is four hours behind, not five.
            ("2026-07-06T13:29:59+00:00", False),
            ("2026-07-06T13:30:00+00:00", True),
            ("2026-07-06T20:00:00+00:00", False),
            # Saturday, and a Sunday evening that is Monday in UTC.
            ("2026-01-10T15:00:00+00:00", False),
            ("2026-01-05T01:00:00+00:00", False),
        ],
    )
    def test_hours_follow_the_clock_of_the_place(self, moment: str, holds: bool) -> None:
        assert self.NEW_YORK.hold(at(moment)) is holds

    @pytest.mark.parametrize(
        ("moment", "holds"),
        [
            ("2026-01-04T22:00:00+00:00", True),
            ("2026-01-05T03:59:59+00:00", True),
            ("2026-01-05T04:00:00+00:00", False),
            # Begun on a Friday, which is not among the days.
            ("2026-01-10T01:00:00+00:00", False),
        ],
    )
    def test_a_night_belongs_to_the_evening_of_the_place(self, moment: str, holds: bool) -> None:
        """From 23:00 to 5:00 in Berlin, Sunday to Thursday."""
        night = Hours(23 * 60, 5 * 60, frozenset((6, 0, 1, 2, 3)), "Europe/Berlin")
        assert night.hold(at(moment)) is holds

    def test_the_hour_that_comes_twice_holds_twice_and_the_missing_one_never(self) -> None:
        two_to_three = Hours(2 * 60, 3 * 60, time_zone="Europe/Berlin")
        assert two_to_three.hold(at("2026-10-25T00:30:00+00:00"))
        assert two_to_three.hold(at("2026-10-25T01:30:00+00:00"))
        assert not any(two_to_three.hold(at(f"2026-03-29T0{hour}:30:00+00:00")) for hour in range(5))

    @pytest.mark.parametrize("name", ["Europe/Atlantis", "", "../etc/passwd", "CET+1 hour"])
    def test_a_place_that_there_is_not_is_refused(self, name: str) -> None:
        with pytest.raises(SettingsError, match="time_zone"):
            Hours(0, 60, time_zone=name)
