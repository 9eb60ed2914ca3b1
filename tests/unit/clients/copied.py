"""A copier, what it is given, and what it made of that; for tests of copying."""

from __future__ import annotations

from ecp_client.books import Book
from ecp_client.copying import Action, Copier, CopySettings, Decision, Plan, Reason, Step, reconcile
from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.made import sequenced, signal

OPEN, CLOSE, PLACE = pb.SIGNAL_KIND_OPEN, pb.SIGNAL_KIND_CLOSE, pb.SIGNAL_KIND_PENDING_PLACE
NOW_US = 1_000_000


def take(copier: Copier, one: pb.Signal, now_us: int = NOW_US, *, degraded: bool = False) -> Decision:
    return copier.take(sequenced(one), now_us, degraded=degraded)


def copier(**settings: object) -> Copier:
    return Copier(CopySettings(**settings))


def outcome(decision: Decision) -> tuple[Action, Reason, int]:
    return decision.action, decision.reason, decision.volume_lots_e8


def place(order_type: pb.OrderType.ValueType = pb.ORDER_TYPE_LIMIT, **fields: object) -> pb.Signal:
    """A pending order with the ticket 3."""
    return signal(PLACE, 0, order_id=3, order_type=order_type, **fields)


def sync(client: Copier, *signals: pb.Signal, now_us: int = NOW_US, **more: object) -> Plan:
    """A full sync with the snapshot of a master that did these signals."""
    book = Book()
    for sequence, one in enumerate(signals, 1):
        book.apply(one, sequence)
    return reconcile(client, Book.from_snapshot(book.to_snapshot(1, 9, 0)), now_us, **more)


def steps(plan: Plan) -> list[tuple[Step, int]]:
    return [(action.step, action.ticket) for action in plan.actions]
