"""What makes a signal acceptable, field by field; it knows neither sessions nor clocks (times are passed in)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from execution.common.v1 import signal_pb2, snapshot_pb2

SEQUENCE_MAX: Final = 2**53 - 1
TIME_US_MAX: Final = 4_102_444_800_000_000  # 2100-01-01T00:00:00Z: dates beyond it do not fit everywhere
TICKET_LIMIT: Final = 2**63  # the archive's integers are signed
COMMENT_BYTES_MAX: Final = 64
SYMBOL_BYTES_MAX: Final = 32
SNAPSHOT_ENTRIES_MAX: Final = 1_000
_SYMBOLS_MAX: Final = 4_096

OPEN: Final = signal_pb2.SIGNAL_KIND_OPEN
MODIFY: Final = signal_pb2.SIGNAL_KIND_MODIFY
PARTIAL_CLOSE: Final = signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE
CLOSE_BY: Final = signal_pb2.SIGNAL_KIND_CLOSE_BY
PENDING_PLACE: Final = signal_pb2.SIGNAL_KIND_PENDING_PLACE
PENDING_MODIFY: Final = signal_pb2.SIGNAL_KIND_PENDING_MODIFY
PENDING_CANCEL: Final = signal_pb2.SIGNAL_KIND_PENDING_CANCEL
PENDING_FILL: Final = signal_pb2.SIGNAL_KIND_PENDING_FILL
STOP_LIMIT: Final = signal_pb2.ORDER_TYPE_STOP_LIMIT

# Reducing risk is never refused for its age or its rate.
CLOSES: Final = frozenset({signal_pb2.SIGNAL_KIND_CLOSE, PARTIAL_CLOSE, CLOSE_BY, PENDING_CANCEL})

_NEEDS_POSITION: Final = frozenset(
    {OPEN, MODIFY, signal_pb2.SIGNAL_KIND_CLOSE, PARTIAL_CLOSE, CLOSE_BY, PENDING_FILL}
)
_NEEDS_ORDER: Final = frozenset({PENDING_PLACE, PENDING_MODIFY, PENDING_CANCEL, PENDING_FILL})
_NEEDS_SIDE: Final = frozenset({OPEN, PENDING_PLACE, PENDING_FILL})
_NEEDS_VOLUME: Final = frozenset({OPEN, PARTIAL_CLOSE, PENDING_PLACE, PENDING_FILL})
_NEEDS_PRICE: Final = frozenset({OPEN, PENDING_PLACE, PENDING_MODIFY, PENDING_FILL})

_SYMBOL: Final = re.compile(r"[!-~]{1,32}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PRINTABLE: Final = re.compile(r"[ -~]*")


class Problem(NamedTuple):
    """One thing wrong with a signal or a snapshot: the field's name and, for people, what it should be."""

    field: str
    message: str


def problem_of(signal: signal_pb2.Signal) -> Problem | None:
    """What is wrong with a signal, or None. All fields are looked at, also those that its kind does not need."""
    kind = signal.kind
    if not 1 <= kind <= 9:
        return Problem("kind", "is required")
    symbol = signal.symbol
    position_id, volume, price = signal.position_id, signal.volume_lots_e8, signal.price_e8
    # One comparison for many fields: an OR of integers is negative, or too large, if one of them is.
    if (
        len(symbol) > SYMBOL_BYTES_MAX
        or not _is_symbol(symbol)
        or (volume | price | signal.stop_loss_e8 | signal.take_profit_e8 | signal.stop_limit_price_e8) < 0
        or (position_id | signal.order_id | signal.opposite_position_id | signal.magic) >= TICKET_LIMIT
        or not 0 < signal.occurred_at_us <= TIME_US_MAX
        or not 0 <= signal.expires_at_us <= TIME_US_MAX
        or not 0 <= signal.side <= 2
        or not 0 <= signal.order_type <= 3
        or (signal.comment and not _is_comment(signal.comment))
    ):
        return _range_problem(signal)
    if kind == OPEN:
        if position_id and volume and price and signal.side:
            return None
    elif kind <= 4 and position_id and (volume or kind != PARTIAL_CLOSE):
        return None
    return _kind_problem(signal)


@lru_cache(_SYMBOLS_MAX)
def _is_symbol(symbol: str) -> bool:
    return _SYMBOL.fullmatch(symbol) is not None


def _is_comment(comment: str) -> bool:
    return len(comment.encode()) <= COMMENT_BYTES_MAX and _CONTROL.search(comment) is None


def is_printable(text: str, length_max: int) -> bool:
    """Whether `text` is at most `length_max` characters of printable ASCII; blanks count as printable."""
    return len(text) <= length_max and _PRINTABLE.fullmatch(text) is not None


def is_note(text: str, bytes_max: int) -> bool:
    """Whether `text` has at most `bytes_max` bytes of UTF-8 and no control characters."""
    return len(text.encode()) <= bytes_max and _CONTROL.search(text) is None


