"""Building and checking signals before they are sent: fixed-point conversion and the contract's field rules. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from ecp_client.errors import SignalInvalidError
from execution.common.v1 import signal_pb2 as pb

E8 = 100_000_000
SYMBOL_BYTES_MAX = 32
COMMENT_BYTES_MAX = 64
TICKET_LIMIT = 2**63
TIME_US_MAX = 4_102_444_800_000_000  # 2100-01-01T00:00:00Z

_SYMBOL = re.compile(r"[!-~]{1,32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

OPEN = pb.SIGNAL_KIND_OPEN
MODIFY = pb.SIGNAL_KIND_MODIFY
CLOSE = pb.SIGNAL_KIND_CLOSE
PARTIAL_CLOSE = pb.SIGNAL_KIND_PARTIAL_CLOSE
CLOSE_BY = pb.SIGNAL_KIND_CLOSE_BY
PENDING_PLACE = pb.SIGNAL_KIND_PENDING_PLACE
PENDING_MODIFY = pb.SIGNAL_KIND_PENDING_MODIFY
PENDING_CANCEL = pb.SIGNAL_KIND_PENDING_CANCEL
PENDING_FILL = pb.SIGNAL_KIND_PENDING_FILL

BUY = pb.SIDE_BUY
SELL = pb.SIDE_SELL

# What reduces risk: never too old, never rate limited, and let through by a pause.
CLOSES = frozenset((CLOSE, PARTIAL_CLOSE, CLOSE_BY, PENDING_CANCEL))
# What opens risk: reported to the risk service by default.
OPENS_RISK = frozenset((OPEN, PENDING_PLACE, PENDING_FILL))


def to_e8(value: str | int | Decimal) -> int:
    """The fixed-point form of a price or a volume: "1.07140" gives 107140000.

    Floats are refused: format them to the symbol's digits first, as in to_e8(f"{price:.5f}").

    Raises:
        ValueError: not a number, or not a multiple of 1e-8.
    """
    if isinstance(value, float):
        raise ValueError(f"{value} is a float: format it to the symbol's digits first")
    try:
        scaled = Decimal(value) * E8
    except InvalidOperation as error:
        raise ValueError(f"{value!r} is not a number") from error
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise ValueError(f"{value} is not a multiple of 1e-8")
    return int(scaled)


def from_e8(value_e8: int) -> Decimal:
    """The exact decimal form of a fixed-point price or volume."""
    return Decimal(value_e8) / E8


def check(signal: pb.Signal) -> None:
    """Does nothing if the front door will take the signal's fields.

    Raises:
        SignalInvalidError: a field is missing or out of range for the signal's kind.
    """
    rule = _RULES.get(signal.kind)
    if rule is None:
        raise SignalInvalidError("kind", f"{signal.kind} is not a kind of signal")
    if not _is_symbol(signal.symbol):
        raise SignalInvalidError(
            "symbol", f"is not 1 to {SYMBOL_BYTES_MAX} bytes of printable ASCII without blanks"
        )
    if not 0 < signal.occurred_at_us <= TIME_US_MAX:
        raise SignalInvalidError("occurred_at_us", "is not a time in microseconds since 1970")
    rule(signal)
    _check_optional(signal)


@lru_cache(4_096)
def _is_symbol(symbol: str) -> bool:
    return _SYMBOL.fullmatch(symbol) is not None


def _check_optional(signal: pb.Signal) -> None:
    """The fields that any kind may have. An OR of integers is negative, or too large, if one of them is."""
    prices = signal.volume_lots_e8 | signal.price_e8 | signal.stop_loss_e8 | signal.take_profit_e8
    tickets = signal.position_id | signal.order_id | signal.opposite_position_id | signal.magic
    if (prices | signal.stop_limit_price_e8) < 0 or tickets >= TICKET_LIMIT:
        for field in ("volume_lots_e8", "price_e8", "stop_loss_e8", "take_profit_e8", "stop_limit_price_e8"):
            if getattr(signal, field) < 0:
                raise SignalInvalidError(field, "is negative")
        for field in ("position_id", "order_id", "opposite_position_id", "magic"):
            if getattr(signal, field) >= TICKET_LIMIT:
                raise SignalInvalidError(field, "is not below 2^63")
    if not 0 <= signal.expires_at_us <= TIME_US_MAX:
        raise SignalInvalidError("expires_at_us", "is neither 0 nor a time in microseconds since 1970")
    if signal.side not in (pb.SIDE_UNSPECIFIED, BUY, SELL):
        raise SignalInvalidError("side", "is neither BUY nor SELL")
    if not 0 <= signal.order_type <= pb.ORDER_TYPE_STOP_LIMIT:
        raise SignalInvalidError("order_type", "is neither LIMIT, STOP nor STOP_LIMIT")
    comment = signal.comment
    if comment and (len(comment.encode()) > COMMENT_BYTES_MAX or _CONTROL.search(comment)):
        raise SignalInvalidError(
            "comment", f"is longer than {COMMENT_BYTES_MAX} bytes or has control characters"
        )


def _require_positive(signal: pb.Signal, *fields: str) -> None:
    for field in fields:
        if getattr(signal, field) <= 0:
            raise SignalInvalidError(field, "is not positive")


def _require_side(signal: pb.Signal) -> None:
    if signal.side not in (BUY, SELL):
        raise SignalInvalidError("side", "is neither BUY nor SELL")


def _check_open(signal: pb.Signal) -> None:
    _require_positive(signal, "position_id", "volume_lots_e8", "price_e8")
    _require_side(signal)


def _check_position(signal: pb.Signal) -> None:
    _require_positive(signal, "position_id")


def _check_partial_close(signal: pb.Signal) -> None:
    _require_positive(signal, "position_id", "volume_lots_e8")


def _check_close_by(signal: pb.Signal) -> None:
    _require_positive(signal, "position_id", "opposite_position_id")
    if signal.position_id == signal.opposite_position_id:
        raise SignalInvalidError("opposite_position_id", "is the position itself")


def _check_pending_place(signal: pb.Signal) -> None:
    _require_positive(signal, "order_id", "volume_lots_e8", "price_e8")
    _require_side(signal)
    if signal.order_type not in (pb.ORDER_TYPE_LIMIT, pb.ORDER_TYPE_STOP, pb.ORDER_TYPE_STOP_LIMIT):
        raise SignalInvalidError("order_type", "is neither LIMIT, STOP nor STOP_LIMIT")
    if signal.order_type == pb.ORDER_TYPE_STOP_LIMIT:
        _require_positive(signal, "stop_limit_price_e8")


def _check_pending_modify(signal: pb.Signal) -> None:
    _require_positive(signal, "order_id", "price_e8")


def _check_order(signal: pb.Signal) -> None:
    _require_positive(signal, "order_id")


def _check_pending_fill(signal: pb.Signal) -> None:
    _require_positive(signal, "order_id", "position_id", "volume_lots_e8", "price_e8")
    _require_side(signal)


_RULES: dict[int, Callable[[pb.Signal], None]] = {
    OPEN: _check_open,
    MODIFY: _check_position,
    CLOSE: _check_position,
    PARTIAL_CLOSE: _check_partial_close,
    CLOSE_BY: _check_close_by,
    PENDING_PLACE: _check_pending_place,
    PENDING_MODIFY: _check_pending_modify,
    PENDING_CANCEL: _check_order,
    PENDING_FILL: _check_pending_fill,
}
