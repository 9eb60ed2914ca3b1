"""How many signals a second a master may send; pure arithmetic on the monotonic times that it is given."""

from __future__ import annotations


class TokenBucket:
    """Lets through `per_second` on average and `burst` at once; `per_second` 0 is no limit."""

    __slots__ = ("_burst", "_per_second", "_tokens", "_updated_at")

    def __init__(self, per_second: float, burst: float, now_seconds: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._updated_at = now_seconds

    def take(self, wanted: int, now_seconds: float) -> int:
        """Takes up to `wanted` whole tokens and returns how many there were."""
        if not self._per_second:
            return wanted
        elapsed = max(0.0, now_seconds - self._updated_at)
        self._tokens = min(self._burst, self._tokens + elapsed * self._per_second)
        self._updated_at = now_seconds
        taken = min(wanted, int(self._tokens))
        self._tokens -= taken
        return taken

    def set_rate(self, per_second: float, burst: float) -> None:
        """Another limit from now on; what is left is kept up to the new burst."""
        self._per_second = per_second
        self._burst = burst
        self._tokens = min(self._tokens, burst)

    def seconds_until_next(self) -> float:
        """How long until one more token is there, seen from the last `take`."""
        if not self._per_second or self._tokens >= 1:
            return 0.0
        return (1 - self._tokens) / self._per_second
