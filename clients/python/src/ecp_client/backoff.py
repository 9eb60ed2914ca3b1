"""How long to wait before trying again: exponential with full jitter and a cap; it does not sleep itself."""

from __future__ import annotations

import random
from collections.abc import Callable

from ecp_client.errors import SettingsError


class Backoff:
    """Delays of one sequence of attempts.

    The n-th delay is uniform in [0, min(cap, initial * 2 ** n)): the "full jitter" of Brooker, "Exponential Backoff And
    Jitter" (AWS Architecture Blog, 2015), which spreads clients that were cut off together the most.
    """

    def __init__(
        self,
        initial_seconds: float,
        cap_seconds: float,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Raises:
        SettingsError: not 0 < initial <= cap.
        """
        if not 0 < initial_seconds <= cap_seconds:
            raise SettingsError(
                f"a back-off needs 0 < initial <= cap, not {initial_seconds} and {cap_seconds}"
            )
        self._initial_seconds = initial_seconds
        self._cap_seconds = cap_seconds
        self._uniform = uniform
        self._ceiling_seconds = initial_seconds

    def next_delay(self) -> float:
        """Seconds to wait now; the next call draws from twice the range, up to the cap."""
        delay = self._uniform(0.0, self._ceiling_seconds)
        self._ceiling_seconds = min(self._cap_seconds, self._ceiling_seconds * 2)
        return delay

    def reset(self) -> None:
        """Starts over; call it after a success."""
        self._ceiling_seconds = self._initial_seconds
