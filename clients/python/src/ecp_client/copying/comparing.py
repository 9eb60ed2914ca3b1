"""Where an account is not what its settings make of a master's book. Pure; it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ecp_client.account import Holding, HoldingState, OrderHolding
from ecp_client.books import Book, BookOrder, BookPosition, Difference
from ecp_client.copying.copier import Copier
from ecp_client.copying.settings import side_for, stops_for


def order_fields(entry: object) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in _ADJUSTABLE)


def wanted_order_fields(entry: OrderHolding, order: BookOrder) -> tuple[object, ...]:
    stops = stops_for(order.stop_loss_e8, order.take_profit_e8, entry.reversed)
    return (order.price_e8, order.stop_limit_price_e8, *stops, order.expires_at_us)


_ADJUSTABLE = ("price_e8", "stop_limit_price_e8", "stop_loss_e8", "take_profit_e8", "expires_at_us")


def differences(copier: Copier, master: Book, *, allow_missing: bool = False) -> Iterator[Difference]:
    """Where the account is not what its settings make of `master`, in order of ticket; nothing when it is in step.

    Not differences: what was refused or closed by hand, and less than wanted after a refused enlargement.
    `allow_missing`: nor what the account never had, as after a pause that withheld openings.
    """
    holdings = copier.account.holdings
    for ticket in sorted(holdings.keys() | master.positions.keys()):
        holding = holdings.get(ticket)
        wanted = _wanted_position(copier, master.positions.get(ticket), holding)
        if holding is not None and holding.state is not HoldingState.HELD:
            continue
        if holding is None or wanted is None:
            if (holding is not None) != (wanted is not None) and not (allow_missing and holding is None):
                yield Difference(f"position {ticket}", "presence", holding is not None, wanted is not None)
            continue
        for name, value in wanted.items():
            ours = getattr(holding, name)
            if ours != value and not (name == "volume_lots_e8" and holding.short and ours < value):
                yield Difference(f"position {ticket}", name, ours, value)
    yield from _order_differences(copier, master, allow_missing)


def _wanted_position(
    copier: Copier, position: BookPosition | None, holding: Holding | None
) -> dict[str, int | str] | None:
    settings = copier.settings
    if position is None or (holding is None and settings.filtered(position.symbol, position.side)):
        return None
    symbol = settings.symbol_for(position.symbol) if holding is None else holding.symbol
    scale = None if holding is None else holding.scale
    volume_e8 = settings.volume_for(symbol, position.volume_lots_e8, scale)
    if volume_e8 == 0:
        return None
    reverse = settings.reverse if holding is None else holding.reversed
    stop_loss_e8, take_profit_e8 = stops_for(position.stop_loss_e8, position.take_profit_e8, reverse)
    return {
        "symbol": symbol,
        "side": side_for(position.side, reverse),
        "volume_lots_e8": volume_e8,
        "stop_loss_e8": stop_loss_e8,
        "take_profit_e8": take_profit_e8,
    }


def _order_differences(copier: Copier, master: Book, allow_missing: bool) -> Iterator[Difference]:
    settings, entries = copier.settings, copier.account.orders
    for ticket in sorted(entries.keys() | master.orders.keys()):
        order, entry = master.orders.get(ticket), entries.get(ticket)
        if entry is not None and entry.state is not HoldingState.HELD:
            continue
        if entry is None:
            wanted = (
                order is not None
                and settings.copy_pending
                and settings.volume_for(settings.symbol_for(order.symbol), order.volume_lots_e8) > 0
            )
            if wanted and order and not settings.filtered(order.symbol, order.side) and not allow_missing:
                yield Difference(f"order {ticket}", "presence", False, True)
        elif order is None:
            yield Difference(f"order {ticket}", "presence", True, False)
        else:
            pairs = zip(_ADJUSTABLE, order_fields(entry), wanted_order_fields(entry, order), strict=True)
            for name, ours, theirs in pairs:
                if ours != theirs:
                    yield Difference(f"order {ticket}", name, ours, theirs)
