"""Time as the services see it: wall clock in UTC and monotonic clock, settable in tests; it never sleeps."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """Microseconds since 1970-01-01 UTC by the system's clock; may jump when the clock is set."""
    return time.time_ns() // 1_000


def datetime_from_us(time_us: int) -> datetime:
    """The instant `time_us` microseconds after 1970-01-01 UTC, exactly."""
    return _EPOCH + timedelta(microseconds=time_us)


def us_from_datetime(instant: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of an aware datetime, exactly.

    Raises:
        ValueError: `instant` has no time zone.
    """
    if instant.tzinfo is None:
        raise ValueError("instant has no time zone")
    return (instant - _EPOCH) // timedelta(microseconds=1)


class Clock(Protocol):
    """What a service needs to know about time."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        ...

    def now(self) -> datetime:
        """The same instant as an aware datetime in UTC."""
        ...

    def monotonic_seconds(self) -> float:
        """Seconds from an arbitrary start; never goes back. For ages and time-outs."""
        ...


class SystemClock:
    """The clocks of the machine."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        return now_us()

    def now(self) -> datetime:
        """The same instant as an aware datetime in UTC."""
        return datetime_from_us(now_us())

    def monotonic_seconds(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, start_us: int = 1_700_000_000_000_000) -> None:
        self._now_us = start_us
        self._monotonic_us = 0

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        return self._now_us

    def now(self) -> datetime:
        """The same instant as an aware datetime in UTC."""
        return datetime_from_us(self._now_us)

    def monotonic_seconds(self) -> float:
        """Seconds that `advance` added so far; `set_us` does not change it, as with a real clock."""
        return self._monotonic_us / 1e6

    def advance(self, *, seconds: float = 0, us: int = 0) -> None:
        """Moves both clocks forward.

        Raises:
            ValueError: the step is negative.
        """
        step_us = round(seconds * 1e6) + us
        if step_us < 0:
            raise ValueError("a monotonic clock cannot go back; use set_us to set the wall clock")
        self._now_us += step_us
        self._monotonic_us += step_us

    def set_us(self, time_us: int) -> None:
        """Sets the wall clock, forward or back."""
        self._now_us = time_us
