"""Readings of this machine's clocks, and an estimate of the server's; the estimate itself reads no clock."""

from __future__ import annotations

import time

# An estimate older than this gives way to a worse but newer one: clocks drift by up to 100 ppm or so.
ESTIMATE_AGE_US_MAX = 60_000_000


def monotonic_us() -> int:
    """Microseconds on a clock that never goes back; only differences mean something."""
    return time.monotonic_ns() // 1_000


def wall_us() -> int:
    """Microseconds since 1970-01-01T00:00:00Z by this machine's clock."""
    return time.time_ns() // 1_000


class ServerClock:
    """The server's clock as seen from here, kept on the monotonic clock: a corrected wall clock does not move it.

    Each answer of the server that carries its time gives an estimate which is wrong by at most the answer's round trip;
    the one with the shortest round trip counts until it is a minute old.
    """

    def __init__(self, now_us: int, guess_us: int) -> None:
        """`guess_us` is the server's time at monotonic `now_us`, from the wall clock and what was learnt before."""
        self._offset_us = guess_us - now_us
        self._round_trip_us: int | None = None
        self._estimated_at_us = now_us

    def at(self, now_us: int) -> int:
        """The server's time in microseconds at monotonic `now_us`."""
        return now_us + self._offset_us

    def observe(self, server_time_us: int, asked_us: int, answered_us: int) -> None:
        """Takes note of an answer: the server's time in it, and when it was asked for and came (monotonic)."""
        round_trip_us = answered_us - asked_us
        best = self._round_trip_us
        stale = answered_us - self._estimated_at_us > ESTIMATE_AGE_US_MAX
        if best is None or round_trip_us <= best or stale:
            self._offset_us = server_time_us - (asked_us + round_trip_us // 2)
            self._round_trip_us = round_trip_us
            self._estimated_at_us = answered_us

    def observe_one_way(self, server_time_us: int, received_us: int) -> None:
        """Takes note of a time that the server sent unasked: its clock shows at least that now.

        The message that travelled fastest gives the best estimate: the largest offset counts until it is a minute old.
        """
        offset_us = server_time_us - received_us
        stale = received_us - self._estimated_at_us > ESTIMATE_AGE_US_MAX
        if self._round_trip_us is None or offset_us >= self._offset_us or stale:
            self._offset_us = offset_us
            self._round_trip_us = 0
            self._estimated_at_us = received_us
