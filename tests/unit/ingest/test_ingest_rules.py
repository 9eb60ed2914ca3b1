"""Which signals and snapshots are acceptable."""

from __future__ import annotations

import pytest

from execution.common.v1 import signal_pb2, snapshot_pb2
from services.ingest.domain import rules
from services.ingest.domain.rules import problem_of, snapshot_problem
from tests.unit.ingest.signing import signal

K = signal_pb2.SignalKind


def pending(kind: str, **fields: object) -> signal_pb2.Signal:
    values = {
        "kind": K.Value(f"SIGNAL_KIND_PENDING_{kind}"),
        "position_id": 0,
        "order_id": 77,
        "order_type": signal_pb2.ORDER_TYPE_LIMIT,
    }
    return signal(**{**values, **fields})


GOOD = {
    "open": signal(),
    "open with all": signal(
        stop_loss_e8=1, take_profit_e8=1, comment="häppy", magic=2**63 - 1, expires_at_us=1, order_type=3
    ),
    "modify": signal(kind=K.SIGNAL_KIND_MODIFY, side=0, volume_lots_e8=0, price_e8=0, stop_loss_e8=5),
    "close": signal(kind=K.SIGNAL_KIND_CLOSE, side=0, volume_lots_e8=0, price_e8=0),
    "partial close": signal(kind=K.SIGNAL_KIND_PARTIAL_CLOSE, side=0, price_e8=0),
    "close by": signal(kind=K.SIGNAL_KIND_CLOSE_BY, side=0, volume_lots_e8=0, opposite_position_id=9),
    "place": pending("PLACE"),
    "place stop limit": pending("PLACE", order_type=3, stop_limit_price_e8=1),
    "modify order": pending("MODIFY", side=0, volume_lots_e8=0),
    "cancel": pending("CANCEL", side=0, volume_lots_e8=0, price_e8=0),
    "fill": pending("FILL", position_id=5),
}

BAD = [
    ("kind", signal(kind=0)),
    ("kind", signal(kind=10)),
    ("symbol", signal(symbol="")),
    ("symbol", signal(symbol="X" * 33)),
    ("symbol", signal(symbol="EUR USD")),
    ("symbol", signal(symbol="€URUSD")),
    ("position_id", signal(position_id=0)),
    ("position_id", signal(position_id=2**63)),
    ("magic", signal(magic=2**64 - 1)),
    ("order_id", signal(order_id=2**63)),
    ("side", signal(side=0)),
    ("side", signal(side=3)),
    ("side", signal(side=-1)),
    ("volume_lots_e8", signal(volume_lots_e8=0)),
    ("volume_lots_e8", signal(volume_lots_e8=-1)),
    ("price_e8", signal(price_e8=0)),
    ("price_e8", signal(price_e8=-(2**63))),
    ("stop_loss_e8", signal(stop_loss_e8=-1)),
    ("take_profit_e8", signal(take_profit_e8=-1)),
    ("stop_limit_price_e8", signal(stop_limit_price_e8=-1)),
    ("occurred_at_us", signal(occurred_at_us=0)),
    ("occurred_at_us", signal(occurred_at_us=-1)),
    ("occurred_at_us", signal(occurred_at_us=rules.TIME_US_MAX + 1)),
    ("expires_at_us", signal(expires_at_us=-1)),
    ("order_type", signal(order_type=4)),
    ("comment", signal(comment="x" * 65)),
    ("comment", signal(comment="é" * 33)),
    ("comment", signal(comment="a\0b")),
    ("position_id", signal(kind=K.SIGNAL_KIND_MODIFY, position_id=0)),
    ("position_id", signal(kind=K.SIGNAL_KIND_CLOSE, position_id=0)),
    ("volume_lots_e8", signal(kind=K.SIGNAL_KIND_PARTIAL_CLOSE, volume_lots_e8=0)),
    ("opposite_position_id", signal(kind=K.SIGNAL_KIND_CLOSE_BY)),
    ("opposite_position_id", signal(7, kind=K.SIGNAL_KIND_CLOSE_BY, opposite_position_id=1_007)),
    ("order_id", pending("PLACE", order_id=0)),
    ("side", pending("PLACE", side=0)),
    ("order_type", pending("PLACE", order_type=0)),
    ("stop_limit_price_e8", pending("PLACE", order_type=3)),
    ("price_e8", pending("MODIFY", price_e8=0)),
    ("order_id", pending("CANCEL", order_id=0)),
    ("position_id", pending("FILL")),
    ("order_id", pending("FILL", position_id=5, order_id=0)),
]


