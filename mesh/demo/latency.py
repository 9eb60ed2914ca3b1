"""Percentiles of latencies from all samples, exact to one microsecond; knows no clock."""

from __future__ import annotations

import math
from array import array

SAMPLES_MAX = 20_000_000


class Latencies:
    """All samples in microseconds, 4 bytes each; beyond `SAMPLES_MAX` they are counted and not kept."""

    def __init__(self) -> None:
        self._samples_us = array("I")
        self._recent_from = 0
        self.dropped = 0

    def add(self, latency_us: int) -> None:
        """Takes one sample; a negative one (a stepped clock) counts as 0."""
        if len(self._samples_us) >= SAMPLES_MAX:
            self.dropped += 1
            return
        self._samples_us.append(min(max(latency_us, 0), 0xFFFFFFFF))

    def __len__(self) -> int:
        return len(self._samples_us)

    def percentiles_ms(self, *ranks: float) -> list[float | None]:
        """The given percentiles (0 to 100, nearest rank) of all samples, in milliseconds; None when there are none."""
        return _percentiles_ms(sorted(self._samples_us), ranks)

    def recent_percentiles_ms(self, *ranks: float) -> list[float | None]:
        """The same over the samples since the last call of this method."""
        recent = sorted(self._samples_us[self._recent_from :])
        self._recent_from = len(self._samples_us)
        return _percentiles_ms(recent, ranks)


def _percentiles_ms(ordered_us: list[int], ranks: tuple[float, ...]) -> list[float | None]:
    if not ordered_us:
        return [None for _ in ranks]
    last = len(ordered_us) - 1
    return [
        ordered_us[min(last, max(0, math.ceil(rank / 100 * len(ordered_us)) - 1))] / 1000 for rank in ranks
    ]
