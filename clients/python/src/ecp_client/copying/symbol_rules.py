"""What one symbol of the account has of its own: its volumes, and how far its price may slip. Pure; integers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ecp_client.errors import SettingsError

VOLUME_STEP_E8 = 1_000_000
LIMITS = ("volume_step_e8", "volume_min_e8", "volume_max_e8", "max_slippage_e8")


class Limits(Protocol):
    """What the settings have for all symbols, and SymbolRules for one."""

    @property
    def volume_step_e8(self) -> int:
        """Volumes are rounded down to a multiple of this."""

    @property
    def volume_min_e8(self) -> int:
        """Smaller volumes are not opened."""

    @property
    def volume_max_e8(self) -> int:
        """Largest volume of one position; 0 is any."""

    @property
    def max_slippage_e8(self) -> int:
        """How much worse than the master's the price may be; 0 is any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolRules:
    """For one symbol of the account, instead of the four values that the settings have under these names.

    Raises:
        SettingsError: a value is out of range.
    """

    volume_step_e8: int = VOLUME_STEP_E8
    volume_min_e8: int = VOLUME_STEP_E8
    volume_max_e8: int = 0
    max_slippage_e8: int = 0
    """In the units of this symbol's price, as 0.02 for two points of a yen pair with two digits."""

    def __post_init__(self) -> None:
        check_limits(self)


def check_limits(limits: Limits) -> None:
    """Does nothing if volumes can be found by these. Raises SettingsError."""
    for name in LIMITS:
        if type(getattr(limits, name)) is not int:
            raise SettingsError(f"{name} must be a whole number, not {getattr(limits, name)!r}")
        if getattr(limits, name) < 0:
            raise SettingsError(f"{name} must not be negative")
    if limits.volume_step_e8 == 0:
        raise SettingsError("volume_step_e8 must be positive")
    if 0 < limits.volume_max_e8 < max(limits.volume_min_e8, limits.volume_step_e8):
        raise SettingsError("volume_max_e8 is below volume_min_e8 or volume_step_e8")
