"""The mirror of one master's account: open positions and pending orders, as signals tell them. Pure.

A subscriber's mirror and a simulated master use the same code, so that both agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from execution.common.v1 import signal_pb2 as pb
from execution.common.v1 import snapshot_pb2

# What a Snapshot may hold of each; a book takes ten times as many before it stops to follow.
SNAPSHOT_ENTRIES_MAX = 1_000
BOOK_ENTRIES_MAX = 10_000


@dataclass(slots=True)
class BookPosition:
    """One open position; volumes and prices in 1e-8, times in microseconds."""

    position_id: int
    symbol: str
    side: pb.Side.ValueType
    volume_lots_e8: int
    open_price_e8: int
    stop_loss_e8: int
    take_profit_e8: int
    opened_at_us: int
    opened_by_sequence: int
    stated_by_sequence: int = field(default=0, compare=False)
    """What said last that the position is there, with this side and at least this volume: an opening, or a snapshot."""


@dataclass(slots=True)
class BookOrder:
    """One pending order; volumes and prices in 1e-8, times in microseconds."""

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
    placed_by_sequence: int
    stated_by_sequence: int = field(default=0, compare=False)
    """As in BookPosition."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which two books differ: `entry` is "position 7" or "order 9"; None stands for not there."""

    entry: str
    field: str
    ours: object
    theirs: object

    def __str__(self) -> str:
        return f"{self.entry}: {self.field} is {self.ours}, not {self.theirs}"


class Book:
    """Open positions by position_id and pending orders by order_id.

    `unknown` counts signals about a position or order that the book does not hold (a reader that started from now sees
    closes of what it never saw opened); `overflowed` counts openings beyond `entries_max`, which were not followed.
    """

    __slots__ = (
        "_entries_max",
        "currency",
        "equity_e8",
        "mode",
        "orders",
        "overflowed",
        "positions",
        "unknown",
    )

    def __init__(
        self,
        mode: pb.AccountMode.ValueType = pb.ACCOUNT_MODE_HEDGING,
        *,
        entries_max: int = BOOK_ENTRIES_MAX,
    ) -> None:
        self.mode = mode
        self.equity_e8 = 0
        """In 1e-8 of the currency, as of the last snapshot or as the account's owner sets it; 0 is unknown."""
        self.currency = ""
        self.positions: dict[int, BookPosition] = {}
        self.orders: dict[int, BookOrder] = {}
        self.unknown = 0
        self.overflowed = 0
        self._entries_max = entries_max

    def apply(self, signal: pb.Signal, sequence: int = 0) -> bool:
        """Brings the book up to date with one signal; whether that changed or confirmed an entry.

        Each signal is to come once. One of a kind that this version does not know counts as unknown.
        """
        rule = _RULES.get(signal.kind)
        if rule is not None and rule(self, signal, sequence):
            return True
        self.unknown += 1
        return False

    @classmethod
    def from_snapshot(cls, snapshot: snapshot_pb2.Snapshot, *, entries_max: int = BOOK_ENTRIES_MAX) -> Book:
        """The book that `snapshot` describes."""
        book = cls(snapshot.account_mode or pb.ACCOUNT_MODE_HEDGING, entries_max=entries_max)
        book.equity_e8, book.currency = snapshot.equity_e8, snapshot.currency
        for position in snapshot.positions:
            book.positions[position.position_id] = BookPosition(
                position.position_id,
                position.symbol,
                position.side,
                position.volume_lots_e8,
                position.open_price_e8,
                position.stop_loss_e8,
                position.take_profit_e8,
                position.opened_at_us,
                position.opened_by_sequence,
                snapshot.as_of.sequence,
            )
        for order in snapshot.orders:
            book.orders[order.order_id] = _order_from_pb(order, snapshot.as_of.sequence)
        return book

    def to_snapshot(
        self,
        master_id: int,
        sequence: int,
        taken_at_us: int,
        *,
        epoch: int = 0,
        entries_max: int = SNAPSHOT_ENTRIES_MAX,
    ) -> snapshot_pb2.Snapshot:
        """The snapshot that says the same as the book, as of `sequence`; a master leaves the epoch to the server.

        Raises:
            ValueError: more than `entries_max` positions or orders; the front door takes no more than 1,000.
        """
        if max(len(self.positions), len(self.orders)) > entries_max:
            raise ValueError(f"a snapshot holds at most {entries_max:,} positions and as many orders")
        snapshot = snapshot_pb2.Snapshot(
            master_id=master_id,
            taken_at_us=taken_at_us,
            account_mode=self.mode,
            equity_e8=self.equity_e8,
            currency=self.currency,
        )
        snapshot.as_of.epoch = epoch
        snapshot.as_of.sequence = sequence
        for _, position in sorted(self.positions.items()):
            snapshot.positions.append(_position_to_pb(position))
        for _, order in sorted(self.orders.items()):
            snapshot.orders.append(_order_to_pb(order))
        return snapshot

    def differences(self, other: Book) -> Iterator[Difference]:
        """Each field in which the two books differ, in order of ticket; nothing when they say the same.

        Which sequence opened an entry does not count: a snapshot may have been taken before the stream began.
        """
        yield from _differences("position", self.positions, other.positions, _POSITION_FIELDS)
        yield from _differences("order", self.orders, other.orders, _ORDER_FIELDS)

    def __len__(self) -> int:
        return len(self.positions) + len(self.orders)

    def _has_room(self, entries: dict[int, BookPosition] | dict[int, BookOrder]) -> bool:
        if len(entries) < self._entries_max:
            return True
        self.overflowed += 1
        return False


