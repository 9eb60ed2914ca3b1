"""How long to wait before trying again: exponential with full jitter and a cap; it does not sleep itself."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Delays for one sequence of attempts.

    The n-th delay is uniform in [0, min(cap, initial * factor ** n)), the "full jitter" of Brooker,
    "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): it spreads peers that failed together the
    most.
    """

    def __init__(
        self,
        *,
        initial_seconds: float = 0.05,
        cap_seconds: float = 5.0,
        factor: float = 2.0,
        floor_seconds: float = 0.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`floor_seconds` is added to nothing and cuts nothing but delays shorter than it.

        Raises:
            ValueError: not 0 <= floor <= initial <= cap, or factor < 1.
        """
        if not 0 <= floor_seconds <= initial_seconds <= cap_seconds or factor < 1 or initial_seconds == 0:
            raise ValueError("a back-off needs 0 <= floor <= initial <= cap, initial > 0 and factor >= 1")
        self._initial_seconds = initial_seconds
        self._cap_seconds = cap_seconds
        self._factor = factor
        self._floor_seconds = floor_seconds
        self._uniform = uniform
        self._ceiling_seconds = initial_seconds

    def next_delay(self) -> float:
        """Seconds to wait now; the following one comes from twice (factor times) the range, up to the cap."""
        delay = self._uniform(0, self._ceiling_seconds)
        self._ceiling_seconds = min(self._cap_seconds, self._ceiling_seconds * self._factor)
        return max(self._floor_seconds, delay)

    def reset(self) -> None:
        """Starts over; call it after a success."""
        self._ceiling_seconds = self._initial_seconds
