"""What a subscriber does with a signal, and why. Pure data."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from execution.common.v1 import signal_pb2 as pb

if TYPE_CHECKING:
    from ecp_client.scale import Scale


class Action(enum.IntEnum):
    """What the subscriber does with a signal."""

    COPY = 1
    """As the master did it."""
    RESIZE = 2
    """The same with another volume; the decision's reason says why."""
    SKIP = 3
    """Nothing; the decision's reason says why."""


class Reason(enum.IntEnum):
    """Why a signal was resized or skipped."""

    NONE = 0
    MULTIPLIER = 1
    """Resized: the volume multiplier, or rounding down to the volume step."""
    VOLUME_MAX = 2
    """Resized: the largest volume of one position."""
    VOLUME_MIN = 3
    """Skipped: less than the smallest volume would remain."""
    SYMBOL_FILTER = 4
    SIDE_FILTER = 5
    KIND_FILTER = 6
    """Skipped: pending orders are not copied."""
    LATENCY = 7
    """Skipped: older than max_signal_age_ms."""
    SLIPPAGE = 8
    SPREAD = 9
    PRICE = 10
    MARGIN = 11
    NOT_HELD = 12
    """Skipped: the account does not hold what the signal is about."""
    CLOSED_BY_USER = 13
    """Skipped: the user closed it by hand."""
    NOT_REPRESENTABLE = 14
    """Skipped: a stop-limit order has no reverse."""
    DEGRADED = 15
    """Skipped: signals are missing, and until the full sync only what reduces risk is safe."""
    TIME_FILTER = 16
    """Skipped: outside the hours in which positions are opened."""
    NO_EQUITY = 17
    """Skipped: the volume depends on equity, or on a symbol's value, that is not known."""
    NO_STOP = 18
    """Skipped: the volume depends on the distance to the stop loss, and there is none, or it would be hit at once."""
    FIXED_VOLUME = 19
    """Resized: every position has the same volume."""
    EQUITY = 20
    """Resized: in proportion to equity."""
    RISK = 21
    """Resized: so that the stop loss costs a share of equity."""
    PROTECTION_FAILED = 22
    """Skipped: the application's own protection raised instead of answering."""
    NO_PRICE = 23
    """Skipped by a full sync: the volume depends on what the price is now, and there is no quote."""


TAKEN = frozenset(
    (
        Reason.NONE,
        Reason.MULTIPLIER,
        Reason.VOLUME_MAX,
        Reason.VOLUME_MIN,
        Reason.FIXED_VOLUME,
        Reason.EQUITY,
        Reason.RISK,
    )
)
"""Reasons of what was opened or enlarged, at whatever volume; any other refused it, though stops may have followed."""


@dataclass(slots=True)
class Decision:
    """What to do in the account. Symbol, side, prices and volume are the account's own, after map and reversal.

    `volume_lots_e8` is the volume that the account holds of the position (or order) AFTER the signal: 0 closes it.
    `opposite_volume_lots_e8` is the same for a CLOSE_BY's other position.
    """

    action: Action
    reason: Reason = Reason.NONE
    symbol: str = ""
    side: pb.Side.ValueType = pb.SIDE_UNSPECIFIED
    volume_lots_e8: int = 0
    price_e8: int = 0
    stop_loss_e8: int = 0
    take_profit_e8: int = 0
    order_type: pb.OrderType.ValueType = pb.ORDER_TYPE_UNSPECIFIED
    opposite_volume_lots_e8: int = 0
    scale: Scale | None = None
    """For an opening: what its volume was found by, where that is not the multiplier of the settings."""
