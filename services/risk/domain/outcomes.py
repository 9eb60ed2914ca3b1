"""What an outcome may say; it knows no message format and stores nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

EVENT_ID_BYTES_MAX: Final = 64
SEQUENCE_MAX: Final = 2**53 - 1
EPOCH_MAX: Final = 2**31 - 1
INT64_MAX: Final = 2**63 - 1
LATENCY_US_MAX: Final = 30 * 86_400 * 1_000_000


class Reason(IntEnum):
    """Why a signal was not copied, numbered as execution.risk.v1.ProtectionReason; EXECUTED means that it was."""

    EXECUTED = 0
    SLIPPAGE = 1
    LATENCY = 2
    SPREAD = 3
    PRICE = 4
    MARGIN = 5
    FILTER = 6


REASON_NAMES: Final = {reason: reason.name.lower() for reason in Reason}


@dataclass(frozen=True, slots=True)
class OutcomeLimits:
    """How far an outcome's own time may be from the server's, in microseconds."""

    age_us_max: int
    skew_us_max: int


def problem_of(
    *,
    event_id: str,
    master_id: int,
    epoch: int,
    sequence: int,
    executed: bool,
    protected: bool,
    reason: int,
    price_e8: int,
    latency_us: int,
) -> str | None:
    """What is wrong with an outcome, whoever reports it and whenever; None when nothing is."""
    if not 1 <= len(event_id) <= EVENT_ID_BYTES_MAX or not (event_id.isascii() and event_id.isprintable()):
        return f"event_id must be 1 to {EVENT_ID_BYTES_MAX} printable ASCII characters"
    if not 1 <= master_id <= INT64_MAX:
        return "master_id is not a master's number"
    if not 1 <= epoch <= EPOCH_MAX or not 1 <= sequence <= SEQUENCE_MAX:
        return "position must name a signal: epoch and sequence from 1"
    if not executed and not protected:
        return "kind must be EXECUTED or PROTECTED"
    if executed and reason != Reason.EXECUTED:
        return "an EXECUTED outcome has no reason"
    if protected and not Reason.SLIPPAGE <= reason <= Reason.FILTER:
        return "a PROTECTED outcome needs a reason"
    if price_e8 < 0:
        return "price_e8 must not be negative"
    if not 0 <= latency_us <= LATENCY_US_MAX:
        return "latency_us must be from 0 to 30 days"
    return None


def time_problem_of(occurred_at_us: int, now_us: int, limits: OutcomeLimits) -> str | None:
    """What is wrong with the time of an outcome; None when nothing is."""
    if occurred_at_us > now_us + limits.skew_us_max:
        return f"occurred_at_us is {(occurred_at_us - now_us) / 1e6:.0f} s ahead of the server's clock"
    if occurred_at_us < now_us - limits.age_us_max:
        return f"occurred_at_us is more than {limits.age_us_max / 3.6e9:.0f} h ago"
    return None