def _range_problem(signal: signal_pb2.Signal) -> Problem:
    """Which of the fields that `problem_of` looked at together is wrong."""
    if _SYMBOL.fullmatch(signal.symbol) is None:
        return Problem("symbol", "must be 1 to 32 bytes of printable ASCII")
    for field in ("volume_lots_e8", "price_e8", "stop_loss_e8", "take_profit_e8", "stop_limit_price_e8"):
        if getattr(signal, field) < 0:
            return Problem(field, "must not be negative")
    for field in ("position_id", "order_id", "opposite_position_id", "magic"):
        if getattr(signal, field) >= TICKET_LIMIT:
            return Problem(field, "must be less than 2^63")
    if not 0 < signal.occurred_at_us <= TIME_US_MAX:
        return Problem("occurred_at_us", "is required, in microseconds since 1970")
    if not 0 <= signal.expires_at_us <= TIME_US_MAX:
        return Problem("expires_at_us", "must be 0 or microseconds since 1970")
    if not 0 <= signal.side <= 2:
        return Problem("side", "must be BUY or SELL")
    if not 0 <= signal.order_type <= 3:
        return Problem("order_type", "must be LIMIT, STOP or STOP_LIMIT")
    return Problem("comment", f"must be at most {COMMENT_BYTES_MAX} bytes without control characters")


def _kind_problem(signal: signal_pb2.Signal) -> Problem | None:
    """Which field that the signal's kind needs is missing."""
    kind = signal.kind
    required = (
        ("position_id", _NEEDS_POSITION),
        ("order_id", _NEEDS_ORDER),
        ("side", _NEEDS_SIDE),
        ("volume_lots_e8", _NEEDS_VOLUME),
        ("price_e8", _NEEDS_PRICE),
    )
    for field, kinds in required:
        if kind in kinds and not getattr(signal, field):
            return Problem(field, f"is required for {signal_pb2.SignalKind.Name(kind)}")
    if kind == CLOSE_BY and signal.opposite_position_id in (0, signal.position_id):
        return Problem("opposite_position_id", "must name another position")
    if kind == PENDING_PLACE and not signal.order_type:
        return Problem("order_type", "is required for SIGNAL_KIND_PENDING_PLACE")
    if kind == PENDING_PLACE and signal.order_type == STOP_LIMIT and not signal.stop_limit_price_e8:
        return Problem("stop_limit_price_e8", "is required for a STOP_LIMIT order")
    return None


def snapshot_problem(snapshot: snapshot_pb2.Snapshot) -> Problem | None:
    """What is wrong with the content of a snapshot, or None; whose it is and its as_of are the session's affair."""
    if not 0 < snapshot.taken_at_us <= TIME_US_MAX:
        return Problem("taken_at_us", "is required, in microseconds since 1970")
    if snapshot.account_mode not in (1, 2):
        return Problem("account_mode", "must be HEDGING or NETTING")
    if len(snapshot.positions) > SNAPSHOT_ENTRIES_MAX or len(snapshot.orders) > SNAPSHOT_ENTRIES_MAX:
        return Problem("positions", f"at most {SNAPSHOT_ENTRIES_MAX} positions and as many orders are taken")
    if not is_printable(snapshot.currency, 8):
        return Problem("currency", "must be an ISO 4217 code or empty")
    return _positions_problem(snapshot) or _orders_problem(snapshot)


def _positions_problem(snapshot: snapshot_pb2.Snapshot) -> Problem | None:
    before = 0
    for position in snapshot.positions:
        if not before < position.position_id < TICKET_LIMIT:
            return Problem("positions.position_id", "must be there and ascend")
        before = position.position_id
        if _SYMBOL.fullmatch(position.symbol) is None:
            return Problem("positions.symbol", "must be 1 to 32 bytes of printable ASCII")
        if position.side not in (1, 2) or position.volume_lots_e8 <= 0:
            return Problem("positions.volume_lots_e8", "needs a side and a positive volume")
        if (position.open_price_e8 | position.stop_loss_e8 | position.take_profit_e8) < 0:
            return Problem("positions.open_price_e8", "prices must not be negative")
        if not 0 <= position.opened_at_us <= TIME_US_MAX or position.opened_by_sequence > SEQUENCE_MAX:
            return Problem(
                "positions.opened_at_us", "times are microseconds since 1970, sequences below 2^53"
            )
    return None


def _orders_problem(snapshot: snapshot_pb2.Snapshot) -> Problem | None:
    before = 0
    for order in snapshot.orders:
        if not before < order.order_id < TICKET_LIMIT:
            return Problem("orders.order_id", "must be there and ascend")
        before = order.order_id
        if _SYMBOL.fullmatch(order.symbol) is None:
            return Problem("orders.symbol", "must be 1 to 32 bytes of printable ASCII")
        if order.side not in (1, 2) or order.volume_lots_e8 <= 0 or order.order_type not in (1, 2, 3):
            return Problem("orders.volume_lots_e8", "needs a side, a type and a positive volume")
        prices = order.price_e8 | order.stop_limit_price_e8 | order.stop_loss_e8 | order.take_profit_e8
        if prices < 0:
            return Problem("orders.price_e8", "prices must not be negative")
        if not 0 <= order.expires_at_us <= TIME_US_MAX or order.placed_by_sequence > SEQUENCE_MAX:
            return Problem("orders.expires_at_us", "times are microseconds since 1970, sequences below 2^53")
    return None
