"""When a reader is too far behind: warned first, then ended with its position. It measures nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class LagLimits:
    """How far behind a reader may be. It is warned at `warn_fraction` of any of them and ended beyond."""

    signals_max: int
    bytes_max: int
    seconds_max: float
    catch_up_seconds_max: float
    """How long a reader that resumed far back may take until it has everything for the first time."""
    unacknowledged_seconds_max: float
    """How long a reader that acknowledges may leave a signal that it was sent without acknowledging it."""
    warn_fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind a reader is."""

    signals: int = 0
    """Positions in the log that it was not sent."""
    bytes: int = 0
    """About how large they are."""
    seconds: float = 0.0
    """For how long there has always been something that it was not sent."""
    is_catching_up: bool = False
    """Whether it has never had everything since it came."""
    unacknowledged_seconds: float = 0.0
    """Age of the oldest position that it was sent and did not acknowledge; 0 when it never acknowledges."""


class Verdict(Enum):
    """What follows from a lag."""

    FINE = "fine"
    WARN = "warn"
    END = "end"


def judge(lag: Lag, limits: LagLimits) -> tuple[Verdict, str]:
    """The verdict, and which limit it is about."""
    worst, name = max(_shares(lag, limits))
    if worst > 1:
        return Verdict.END, name
    return (Verdict.WARN, name) if worst >= limits.warn_fraction else (Verdict.FINE, "")


def _shares(lag: Lag, limits: LagLimits) -> list[tuple[float, str]]:
    shares = [(lag.unacknowledged_seconds / limits.unacknowledged_seconds_max, "unacknowledged_seconds")]
    if lag.is_catching_up:
        # One who resumes far back is far behind by right; only the time that it takes counts.
        return [*shares, (lag.seconds / limits.catch_up_seconds_max, "catch_up_seconds")]
    return [
        *shares,
        (lag.signals / limits.signals_max, "signals"),
        (lag.bytes / limits.bytes_max, "bytes"),
        (lag.seconds / limits.seconds_max, "seconds"),
    ]
