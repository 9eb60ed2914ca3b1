"""What one subscriber was told, held against the promise: each signal once and in order. Pure; it reads no bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from execution.fanout.v1 import fanout_service_pb2 as pb

_PROBLEMS_MAX = 5


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive signals of one master, and which one the server says comes before them."""

    previous: int
    last: int
    first: int


def spans_of(signals: pb.Signals) -> tuple[Span, ...]:
    """The signals of a message; as many spans as it takes to leave no hole inside one."""
    spans: list[Span] = []
    for one in signals.signals:
        if spans and one.previous_sequence == spans[-1].last == one.sequence - 1:
            former = spans.pop()
            spans.append(Span(former.previous, one.sequence, former.first))
        else:
            spans.append(Span(one.previous_sequence, one.sequence, one.sequence))
    return tuple(spans)


@dataclass(slots=True)
class Told:
    """What a subscriber holds, across all of its streams."""

    held: int = 0
    """It has been told everything up to this sequence, or missed it."""
    delivered: int = 0
    missing: int = 0
    doubled: int = 0
    heard_at: float | None = None
    silence_seconds_max: float = 0.0
    problems: list[str] = field(default_factory=list)

    def take(self, spans: Iterable[Span], now: float) -> None:
        """Signals came at a time in seconds."""
        for span in spans:
            if span.previous != self.held or span.first != self.held + 1:
                self._astray(span)
            self.delivered += span.last - span.first + 1
            self.held = max(self.held, span.last)
        self.heard(now)

    def heard(self, now: float) -> None:
        """The silence since the last signal ends, or the observation does."""
        if self.heard_at is not None:
            self.silence_seconds_max = max(self.silence_seconds_max, now - self.heard_at)
        self.heard_at = now

    def is_told(self, last: int) -> None:
        """Nothing more comes, and this was the last signal that there is."""
        if self.held != last:
            self.missing += max(0, last - self.held)
            self.problem(f"the last signal is {last}, the last that came {self.held}")

    def problem(self, what: str) -> None:
        """Keeps a sentence about what broke a promise."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(what)

    def _astray(self, span: Span) -> None:
        self.doubled += max(0, min(self.held, span.last) - span.first + 1)
        self.missing += max(0, span.first - self.held - 1)
        self.problem(f"{span.first} to {span.last}, said to follow {span.previous}, came behind {self.held}")
