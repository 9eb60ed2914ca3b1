"""A master's simulated trading account: each action changes it and returns the signal that tells of it.

It is kept apart from the client library's books on purpose: the reconciliation compares the two. Does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from execution.common.v1 import signal_pb2, snapshot_pb2

HEDGING = signal_pb2.ACCOUNT_MODE_HEDGING
NETTING = signal_pb2.ACCOUNT_MODE_NETTING
BUY = signal_pb2.SIDE_BUY
SELL = signal_pb2.SIDE_SELL


def opposite(side: signal_pb2.Side.ValueType) -> signal_pb2.Side.ValueType:
    """SELL for BUY and BUY for SELL."""
    return SELL if side == BUY else BUY


@dataclass(frozen=True, slots=True)
class Position:
    """An open position; prices and volumes in 1e-8, 0 for no stop or target."""

    position_id: int
    side: signal_pb2.Side.ValueType
    volume_lots_e8: int
    price_e8: int
    stop_loss_e8: int = 0
    take_profit_e8: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """A pending order; prices and volumes in 1e-8."""

    order_id: int
    side: signal_pb2.Side.ValueType
    order_type: signal_pb2.OrderType.ValueType
    volume_lots_e8: int
    price_e8: int
    stop_loss_e8: int
    take_profit_e8: int


@dataclass(slots=True)
class Account:
    """Positions and orders in one symbol. Tickets rise and are never reused."""

    mode: signal_pb2.AccountMode.ValueType
    symbol: str = "EURUSD"
    now_us: int = 0
    positions: dict[int, Position] = field(default_factory=dict)
    orders: dict[int, Order] = field(default_factory=dict)
    _ticket: int = 100_000

    def open(
        self,
        side: signal_pb2.Side.ValueType,
        volume_lots_e8: int,
        price_e8: int,
        *,
        stop_loss_e8: int = 0,
        take_profit_e8: int = 0,
    ) -> signal_pb2.Signal:
        """Opens a position with a new ticket."""
        position = Position(self._next_ticket(), side, volume_lots_e8, price_e8, stop_loss_e8, take_profit_e8)
        return self._opened(signal_pb2.SIGNAL_KIND_OPEN, position)

    def enlarge(self, position_id: int, volume_lots_e8: int, price_e8: int) -> signal_pb2.Signal:
        """Enlarges a netting position: afterwards it has this volume in all, and neither stop nor target."""
        position = self.positions[position_id]
        if self.mode != NETTING or volume_lots_e8 <= position.volume_lots_e8:
            raise ValueError("only netting accounts enlarge a position, and only to more than it has")
        changed = replace(
            position, volume_lots_e8=volume_lots_e8, price_e8=price_e8, stop_loss_e8=0, take_profit_e8=0
        )
        return self._opened(signal_pb2.SIGNAL_KIND_OPEN, changed)

    def modify(self, position_id: int, *, stop_loss_e8: int, take_profit_e8: int) -> signal_pb2.Signal:
        """Sets stop loss and take profit; 0 removes one."""
        changed = replace(
            self.positions[position_id], stop_loss_e8=stop_loss_e8, take_profit_e8=take_profit_e8
        )
        self.positions[position_id] = changed
        return self._of(
            changed, signal_pb2.SIGNAL_KIND_MODIFY, stop_loss_e8=stop_loss_e8, take_profit_e8=take_profit_e8
        )

    def close(self, position_id: int, price_e8: int) -> signal_pb2.Signal:
        """Closes a position whole."""
        position = self.positions.pop(position_id)
        return self._of(
            position, signal_pb2.SIGNAL_KIND_CLOSE, price_e8=price_e8, volume_lots_e8=position.volume_lots_e8
        )

    def reduce(self, position_id: int, remaining_lots_e8: int, price_e8: int) -> signal_pb2.Signal:
        """Closes a part; says what remains."""
        position = self.positions[position_id]
        if not 0 < remaining_lots_e8 < position.volume_lots_e8:
            raise ValueError(
                f"position {position_id}: {remaining_lots_e8} is not less than {position.volume_lots_e8}"
            )
        self.positions[position_id] = replace(position, volume_lots_e8=remaining_lots_e8)
        return self._of(
            position,
            signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE,
            price_e8=price_e8,
            volume_lots_e8=remaining_lots_e8,
        )

    def close_by(self, position_id: int, opposite_id: int, price_e8: int) -> signal_pb2.Signal:
        """Closes two opposite positions against each other; the larger one lives on with the difference."""
        one, other = self.positions.pop(position_id), self.positions.pop(opposite_id)
        if one.side == other.side:
            raise ValueError(f"positions {position_id} and {opposite_id} are on the same side")
        remaining = abs(one.volume_lots_e8 - other.volume_lots_e8)
        if remaining:
            larger = max(one, other, key=lambda position: position.volume_lots_e8)
            self.positions[larger.position_id] = replace(larger, volume_lots_e8=remaining)
        return self._of(
            one, signal_pb2.SIGNAL_KIND_CLOSE_BY, price_e8=price_e8, volume_lots_e8=remaining,
            opposite_position_id=opposite_id,
        )  # fmt: skip

    def place(
        self,
        side: signal_pb2.Side.ValueType,
        order_type: signal_pb2.OrderType.ValueType,
        volume_lots_e8: int,
        price_e8: int,
        *,
        stop_loss_e8: int,
        take_profit_e8: int,
    ) -> signal_pb2.Signal:
        """Places a pending order."""
        order = Order(
            self._next_ticket(), side, order_type, volume_lots_e8, price_e8, stop_loss_e8, take_profit_e8
        )
        self.orders[order.order_id] = order
        return self._of_order(order, signal_pb2.SIGNAL_KIND_PENDING_PLACE)

    def move_order(
        self, order_id: int, *, price_e8: int, stop_loss_e8: int, take_profit_e8: int
    ) -> signal_pb2.Signal:
        """Changes a pending order's prices."""
        order = replace(
            self.orders[order_id], price_e8=price_e8, stop_loss_e8=stop_loss_e8, take_profit_e8=take_profit_e8
        )
        self.orders[order_id] = order
        return self._of_order(order, signal_pb2.SIGNAL_KIND_PENDING_MODIFY)

    def cancel(self, order_id: int) -> signal_pb2.Signal:
        """Cancels a pending order."""
        return self._of_order(self.orders.pop(order_id), signal_pb2.SIGNAL_KIND_PENDING_CANCEL)

    def fill(self, order_id: int, price_e8: int) -> signal_pb2.Signal:
        """Fills a pending order: it becomes a position whose ticket is the order's, as in MetaTrader 5."""
        order = self.orders.pop(order_id)
        position = Position(
            order_id, order.side, order.volume_lots_e8, price_e8, order.stop_loss_e8, order.take_profit_e8
        )
        signal = self._opened(signal_pb2.SIGNAL_KIND_PENDING_FILL, position)
        signal.order_id, signal.order_type = order_id, order.order_type
        return signal

    def snapshot(self, master_id: int, sequence: int) -> snapshot_pb2.Snapshot:
        """Everything open, as of a sequence."""
        snapshot = snapshot_pb2.Snapshot(master_id=master_id, taken_at_us=self.now_us, account_mode=self.mode)
        snapshot.as_of.sequence = sequence
        for _, position in sorted(self.positions.items()):
            snapshot.positions.add(
                position_id=position.position_id, symbol=self.symbol, side=position.side,
                volume_lots_e8=position.volume_lots_e8, open_price_e8=position.price_e8,
                stop_loss_e8=position.stop_loss_e8, take_profit_e8=position.take_profit_e8,
            )  # fmt: skip
        for _, order in sorted(self.orders.items()):
            snapshot.orders.add(
                order_id=order.order_id, symbol=self.symbol, side=order.side, order_type=order.order_type,
                volume_lots_e8=order.volume_lots_e8, price_e8=order.price_e8,
                stop_loss_e8=order.stop_loss_e8, take_profit_e8=order.take_profit_e8,
            )  # fmt: skip
        return snapshot

    def _next_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def _opened(self, kind: signal_pb2.SignalKind.ValueType, position: Position) -> signal_pb2.Signal:
        self.positions[position.position_id] = position
        return self._of(
            position, kind, volume_lots_e8=position.volume_lots_e8, price_e8=position.price_e8,
            stop_loss_e8=position.stop_loss_e8, take_profit_e8=position.take_profit_e8,
        )  # fmt: skip

    def _of(
        self,
        position: Position,
        kind: signal_pb2.SignalKind.ValueType,
        *,
        price_e8: int = 0,
        volume_lots_e8: int = 0,
        stop_loss_e8: int = 0,
        take_profit_e8: int = 0,
        opposite_position_id: int = 0,
    ) -> signal_pb2.Signal:
        return signal_pb2.Signal(
            kind=kind, position_id=position.position_id, symbol=self.symbol, side=position.side, price_e8=price_e8,
            volume_lots_e8=volume_lots_e8, stop_loss_e8=stop_loss_e8, take_profit_e8=take_profit_e8,
            opposite_position_id=opposite_position_id, occurred_at_us=self.now_us,
        )  # fmt: skip

    def _of_order(self, order: Order, kind: signal_pb2.SignalKind.ValueType) -> signal_pb2.Signal:
        return signal_pb2.Signal(
            kind=kind, order_id=order.order_id, symbol=self.symbol, side=order.side, order_type=order.order_type,
            volume_lots_e8=order.volume_lots_e8, price_e8=order.price_e8, stop_loss_e8=order.stop_loss_e8,
            take_profit_e8=order.take_profit_e8, occurred_at_us=self.now_us,
        )  # fmt: skip