@pytest.mark.parametrize("name", GOOD)
def test_a_complete_signal_is_accepted(name: str):
    assert problem_of(GOOD[name]) is None


@pytest.mark.parametrize(("field", "bad"), BAD)
def test_the_wrong_field_is_named(field: str, bad: signal_pb2.Signal):
    problem = problem_of(bad)
    assert problem is not None
    assert problem.field == field
    assert field in signal_pb2.Signal.DESCRIPTOR.fields_by_name


def test_every_kind_has_an_acceptable_form():
    assert {one.kind for one in GOOD.values()} == set(K.values()) - {0}


def snapshot(**fields: object) -> snapshot_pb2.Snapshot:
    values: dict[str, object] = {
        "master_id": 1,
        "taken_at_us": 1,
        "account_mode": 1,
        "positions": [position(1), position(2)],
        "orders": [order(1)],
        "currency": "EUR",
    }
    return snapshot_pb2.Snapshot(**{**values, **fields})


def position(position_id: int, **fields: object) -> snapshot_pb2.OpenPosition:
    values = {"position_id": position_id, "symbol": "EURUSD", "side": 1, "volume_lots_e8": 1, **fields}
    return snapshot_pb2.OpenPosition(**values)


def order(order_id: int, **fields: object) -> snapshot_pb2.PendingOrder:
    values = {"order_id": order_id, "symbol": "EURUSD", "side": 1, "volume_lots_e8": 1, "order_type": 2}
    return snapshot_pb2.PendingOrder(**{**values, **fields})


def test_a_complete_snapshot_is_accepted():
    assert snapshot_problem(snapshot()) is None
    assert snapshot_problem(snapshot(positions=[], orders=[])) is None


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("taken_at_us", snapshot(taken_at_us=0)),
        ("account_mode", snapshot(account_mode=0)),
        ("currency", snapshot(currency="\n")),
        ("positions", snapshot(positions=[position(n) for n in range(1, 1_002)])),
        ("positions.position_id", snapshot(positions=[position(2), position(2)])),
        ("positions.position_id", snapshot(positions=[position(0)])),
        ("positions.symbol", snapshot(positions=[position(1, symbol="")])),
        ("positions.volume_lots_e8", snapshot(positions=[position(1, volume_lots_e8=0)])),
        ("positions.volume_lots_e8", snapshot(positions=[position(1, side=0)])),
        ("positions.open_price_e8", snapshot(positions=[position(1, open_price_e8=-1)])),
        ("positions.opened_at_us", snapshot(positions=[position(1, opened_at_us=-1)])),
        ("orders.order_id", snapshot(orders=[order(3), order(2)])),
        ("orders.symbol", snapshot(orders=[order(1, symbol="a b")])),
        ("orders.volume_lots_e8", snapshot(orders=[order(1, order_type=0)])),
        ("orders.price_e8", snapshot(orders=[order(1, price_e8=-1)])),
        ("orders.expires_at_us", snapshot(orders=[order(1, expires_at_us=-1)])),
    ],
)
def test_the_wrong_part_of_a_snapshot_is_named(field: str, bad: snapshot_pb2.Snapshot):
    problem = snapshot_problem(bad)
    assert problem is not None
    assert problem.field == field
