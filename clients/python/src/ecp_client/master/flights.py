"""Frames under way and what becomes of them: acknowledged, refused, or void behind a refused one. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


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

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: deque[Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, flight: Flight) -> None:
        """Notes a frame that was just sent."""
        self._flights.append(flight)

    def acknowledged(self, sequence: int) -> None:
        """Forgets what is covered by a cumulative acknowledgement."""
        flights = self._flights
        while flights and flights[0].last <= sequence:
            flights.popleft()

    def refused(self, sequence: int) -> Flight | None:
        """The frame that a Reject of `sequence` answers; None when there is none.

        The server answers in order, so it is the oldest that contains the sequence: void ones are older than what was
        sent again in their place. Unless it is void itself, everything behind it becomes void.
        """
        found: Flight | None = None
        for flight in self._flights:
            if found is None:
                found = flight if flight.first <= sequence <= flight.last else None
            elif not found.void:
                flight.void = True
        if found is not None:
            self._flights.remove(found)
        return found
