"""A subscriber's own book for one master: what was copied, refused and closed by hand. Pure; it decides nothing."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from ecp_client.scale import Scale
from execution.common.v1 import signal_pb2 as pb


class HoldingState(enum.IntEnum):
    """Whether the account has the position."""

    HELD = 1
    """Copied and open."""
    REFUSED = 2
    """The master has it, this account never took it: a filter, a protection, or too late."""
    CLOSED_BY_USER = 3
    """Copied, then closed by hand; it is never opened again."""


@dataclass(slots=True)
class Holding:
    """What the account has of one position of the master; symbol, side and volume are the account's own."""

    position_id: int
    symbol: str
    side: pb.Side.ValueType
    volume_lots_e8: int
    stop_loss_e8: int
    take_profit_e8: int
    state: HoldingState = HoldingState.HELD
    reason: int = 0
    """copying.Reason of a refusal, of the position or, where it is held and `short`, of its enlargement."""
    short: bool = False
    """An enlargement was refused: the account may hold less than its settings say, never more."""
    scale: Scale | None = None
    """By what the master's volumes of this position are scaled; None is the multiplier of the settings."""
    reversed: bool = False
    """It is on the other side than the master's."""


@dataclass(slots=True)
class OrderHolding:
    """What the account has of one pending order of the master."""

    order_id: int
    symbol: str
    side: pb.Side.ValueType
    order_type: pb.OrderType.ValueType
    volume_lots_e8: int
    price_e8: int
    stop_limit_price_e8: int
    stop_loss_e8: int
    take_profit_e8: int
    expires_at_us: int
    state: HoldingState = HoldingState.HELD
    reason: int = 0
    scale: Scale | None = None
    """As in Holding."""
    reversed: bool = False
    """As in Holding."""


@dataclass(slots=True)
class Account:
    """Holdings by the master's position_id, and orders by its order_id. Entries live as long as the master's own do."""

    holdings: dict[int, Holding] = field(default_factory=dict)
    orders: dict[int, OrderHolding] = field(default_factory=dict)

    def held(self) -> Iterable[Holding]:
        """What is open now."""
        return (entry for entry in self.holdings.values() if entry.state is HoldingState.HELD)

    def held_orders(self) -> Iterable[OrderHolding]:
        """The orders that are pending now."""
        return (entry for entry in self.orders.values() if entry.state is HoldingState.HELD)

    def closed_by_user(self, position_id: int) -> bool:
        """Notes that the user closed a copied position by hand; whether it was held until now."""
        entry = self.holdings.get(position_id)
        if entry is None or entry.state is not HoldingState.HELD:
            return False
        entry.state, entry.reason, entry.volume_lots_e8 = HoldingState.CLOSED_BY_USER, 0, 0
        return True

    def order_cancelled_by_user(self, order_id: int) -> bool:
        """Notes that the user cancelled a copied order by hand; whether it was held until now."""
        entry = self.orders.get(order_id)
        if entry is None or entry.state is not HoldingState.HELD:
            return False
        entry.state = HoldingState.CLOSED_BY_USER
        return True

    def refused(self, position_id: int, reason: int) -> bool:
        """Notes that the broker refused to open a position after it was decided to copy it; whether it was held."""
        entry = self.holdings.get(position_id)
        if entry is None or entry.state is not HoldingState.HELD:
            return False
        entry.state, entry.reason, entry.volume_lots_e8 = HoldingState.REFUSED, reason, 0
        return True

    def order_refused(self, order_id: int, reason: int) -> bool:
        """Notes that the broker refused a pending order after it was decided to copy it; whether it was held."""
        entry = self.orders.get(order_id)
        if entry is None or entry.state is not HoldingState.HELD:
            return False
        entry.state, entry.reason = HoldingState.REFUSED, reason
        return True

    def to_json(self) -> bytes:
        """A compact form that from_json reads back."""
        return json.dumps(
            {
                "holdings": [_row(entry, _HOLDING_FIELDS) for entry in self.holdings.values()],
                "orders": [_row(entry, _ORDER_FIELDS) for entry in self.orders.values()],
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Account:
        """The account that to_json wrote.

        Raises:
            ValueError: it is not of that form.
        """
        try:
            parsed = json.loads(data)
            holdings = [Holding(*row) for row in parsed["holdings"]]
            orders = [OrderHolding(*row) for row in parsed["orders"]]
            entries: list[Holding | OrderHolding] = [*holdings, *orders]
            for entry in entries:
                entry.state = HoldingState(entry.state)
                entry.scale = Scale.from_text(str(entry.scale)) if entry.scale else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an account: {error!r}") from error
        return cls(
            {entry.position_id: entry for entry in holdings}, {entry.order_id: entry for entry in orders}
        )


_HOLDING_FIELDS = tuple(item.name for item in fields(Holding))
_ORDER_FIELDS = tuple(item.name for item in fields(OrderHolding))


def _row(entry: Holding | OrderHolding, names: tuple[str, ...]) -> list[int | str | bool]:
    """The fields in order; the last two only where they say something, as there was a time without them."""
    row = [getattr(entry, name) for name in names[:-2]]
    if entry.scale is None and not entry.reversed:
        return row
    return [*row, "" if entry.scale is None else entry.scale.to_text(), entry.reversed]