_POSITION_FIELDS = ("symbol", "side", "volume_lots_e8", "open_price_e8", "stop_loss_e8", "take_profit_e8")
_ORDER_FIELDS = (
    "symbol",
    "side",
    "order_type",
    "volume_lots_e8",
    "price_e8",
    "stop_limit_price_e8",
    "stop_loss_e8",
    "take_profit_e8",
    "expires_at_us",
)


def average_price_e8(volume_e8: int, price_e8: int, added_e8: int, added_price_e8: int) -> int:
    """Volume-weighted average price after adding to a position, rounded half up to 1e-8."""
    total_e8 = volume_e8 + added_e8
    return (volume_e8 * price_e8 + added_e8 * added_price_e8 + total_e8 // 2) // total_e8


def _open(book: Book, signal: pb.Signal, sequence: int) -> bool:
    position_id = signal.position_id
    held = book.positions.get(position_id)
    if held is not None:
        _restate(held, signal)
        held.stated_by_sequence = sequence
        return True
    if not book._has_room(book.positions):
        return True
    book.positions[position_id] = BookPosition(
        position_id,
        signal.symbol,
        signal.side,
        signal.volume_lots_e8,
        signal.price_e8,
        signal.stop_loss_e8,
        signal.take_profit_e8,
        signal.occurred_at_us,
        sequence,
        sequence,
    )
    return True


def _restate(held: BookPosition, signal: pb.Signal) -> None:
    """An OPEN of a position that is there states its new side and TOTAL volume; the price is that of the last deal."""
    volume_e8 = signal.volume_lots_e8
    if signal.side != held.side:
        held.side = signal.side
        held.open_price_e8 = signal.price_e8
        held.opened_at_us = signal.occurred_at_us
    elif volume_e8 > held.volume_lots_e8:
        added_e8 = volume_e8 - held.volume_lots_e8
        held.open_price_e8 = average_price_e8(
            held.volume_lots_e8, held.open_price_e8, added_e8, signal.price_e8
        )
    held.volume_lots_e8 = volume_e8
    held.stop_loss_e8 = signal.stop_loss_e8
    held.take_profit_e8 = signal.take_profit_e8


def _modify(book: Book, signal: pb.Signal, _sequence: int) -> bool:
    held = book.positions.get(signal.position_id)
    if held is None:
        return False
    held.stop_loss_e8 = signal.stop_loss_e8
    held.take_profit_e8 = signal.take_profit_e8
    return True


def _close(book: Book, signal: pb.Signal, _sequence: int) -> bool:
    return book.positions.pop(signal.position_id, None) is not None


def _partial_close(book: Book, signal: pb.Signal, _sequence: int) -> bool:
    held = book.positions.get(signal.position_id)
    if held is None:
        return False
    if signal.volume_lots_e8 <= 0:
        del book.positions[signal.position_id]
    else:
        held.volume_lots_e8 = signal.volume_lots_e8
    return True


def _close_by(book: Book, signal: pb.Signal, _sequence: int) -> bool:
    """The smaller goes, the larger keeps the stated volume. A lone known one goes: closing is the safe side."""
    one = book.positions.pop(signal.position_id, None)
    other = book.positions.pop(signal.opposite_position_id, None)
    remaining_e8 = signal.volume_lots_e8
    if one is not None and other is not None and remaining_e8 > 0:
        survivor = one if one.volume_lots_e8 >= other.volume_lots_e8 else other
        survivor.volume_lots_e8 = remaining_e8
        book.positions[survivor.position_id] = survivor
    return one is not None or other is not None


def _pending_place(book: Book, signal: pb.Signal, sequence: int) -> bool:
    order_id = signal.order_id
    if order_id not in book.orders and not book._has_room(book.orders):
        return True
    book.orders[order_id] = BookOrder(
        order_id,
        signal.symbol,
        signal.side,
        signal.order_type,
        signal.volume_lots_e8,
        signal.price_e8,
        signal.stop_limit_price_e8,
        signal.stop_loss_e8,
        signal.take_profit_e8,
        signal.expires_at_us,
        sequence,
        sequence,
    )
    return True


def _pending_modify(book: Book, signal: pb.Signal, _sequence: int) -> bool:
    order = book.orders.get(signal.order_id)
    if order is None:
        return False
    order.price_e8 = signal.price_e8
    order.stop_limit_price_e8 = signal.stop_limit_price_e8
    order.stop_loss_e8 = signal.stop_loss_e8
    order.take_profit_e8 = signal.take_profit_e8
    order.expires_at_us = signal.expires_at_us
    return True


def _pending_cancel(book: Book, signal: pb.Signal, _sequence: int) -> bool:
    return book.orders.pop(signal.order_id, None) is not None


def _pending_fill(book: Book, signal: pb.Signal, sequence: int) -> bool:
    """The order is gone whether or not it was known; the position opens, or states its new total, as with OPEN."""
    book.orders.pop(signal.order_id, None)
    return _open(book, signal, sequence)


_RULES: dict[int, Callable[[Book, pb.Signal, int], bool]] = {
    pb.SIGNAL_KIND_OPEN: _open,
    pb.SIGNAL_KIND_MODIFY: _modify,
    pb.SIGNAL_KIND_CLOSE: _close,
    pb.SIGNAL_KIND_PARTIAL_CLOSE: _partial_close,
    pb.SIGNAL_KIND_CLOSE_BY: _close_by,
    pb.SIGNAL_KIND_PENDING_PLACE: _pending_place,
    pb.SIGNAL_KIND_PENDING_MODIFY: _pending_modify,
    pb.SIGNAL_KIND_PENDING_CANCEL: _pending_cancel,
    pb.SIGNAL_KIND_PENDING_FILL: _pending_fill,
}


def _position_to_pb(position: BookPosition) -> snapshot_pb2.OpenPosition:
    return snapshot_pb2.OpenPosition(
        position_id=position.position_id,
        symbol=position.symbol,
        side=position.side,
        volume_lots_e8=position.volume_lots_e8,
        open_price_e8=position.open_price_e8,
        stop_loss_e8=position.stop_loss_e8,
        take_profit_e8=position.take_profit_e8,
        opened_at_us=position.opened_at_us,
        opened_by_sequence=position.opened_by_sequence,
    )


def _order_to_pb(order: BookOrder) -> snapshot_pb2.PendingOrder:
    return snapshot_pb2.PendingOrder(
        order_id=order.order_id,
        symbol=order.symbol,
        side=order.side,
        order_type=order.order_type,
        volume_lots_e8=order.volume_lots_e8,
        price_e8=order.price_e8,
        stop_limit_price_e8=order.stop_limit_price_e8,
        stop_loss_e8=order.stop_loss_e8,
        take_profit_e8=order.take_profit_e8,
        expires_at_us=order.expires_at_us,
        placed_by_sequence=order.placed_by_sequence,
    )


def _order_from_pb(order: snapshot_pb2.PendingOrder, stated_by_sequence: int) -> BookOrder:
    return BookOrder(
        order.order_id,
        order.symbol,
        order.side,
        order.order_type,
        order.volume_lots_e8,
        order.price_e8,
        order.stop_limit_price_e8,
        order.stop_loss_e8,
        order.take_profit_e8,
        order.expires_at_us,
        order.placed_by_sequence,
        stated_by_sequence,
    )


def _differences(
    name: str,
    ours: dict[int, BookPosition] | dict[int, BookOrder],
    theirs: dict[int, BookPosition] | dict[int, BookOrder],
    fields: tuple[str, ...],
) -> Iterator[Difference]:
    for ticket in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(ticket), theirs.get(ticket)
        if one is None or other is None:
            yield Difference(f"{name} {ticket}", "presence", one is not None, other is not None)
            continue
        for one_field in fields:
            if getattr(one, one_field) != getattr(other, one_field):
                yield Difference(
                    f"{name} {ticket}", one_field, getattr(one, one_field), getattr(other, one_field)
                )
