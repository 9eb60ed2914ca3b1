"""How one subscriber copies one master: volume, reversal, symbols, filters and limits. Pure; integers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ecp_client.copying.decisions import Reason
from ecp_client.copying.hours import Hours
from ecp_client.copying.scaling import Scaling
from ecp_client.copying.symbol_rules import VOLUME_STEP_E8, Limits, SymbolRules, check_limits
from ecp_client.errors import SettingsError
from ecp_client.scale import Scale
from execution.common.v1 import signal_pb2 as pb

MULTIPLIER_ONE_E4 = 10_000
RISK_BPS_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySettings:
    """How one subscriber copies one master. Zero switches a limit off.

    Raises:
        SettingsError: a value is out of range.
    """

    scaling: Scaling = Scaling.MULTIPLIER
    """What the volume of a new position depends on."""
    volume_multiplier_e4: int = MULTIPLIER_ONE_E4
    """For MULTIPLIER and EQUITY: 10,000 is the master's own volume, or its own in proportion."""
    volume_fixed_e8: int = 0
    """For FIXED."""
    risk_bps: int = 0
    """For RISK: 100 is one percent of equity."""
    volume_step_e8: int = VOLUME_STEP_E8
    """Volumes are rounded down to a multiple of this: 0.01 lots."""
    volume_min_e8: int = VOLUME_STEP_E8
    """Smaller volumes are not opened."""
    volume_max_e8: int = 0
    """Largest volume of one position."""
    reverse: bool = False
    """Sell what the master buys; stop loss and take profit change places."""
    symbol_map: Mapping[str, str] = field(default_factory=dict)
    """The master's name of a symbol -> the account's; others keep theirs."""
    symbols: frozenset[str] | None = None
    """The master's names of the symbols to copy; None is all."""
    symbols_excluded: frozenset[str] = frozenset()
    """The master's names of symbols not to copy."""
    sides: frozenset[int] = frozenset((pb.SIDE_BUY, pb.SIDE_SELL))
    """The master's sides to copy."""
    hours: tuple[Hours, ...] = ()
    """When positions are opened, by the time of the master's signal; none is always. What closes or reduces always
    passes."""
    copy_pending: bool = True
    """Whether pending orders are copied; if not, their fills are copied as market orders."""
    max_slippage_e8: int = 0
    """How much worse than the master's the price may be now, in the units of a price; needs a source of quotes."""
    symbol_rules: Mapping[str, SymbolRules] = field(default_factory=dict)
    """By the account's name of a symbol: what stands there instead of volume_step_e8, volume_min_e8, volume_max_e8 and
    max_slippage_e8."""
    max_signal_age_ms: int = 0
    """Older openings are skipped. What closes or reduces is never too old."""

    def __post_init__(self) -> None:
        self._check_types()
        check_limits(self)
        if self.volume_multiplier_e4 <= 0:
            raise SettingsError("volume_multiplier_e4 must be positive")
        if self.max_signal_age_ms < 0:
            raise SettingsError("max_signal_age_ms must not be negative")
        if (self.scaling is Scaling.FIXED) != (self.volume_fixed_e8 > 0):
            raise SettingsError("volume_fixed_e8 goes with FIXED, and must be positive then")
        if (self.scaling is Scaling.RISK) != (self.risk_bps > 0) or not 0 <= self.risk_bps <= RISK_BPS_MAX:
            raise SettingsError(f"risk_bps goes with RISK, and must be in 1..{RISK_BPS_MAX} then")

    def _check_types(self) -> None:
        """A float would make floats of volumes, and of a string every letter would count as a symbol."""
        for name in _WHOLE_NUMBERS:
            if type(getattr(self, name)) is not int:
                raise SettingsError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        sets: tuple[object, ...] = (self.symbols, self.symbols_excluded)
        if any(isinstance(names, str) for names in sets):
            raise SettingsError("symbols and symbols_excluded must be sets of names")
        if not isinstance(self.symbol_map, Mapping):
            raise SettingsError("symbol_map must map names to names")
        rules: object = self.symbol_rules
        if not isinstance(rules, Mapping) or not all(isinstance(one, SymbolRules) for one in rules.values()):
            raise SettingsError("symbol_rules must map names to SymbolRules")
        if not isinstance(self.scaling, Scaling):
            raise SettingsError(f"scaling must be a Scaling, not {self.scaling!r}")
        if not set(self.sides) <= {pb.SIDE_BUY, pb.SIDE_SELL}:
            raise SettingsError("sides must be of SIDE_BUY and SIDE_SELL")
        hours: object = self.hours
        if not isinstance(hours, tuple) or not all(isinstance(window, Hours) for window in hours):
            raise SettingsError("hours must be a tuple of Hours")

    def limits(self, symbol: str) -> Limits:
        """Volumes and slippage of the account's symbol."""
        return self.symbol_rules.get(symbol, self)

    def volume_for(self, symbol: str, master_volume_e8: int, scale: Scale | None = None) -> int:
        """The volume that the account holds of a position in which the master has `master_volume_e8`; 0 is none.

        `symbol` is the account's. `scale` is the position's own; None is the multiplier.
        """
        limits = self.limits(symbol)
        if scale is None:
            volume_e8 = master_volume_e8 * self.volume_multiplier_e4 // MULTIPLIER_ONE_E4
        else:
            volume_e8 = scale.of(master_volume_e8)
        if 0 < limits.volume_max_e8 < volume_e8:
            volume_e8 = limits.volume_max_e8
        volume_e8 -= volume_e8 % limits.volume_step_e8
        return volume_e8 if volume_e8 >= limits.volume_min_e8 else 0

    def resized_because(self, symbol: str, master_volume_e8: int, scale: Scale | None = None) -> Reason:
        """Why volume_for gives another volume than the master's: the scaling and the step, or the largest volume."""
        scaled_e8 = master_volume_e8 * self.volume_multiplier_e4 // MULTIPLIER_ONE_E4
        if scale is not None:
            scaled_e8 = scale.of(master_volume_e8)
        return Reason.VOLUME_MAX if 0 < self.limits(symbol).volume_max_e8 < scaled_e8 else self.scaling_reason

    @property
    def scaling_reason(self) -> Reason:
        """Why volumes differ from the master's in general."""
        return _RESIZED_BY[self.scaling]

    def symbol_for(self, symbol: str) -> str:
        """The account's name of the master's symbol."""
        return self.symbol_map.get(symbol, symbol)

    def order_type_for(self, order_type: pb.OrderType.ValueType) -> pb.OrderType.ValueType:
        """The account's order type: reversed, a limit is a stop at the same price. UNSPECIFIED has no reverse."""
        if not self.reverse:
            return order_type
        return _REVERSED_TYPES.get(order_type, pb.ORDER_TYPE_UNSPECIFIED)

    def filtered(self, symbol: str, side: int) -> Reason:
        """NONE, or which filter keeps the master's symbol and side out."""
        if symbol in self.symbols_excluded or (self.symbols is not None and symbol not in self.symbols):
            return Reason.SYMBOL_FILTER
        return Reason.NONE if side in self.sides else Reason.SIDE_FILTER

    def opens_at(self, at_us: int) -> bool:
        """Whether positions are opened at this moment, in microseconds since 1970."""
        return not self.hours or any(window.hold(at_us) for window in self.hours)


def side_for(side: pb.Side.ValueType, reverse: bool) -> pb.Side.ValueType:
    """The account's side of a position in which the master has `side`."""
    if not reverse:
        return side
    return pb.SIDE_SELL if side == pb.SIDE_BUY else pb.SIDE_BUY


def stops_for(stop_loss_e8: int, take_profit_e8: int, reverse: bool) -> tuple[int, int]:
    """The account's stop loss and take profit."""
    return (take_profit_e8, stop_loss_e8) if reverse else (stop_loss_e8, take_profit_e8)


_WHOLE_NUMBERS = (
    "volume_multiplier_e4",
    "volume_fixed_e8",
    "risk_bps",
    "max_signal_age_ms",
)

_RESIZED_BY = {
    Scaling.MULTIPLIER: Reason.MULTIPLIER,
    Scaling.FIXED: Reason.FIXED_VOLUME,
    Scaling.EQUITY: Reason.EQUITY,
    Scaling.RISK: Reason.RISK,
}


_REVERSED_TYPES: dict[int, pb.OrderType.ValueType] = {
    pb.ORDER_TYPE_LIMIT: pb.ORDER_TYPE_STOP,
    pb.ORDER_TYPE_STOP: pb.ORDER_TYPE_LIMIT,
}
