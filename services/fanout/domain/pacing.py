"""When the next round of writing may begin; pure.

Writing to many streams at once costs time during which signals gather. Resting a little in proportion to that cost, up
to a bound, turns many small rounds into fewer larger ones: under load messages carry more signals and the process keeps
some of its core, at low load nothing is delayed.
"""

from __future__ import annotations


class Pacing:
    """The rests between rounds."""

    def __init__(self, *, load_max: float, delay_seconds_max: float) -> None:
        """Rests so that rounds take about `load_max` of the time, but never longer than `delay_seconds_max`."""
        self._rest_factor = 1 / load_max - 1
        self._delay_seconds_max = delay_seconds_max

    def rest_seconds(self, round_seconds: float) -> float:
        """How long to rest after a round that took `round_seconds`."""
        return min(self._delay_seconds_max, max(0.0, round_seconds) * self._rest_factor)
