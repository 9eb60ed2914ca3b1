"""The demo's traders: real prices, every kind of signal, and accounts that agree with a plain replay."""

from __future__ import annotations

import itertools

import pytest

from execution.common.v1 import signal_pb2
from mesh.demo import prices
from mesh.demo.account import BUY, HEDGING, NETTING, Account
from mesh.demo.replay import Holdings, replay
from mesh.demo.strategies import STRATEGIES, Signals, Strategy

TICKS = 4_000


def trade(strategy: Strategy, ticks: int = TICKS) -> Signals:
    signals: Signals = []
    for price in itertools.islice(prices.ticks(prices.read_bars()), ticks):
        signals += strategy.on_tick(price)
    return signals


def test_bars_are_the_real_ones() -> None:
    bars = prices.read_bars()
    assert len(bars) == 5_000
    assert bars[0] == prices.Bar(107_160_000, 107_220_000, 107_083_000, 107_219_000)
    assert all(bar.low_e8 <= min(bar.open_e8, bar.close_e8) <= bar.high_e8 for bar in bars)


def test_ticks_go_on_after_the_last_bar() -> None:
    bars = prices.read_bars()[:3]
    path = [price for bar in bars for price in bar.path()]
    assert list(itertools.islice(prices.ticks(bars), 24)) == path * 2
    assert next(prices.ticks(bars, start=4)) == bars[1].open_e8


def test_a_row_that_is_no_bar_is_named(tmp_path) -> None:
    file = tmp_path / "bars.csv"
    file.write_text("time,Open,High,Low,Close\n2017,1.07,1.08,1.06,1.07\n2017,1.07,oops,1.06,1.07\n")
    with pytest.raises(ValueError, match="row 3"):
        prices.read_bars(file)


def test_together_the_strategies_use_every_kind_of_signal() -> None:
    kinds = {signal.kind for strategy in STRATEGIES for signal in trade(strategy())}
    assert kinds == set(signal_pb2.SignalKind.values()) - {signal_pb2.SIGNAL_KIND_UNSPECIFIED}
    assert {strategy().account.mode for strategy in STRATEGIES} == {HEDGING, NETTING}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_account_agrees_with_a_replay_of_its_signals(strategy: type[Strategy]) -> None:
    trader = strategy()
    for ticks in (1, 10, 100, 1_000):
        before = strategy()
        signals = trade(before, ticks)
        assert replay(signals) == Holdings.of_snapshot(before.account.snapshot(7, len(signals)))
    assert len(trade(trader)) > 500


def test_netting_account_holds_one_position_at_most() -> None:
    trader = STRATEGIES[0]()
    for price in itertools.islice(prices.ticks(prices.read_bars()), TICKS):
        trader.on_tick(price)
        assert len(trader.account.positions) <= 1


def test_a_hedging_account_enlarges_nothing() -> None:
    account = Account(HEDGING)
    opened = account.open(BUY, 100, 107_000_000)
    with pytest.raises(ValueError, match="netting"):
        account.enlarge(opened.position_id, 200, 107_000_000)
