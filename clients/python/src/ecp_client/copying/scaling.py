"""How large a copied position is: fixed, a multiple, in proportion to equity, or by what it may lose. Pure; integers.

A scale is chosen once, when a position is opened or an order placed, and belongs to it for its life: what the master
later adds or takes away is scaled by it, so that half of the master's position is half of ours.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from ecp_client.copying.decisions import Reason
from ecp_client.scale import Scale, ratio
from execution.common.v1 import signal_pb2 as pb

E8 = 100_000_000
BASIS_POINTS = 10_000

# Own equity in 1e-8 of the account's currency now, or None when it is not known. Where the master's currency is another
# one, it is to be given in the master's.
EquitySource = Callable[[], "int | None"]
# What one lot of the account's symbol gains when its price rises by 1.0, in 1e-8 of the account's currency, or None.
PointValueSource = Callable[[str], "int | None"]


class Scaling(enum.Enum):
    """What the volume of a new position depends on."""

    MULTIPLIER = "multiplier"
    """The master's volume times volume_multiplier_e4."""
    FIXED = "fixed"
    """volume_fixed_e8, whatever the master's volume is."""
    EQUITY = "equity"
    """The master's volume times own equity over the master's, times volume_multiplier_e4."""
    RISK = "risk"
    """So that the stop loss, when it is hit at its price, costs risk_bps of own equity."""


def by_equity(own_e8: int | None, masters_e8: int, multiplier_e4: int) -> Scale | Reason:
    """The scale of EQUITY, or NO_EQUITY when one of the two is not known."""
    if own_e8 is None or own_e8 <= 0 or masters_e8 <= 0:
        return Reason.NO_EQUITY
    return ratio(own_e8 * multiplier_e4, masters_e8 * BASIS_POINTS)


def by_risk(
    own_e8: int | None, value_e8: int | None, risk_bps: int, master_volume_e8: int, distance_e8: int
) -> Scale | Reason:
    """The scale of RISK: equity at risk over what one lot loses on the way from the price to the account's stop.

    NO_STOP when there is no way to a stop, NO_EQUITY when equity or the symbol's value is not known.
    """
    if distance_e8 <= 0:
        return Reason.NO_STOP
    if own_e8 is None or own_e8 <= 0 or value_e8 is None or value_e8 <= 0 or master_volume_e8 <= 0:
        return Reason.NO_EQUITY
    lots_e8 = own_e8 * risk_bps * E8 * E8 // (BASIS_POINTS * distance_e8 * value_e8)
    return ratio(lots_e8, master_volume_e8)


def stop_distance_e8(side: int, price_e8: int, stop_loss_e8: int) -> int:
    """How far the stop loss of a position of this side is from the price; 0 or less when nothing stops a loss."""
    if not price_e8 or not stop_loss_e8:
        return 0
    return price_e8 - stop_loss_e8 if side == pb.SIDE_BUY else stop_loss_e8 - price_e8
