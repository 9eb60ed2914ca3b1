"""Frames under way and what becomes of them: acknowledged, refused, or void behind a refused one. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace


@dataclass(slots=True, eq=False)
class Flight:
    """A frame under way with the sequences first to last."""

    first: int
    last: int
    is_gap_fill: bool = False
    void: bool = False
    """Sent behind a frame that was refused: it will be refused as well, and that means nothing."""


class Flights:
    """The frames of one session that got no answer yet, in the order in which they were sent."""

    __slots__ = ("_acknowledged", "_flights")

    def __init__(self) -> None:
        self._flights: deque[Flight] = deque()
        self._acknowledged = 0

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, flight: Flight) -> None:
        """Notes a frame that was just sent."""
        self._flights.append(flight)

    def acknowledged(self, sequence: int) -> None:
        """Forgets what is covered by a cumulative acknowledgement."""
        self._acknowledged = sequence
        flights = self._flights
        while flights and flights[0].last <= sequence:
            flights.popleft()

    def refused(self, sequence: int) -> Flight | None:
        """The frame that a Reject of `sequence` answers, as it was sent; None when there is none.

        The server answers in order, so it is the oldest that contains the sequence: void ones are older than what was
        sent again in their place. Unless it is void itself, everything behind it becomes void. What the frame has
        before `sequence` was taken: it stays under way, and may yet be refused when the log fails.
        """
        found: Flight | None = None
        for flight in self._flights:
            if found is None:
                found = flight if flight.first <= sequence <= flight.last else None
            elif not found.void:
                flight.void = True
        if found is None:
            return None
        answered = replace(found)
        if found.first < sequence and sequence - 1 > self._acknowledged:
            found.last = sequence - 1
        else:
            self._flights.remove(found)
        return answered
