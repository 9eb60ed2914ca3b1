"""Three ways to trade one symbol, pure: each takes the next price and returns the signals of what it did.

They are lively rather than profitable: together they use every kind of signal, in hedging and netting accounts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from execution.common.v1 import signal_pb2
from mesh.demo.account import BUY, HEDGING, NETTING, SELL, Account, Position, opposite

PIP_E8 = 10_000
LOT_E8 = 100_000_000
UNIT_E8 = LOT_E8 // 10

Signals = list[signal_pb2.Signal]


class Strategy(ABC):
    """Trades one account. `account.now_us` is set by the caller before each tick."""

    name: str
    account: Account

    @abstractmethod
    def on_tick(self, price_e8: int) -> Signals:
        """What was done at this price, in order; often nothing."""


def moved(side: signal_pb2.Side.ValueType, from_e8: int, to_e8: int) -> int:
    """How far the price moved in favour of a position, in 1e-8."""
    return to_e8 - from_e8 if side == BUY else from_e8 - to_e8


class TrendFollower(Strategy):
    """Netting: goes with the faster of two averages, enlarges, reduces, reverses, and trails its stop."""

    name = "trend"
    units_max = 3

    def __init__(self) -> None:
        self.account = Account(NETTING)
        self._fast: deque[int] = deque(maxlen=6)
        self._slow: deque[int] = deque(maxlen=24)

    def on_tick(self, price_e8: int) -> Signals:
        """One step towards the units that the averages ask for; then the stop follows the price."""
        self._fast.append(price_e8)
        self._slow.append(price_e8)
        if len(self._slow) < self._slow.maxlen:  # type: ignore[operator]  # maxlen was given above
            return []
        lead = sum(self._fast) // len(self._fast) - sum(self._slow) // len(self._slow)
        wanted = max(-self.units_max, min(self.units_max, lead // (4 * PIP_E8)))
        return self._towards(wanted, price_e8) + self._trail(price_e8)

    def _towards(self, wanted: int, price_e8: int) -> Signals:
        held = next(iter(self.account.positions.values()), None)
        side, volume = (BUY, wanted * UNIT_E8) if wanted > 0 else (SELL, -wanted * UNIT_E8)
        if held is None:
            return [self.account.open(side, volume, price_e8)] if wanted else []
        if not wanted:
            return [self.account.close(held.position_id, price_e8)]
        if held.side == side and volume == held.volume_lots_e8:
            return []
        if held.side == side and volume < held.volume_lots_e8:
            return [self.account.reduce(held.position_id, volume, price_e8)]
        if held.side == side:
            return [self.account.enlarge(held.position_id, volume, price_e8)]
        return [self.account.close(held.position_id, price_e8), self.account.open(side, volume, price_e8)]

    def _trail(self, price_e8: int) -> Signals:
        signals: Signals = []
        for position in list(self.account.positions.values()):
            distance = 60 * PIP_E8
            stop = price_e8 - distance if position.side == BUY else price_e8 + distance
            if position.stop_loss_e8 and moved(position.side, position.stop_loss_e8, stop) < 5 * PIP_E8:
                continue
            signals.append(self.account.modify(position.position_id, stop_loss_e8=stop, take_profit_e8=0))
        return signals


class MeanReversion(Strategy):
    """Hedging: builds a ladder against each move, halves at the first target, closes or closes by at the second."""

    name = "reversion"
    positions_max = 10

    def __init__(self) -> None:
        self.account = Account(HEDGING)
        self._prices: deque[int] = deque(maxlen=16)
        self._last_entry_e8 = 0

    def on_tick(self, price_e8: int) -> Signals:
        """Takes what reached its target, nets what stands against each other, and then perhaps opens."""
        self._prices.append(price_e8)
        if len(self._prices) < 4:
            return []
        return self._harvest(price_e8) + self._net(price_e8) + self._enter(price_e8)

    def _harvest(self, price_e8: int) -> Signals:
        signals: Signals = []
        for position in list(self.account.positions.values()):
            gain = moved(position.side, position.price_e8, price_e8)
            if gain >= 16 * PIP_E8 or gain <= -40 * PIP_E8:
                signals.append(self.account.close(position.position_id, price_e8))
            elif gain >= 8 * PIP_E8 and position.volume_lots_e8 == UNIT_E8:
                signals.append(self.account.reduce(position.position_id, UNIT_E8 // 2, price_e8))
                signals.append(self._protect(position))
        return signals

    def _protect(self, position: Position) -> signal_pb2.Signal:
        return self.account.modify(position.position_id, stop_loss_e8=position.price_e8, take_profit_e8=0)

    def _net(self, price_e8: int) -> Signals:
        longs = [p for p in self.account.positions.values() if p.side == BUY]
        shorts = [p for p in self.account.positions.values() if p.side == SELL]
        if len(longs) < 2 or len(shorts) < 2:
            return []
        return [self.account.close_by(longs[0].position_id, shorts[0].position_id, price_e8)]

    def _enter(self, price_e8: int) -> Signals:
        away = price_e8 - sum(self._prices) // len(self._prices)
        far_from_last = abs(price_e8 - self._last_entry_e8) >= 4 * PIP_E8
        if abs(away) < 3 * PIP_E8 or not far_from_last or len(self.account.positions) >= self.positions_max:
            return []
        self._last_entry_e8 = price_e8
        side = SELL if away > 0 else BUY
        stop = price_e8 + (50 if side == SELL else -50) * PIP_E8
        return [self.account.open(side, UNIT_E8, price_e8, stop_loss_e8=stop)]


class Breakout(Strategy):
    """Hedging: straddles the price with pending orders, moves or cancels them, rides what fills to stop or target."""

    name = "breakout"
    positions_max = 6

    def __init__(self) -> None:
        self.account = Account(HEDGING)
        self._age_ticks = 0

    def on_tick(self, price_e8: int) -> Signals:
        """Fills first, then stops and targets, then the straddle's upkeep."""
        self._age_ticks += 1
        return self._fill(price_e8) + self._exit(price_e8) + self._straddle(price_e8)

    def _fill(self, price_e8: int) -> Signals:
        signals: Signals = []
        for order in list(self.account.orders.values()):
            with_the_move = order.order_type == signal_pb2.ORDER_TYPE_STOP
            trigger_side = order.side if with_the_move else opposite(order.side)
            if moved(trigger_side, order.price_e8, price_e8) >= 0:
                signals.append(self.account.fill(order.order_id, order.price_e8))
        return signals

    def _exit(self, price_e8: int) -> Signals:
        signals: Signals = []
        for position in list(self.account.positions.values()):
            stopped = position.stop_loss_e8 and moved(position.side, position.stop_loss_e8, price_e8) <= 0
            reached = position.take_profit_e8 and moved(position.side, position.take_profit_e8, price_e8) >= 0
            if stopped or reached:
                exit_price = position.stop_loss_e8 if stopped else position.take_profit_e8
                signals.append(self.account.close(position.position_id, exit_price))
        return signals

    def _straddle(self, price_e8: int) -> Signals:
        if not self.account.orders:
            self._age_ticks = 0
            full = len(self.account.positions) >= self.positions_max
            return (
                []
                if full
                else [self._order(side, price_e8, number) for number, side in enumerate((BUY, SELL, BUY))]
            )
        if self._age_ticks >= 6:
            return [self.account.cancel(order_id) for order_id in list(self.account.orders)]
        if self._age_ticks % 3:
            return []
        return [self._move(order_id, price_e8) for order_id in list(self.account.orders)]

    def _order(self, side: signal_pb2.Side.ValueType, price_e8: int, number: int) -> signal_pb2.Signal:
        limit = number == 2
        sign = (1 if side == BUY else -1) * (-1 if limit else 1)
        at = price_e8 + sign * 8 * PIP_E8
        stop, target = self._exits(side, at)
        order_type = signal_pb2.ORDER_TYPE_LIMIT if limit else signal_pb2.ORDER_TYPE_STOP
        return self.account.place(side, order_type, UNIT_E8, at, stop_loss_e8=stop, take_profit_e8=target)

    def _move(self, order_id: int, price_e8: int) -> signal_pb2.Signal:
        order = self.account.orders[order_id]
        sign = 1 if order.price_e8 > price_e8 else -1
        at = price_e8 + sign * 7 * PIP_E8
        stop, target = self._exits(order.side, at)
        return self.account.move_order(order_id, price_e8=at, stop_loss_e8=stop, take_profit_e8=target)

    @staticmethod
    def _exits(side: signal_pb2.Side.ValueType, at_e8: int) -> tuple[int, int]:
        sign = 1 if side == BUY else -1
        return at_e8 - sign * 12 * PIP_E8, at_e8 + sign * 15 * PIP_E8


STRATEGIES: tuple[type[Strategy], ...] = (TrendFollower, MeanReversion, Breakout)
