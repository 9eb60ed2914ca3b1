"""What one copied position is to the master's, as a ratio of integers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd


@dataclass(frozen=True, slots=True)
class Scale:
    """The account's volume of a position is the master's times numerator over denominator, before rounding."""

    numerator: int
    denominator: int

    def of(self, master_volume_e8: int) -> int:
        """The account's volume, rounded down to a unit."""
        return master_volume_e8 * self.numerator // self.denominator

    def to_text(self) -> str:
        """A form that `from_text` reads back."""
        return f"{self.numerator}/{self.denominator}"

    @classmethod
    def from_text(cls, text: str) -> Scale:
        """The scale that `to_text` wrote. Raises ValueError for anything else."""
        numerator, _, denominator = text.partition("/")
        scale = cls(int(numerator), int(denominator))
        if scale.numerator < 0 or scale.denominator <= 0:
            raise ValueError(f"not a scale: {text}")
        return scale


def ratio(numerator: int, denominator: int) -> Scale:
    """The scale in lowest terms; `denominator` is positive."""
    common = gcd(numerator, denominator) or 1
    return Scale(numerator // common, denominator // common)
