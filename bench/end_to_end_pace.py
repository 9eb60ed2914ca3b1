"""When each signal of an end-to-end run is meant to be sent, and how a signal carries that; it sends nothing.

Times are CLOCK_MONOTONIC's, which is the same for all processes of one machine and never steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from execution.common.v1.signal_pb2 import SIDE_BUY, SIGNAL_KIND_OPEN, Signal

_COMMENT: Final = "breakout of the asian range, second entry, stop behind the low"
TRACEPARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
"""With it a signal is nearly 200 bytes as it is stored."""


def now_us() -> int:
    """The machine's monotonic time in microseconds."""
    return time.monotonic_ns() // 1_000


@dataclass(frozen=True, slots=True)
class Pace:
    """So many signals, one after the other at equal distances."""

    interval_us: int
    warmup_signals: int
    measured_signals: int

    @classmethod
    def of(cls, signals_per_second: float, warmup_seconds: float, seconds: float) -> Pace:
        """Signals at a rate: first those of the warm-up, then those that are measured."""
        return cls(
            round(1e6 / signals_per_second),
            round(warmup_seconds * signals_per_second),
            round(seconds * signals_per_second),
        )

    @property
    def signals(self) -> int:
        """All of them."""
        return self.warmup_signals + self.measured_signals

    def intended_us(self, began_us: int, number: int) -> int:
        """When signal `number` (from 0) is meant to be sent, if number 0 is at `began_us`."""
        return began_us + number * self.interval_us

    def due(self, began_us: int, at_us: int) -> int:
        """How many are meant to be sent by then."""
        return min(self.signals, (at_us - began_us) // self.interval_us + 1) if at_us >= began_us else 0


def signal_bytes(intended_us: int, occurred_at_us: int) -> bytes:
    """A signal of a real size whose position's ticket is the time at which it is meant to be sent."""
    return Signal(
        kind=SIGNAL_KIND_OPEN,
        position_id=intended_us,
        symbol="EURUSD",
        side=SIDE_BUY,
        volume_lots_e8=10_000_000,
        price_e8=107_140_000,
        stop_loss_e8=106_900_000,
        take_profit_e8=107_900_000,
        occurred_at_us=occurred_at_us,
        comment=_COMMENT,
        magic=20_240_117,
    ).SerializeToString()
