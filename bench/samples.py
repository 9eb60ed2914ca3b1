"""Latencies of a run, all of them, to the microsecond; it knows no clock."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

RANKS = (50.0, 90.0, 99.0, 99.9, 100.0)
_ROUNDING = 1e-6


class Samples:
    """Microseconds, 4 bytes each."""

    def __init__(self) -> None:
        self._microseconds = array("I")

    def __len__(self) -> int:
        return len(self._microseconds)

    def add_seconds(self, seconds: float) -> None:
        """Takes one sample; a negative one counts as 0."""
        self._microseconds.append(max(0, min(round(seconds * 1e6), 0xFFFF_FFFF)))

    def add_microseconds(self, microseconds: int) -> None:
        """Takes one sample; a negative one counts as 0."""
        self._microseconds.append(max(0, min(microseconds, 0xFFFF_FFFF)))

    def extend(self, other: Samples) -> None:
        """Takes all samples of another."""
        self._microseconds.extend(other._microseconds)

    def percentiles_ms(self, ranks: Iterable[float] = RANKS) -> dict[str, float]:
        """By nearest rank over all samples; `{"p99": 1.234}`. Empty without samples."""
        ordered = sorted(self._microseconds)
        if not ordered:
            return {}
        return {
            f"p{rank:g}": ordered[max(0, math.ceil(rank * len(ordered) / 100 - _ROUNDING) - 1)] / 1_000
            for rank in ranks
        }
