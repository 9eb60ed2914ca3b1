"""What an account holds after a run of signals, computed the plainest way: a second opinion on the client's books.

It shares no code with them on purpose. Stop loss and take profit are left to the client library's own tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from execution.common.v1 import signal_pb2, snapshot_pb2

VOLUME_STEP_E8 = 1_000_000

Held = tuple[int, int]
"""(side, volume in 1e-8 lots)."""


@dataclass(slots=True)
class Holdings:
    """Open positions and pending orders by ticket."""

    positions: dict[int, Held] = field(default_factory=dict)
    orders: dict[int, Held] = field(default_factory=dict)

    @classmethod
    def of_snapshot(cls, snapshot: snapshot_pb2.Snapshot) -> Holdings:
        """What a snapshot says is open."""
        return cls(
            {p.position_id: (p.side, p.volume_lots_e8) for p in snapshot.positions},
            {o.order_id: (o.side, o.volume_lots_e8) for o in snapshot.orders},
        )

    def scaled(self, percent: int) -> Holdings:
        """The same with every volume multiplied by percent / 100 and rounded down to the volume step."""

        def scale(held: dict[int, Held]) -> dict[int, Held]:
            return {
                ticket: (side, _round(volume * percent // 100)) for ticket, (side, volume) in held.items()
            }

        return Holdings(scale(self.positions), scale(self.orders))

    def differences(self, wanted: Holdings) -> list[str]:
        """One line for each ticket that differs."""
        return [
            f"{kind} {ticket}: holds {held.get(ticket)}, should hold {want.get(ticket)}"
            for kind, held, want in (
                ("position", self.positions, wanted.positions),
                ("order", self.orders, wanted.orders),
            )
            for ticket in sorted(held.keys() | want.keys())
            if held.get(ticket) != want.get(ticket)
        ]


def _round(volume_lots_e8: int) -> int:
    return volume_lots_e8 - volume_lots_e8 % VOLUME_STEP_E8


def replay(signals: Iterable[signal_pb2.Signal]) -> Holdings:
    """Applies signals in order; what refers to a ticket that is not held (it was not copied) changes nothing."""
    holdings = Holdings()
    for signal in signals:
        _apply(signal, holdings)
    return holdings


def follow(steps: Iterable[tuple[signal_pb2.Signal, bool]]) -> Holdings:
    """What a subscriber holds who received these signals and copied those that are marked, before its settings.

    A close-by is settled against the master's two positions as far as the subscriber knows them.
    """
    mirror, account = Holdings(), Holdings()
    for signal, copied in steps:
        _apply(signal, mirror)
        if signal.kind == signal_pb2.SIGNAL_KIND_CLOSE_BY:
            for ticket in (signal.position_id, signal.opposite_position_id):
                _reduce(account.positions, ticket, mirror.positions.get(ticket, (0, 0))[1])
        elif copied:
            _apply(signal, account)
    return account


def _apply(signal: signal_pb2.Signal, holdings: Holdings) -> None:
    positions, orders = holdings.positions, holdings.orders
    match signal.kind:
        case signal_pb2.SIGNAL_KIND_OPEN:
            positions[signal.position_id] = (signal.side, signal.volume_lots_e8)
        case signal_pb2.SIGNAL_KIND_CLOSE:
            positions.pop(signal.position_id, None)
        case signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE:
            _reduce(positions, signal.position_id, signal.volume_lots_e8)
        case signal_pb2.SIGNAL_KIND_CLOSE_BY:
            _close_by(signal, positions)
        case signal_pb2.SIGNAL_KIND_PENDING_PLACE:
            orders[signal.order_id] = (signal.side, signal.volume_lots_e8)
        case signal_pb2.SIGNAL_KIND_PENDING_CANCEL:
            orders.pop(signal.order_id, None)
        case signal_pb2.SIGNAL_KIND_PENDING_FILL:
            orders.pop(signal.order_id, None)
            positions[signal.position_id] = (signal.side, signal.volume_lots_e8)


def _reduce(positions: dict[int, Held], ticket: int, remaining: int) -> None:
    side, volume = positions.pop(ticket, (0, 0))
    if volume and remaining:
        positions[ticket] = (side, min(volume, remaining))


def _close_by(signal: signal_pb2.Signal, positions: dict[int, Held]) -> None:
    one = positions.pop(signal.position_id, None)
    other = positions.pop(signal.opposite_position_id, None)
    if not signal.volume_lots_e8:
        return
    if one and other:
        larger_is_one = one[1] > other[1]
        ticket = signal.position_id if larger_is_one else signal.opposite_position_id
        positions[ticket] = ((one if larger_is_one else other)[0], signal.volume_lots_e8)
