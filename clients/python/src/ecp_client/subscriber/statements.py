"""What was said last about each entry of a mirror, and what of it an incomplete full sync leaves open. Pure; no I/O.

A snapshot may be older than what was delivered, and not all of that comes again: a pause withholds it, or the log has
lost it. What was opened there is neither in the snapshot nor behind it, and yet nobody said that it was closed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from ecp_client.books import Book, BookOrder, BookPosition
from execution.common.v1 import signal_pb2 as pb

_Entries = dict[int, BookPosition] | dict[int, BookOrder]


def dump_statements(mirror: Book) -> bytes:
    """What was said last about each entry, as JSON on one line."""
    kept = {"positions": _sequences(mirror.positions), "orders": _sequences(mirror.orders)}
    return json.dumps(kept, separators=(",", ":")).encode()


def _sequences(entries: _Entries) -> list[tuple[int, int]]:
    return [(ticket, entry.stated_by_sequence) for ticket, entry in entries.items()]


def load_statements(mirror: Book, data: bytes) -> None:
    """Takes what `dump_statements` wrote; with nothing, all entries are as their snapshot says.

    Raises:
        ValueError: it is not of that form.
    """
    if not data:
        return
    try:
        kept = json.loads(data)
        for ticket, sequence in kept["positions"]:
            mirror.positions[ticket].stated_by_sequence = int(sequence)
        for ticket, sequence in kept["orders"]:
            mirror.orders[ticket].stated_by_sequence = int(sequence)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not statements about the mirror: {error!r}") from error


@dataclass(slots=True)
class Endings:
    """What was seen to end during a full sync: by ticket, the sequence of the signal that said so."""

    positions: dict[int, int] = field(default_factory=dict)
    orders: dict[int, int] = field(default_factory=dict)
    paired: set[int] = field(default_factory=set)
    """Closed by one another: where the mirror knew only one, it dropped that, and perhaps that is the one left."""

    def take(self, signal: pb.Signal, sequence: int) -> None:
        """Notes what `signal` ends."""
        kind = signal.kind
        is_whole = kind == pb.SIGNAL_KIND_PARTIAL_CLOSE and signal.volume_lots_e8 <= 0
        if kind == pb.SIGNAL_KIND_CLOSE or is_whole:
            self.positions[signal.position_id] = sequence
        elif kind in (pb.SIGNAL_KIND_PENDING_CANCEL, pb.SIGNAL_KIND_PENDING_FILL):
            self.orders[signal.order_id] = sequence
        elif kind == pb.SIGNAL_KIND_CLOSE_BY:
            self.paired |= {signal.position_id, signal.opposite_position_id}


def keep_unconfirmed(
    mirror: Book, before: Book, as_of_sequence: int, endings: Endings
) -> tuple[frozenset[int], frozenset[int]]:
    """Takes over from the mirror before what was stated there later than in the new one, and was not seen to end.

    Returns the tickets of those positions and orders.
    """
    positions, orders = set(), set()
    for ticket, position in before.positions.items():
        there = mirror.positions.get(ticket)
        stated = as_of_sequence if there is None else there.stated_by_sequence
        is_left = there is None and ticket in endings.paired and ticket not in endings.positions
        if is_left or position.stated_by_sequence > max(stated, endings.positions.get(ticket, 0)):
            mirror.positions[ticket] = position
            positions.add(ticket)
    for ticket, order in before.orders.items():
        placed = mirror.orders.get(ticket)
        stated = as_of_sequence if placed is None else placed.stated_by_sequence
        if order.stated_by_sequence > max(stated, endings.orders.get(ticket, 0)):
            mirror.orders[ticket] = order
            orders.add(ticket)
    return frozenset(positions), frozenset(orders)
