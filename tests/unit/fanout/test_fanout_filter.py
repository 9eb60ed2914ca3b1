"""What a pause lets through."""

from __future__ import annotations

import pytest

from execution.common.v1 import signal_pb2
from services.fanout.domain.filter import (
    PASSES_ALL,
    PASSES_CLOSE_ONLY,
    Pause,
    StopChange,
    StopTracker,
    passes,
)
from tests.unit.fanout.runs import MODIFY

BOTH = PASSES_CLOSE_ONLY | PASSES_ALL


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (signal_pb2.SIGNAL_KIND_OPEN, 0),
        (signal_pb2.SIGNAL_KIND_CLOSE, BOTH),
        (signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE, BOTH),
        (signal_pb2.SIGNAL_KIND_CLOSE_BY, BOTH),
        (signal_pb2.SIGNAL_KIND_PENDING_PLACE, 0),
        (signal_pb2.SIGNAL_KIND_PENDING_MODIFY, 0),
        (signal_pb2.SIGNAL_KIND_PENDING_CANCEL, PASSES_CLOSE_ONLY),
        (signal_pb2.SIGNAL_KIND_PENDING_FILL, 0),
    ],
)
def test_only_what_lowers_risk_passes(kind: signal_pb2.SignalKind.ValueType, expected: int) -> None:
    assert passes(signal_pb2.Signal(kind=kind)) == expected


@pytest.mark.parametrize(
    ("is_buy", "held", "after", "expected"),
    [
        (True, 100, 110, True),
        (True, 100, 90, False),
        (True, 100, 100, False),
        (True, 0, 50, True),
        (True, 100, 0, False),
        (False, 100, 90, True),
        (False, 100, 110, False),
        (False, 0, 500, True),
        (False, 0, 0, False),
    ],
)
def test_a_stop_tightens_towards_the_price(is_buy: bool, held: int, after: int, expected: bool) -> None:
    assert StopChange(1, is_buy, 0, after).tightens(held) is expected


def opened(
    position: int, stop: int, *, side: signal_pb2.Side.ValueType = signal_pb2.SIDE_BUY
) -> signal_pb2.Signal:
    return signal_pb2.Signal(
        kind=signal_pb2.SIGNAL_KIND_OPEN, position_id=position, side=side, stop_loss_e8=stop
    )


def modified(position: int, stop: int) -> signal_pb2.Signal:
    return signal_pb2.Signal(kind=MODIFY, position_id=position, stop_loss_e8=stop)


def test_the_tracker_knows_side_and_stop() -> None:
    tracker = StopTracker(10)
    tracker.observe(opened(1, 100))
    assert tracker.observe(modified(1, 110)) == StopChange(1, True, 100, 110)
    assert tracker.observe(modified(1, 105)) == StopChange(1, True, 110, 105)


def test_the_tracker_knows_nothing_of_positions_that_it_never_saw_or_that_are_closed() -> None:
    tracker = StopTracker(10)
    assert tracker.observe(modified(7, 110)) is None
    tracker.observe(opened(1, 100))
    tracker.observe(signal_pb2.Signal(kind=signal_pb2.SIGNAL_KIND_CLOSE, position_id=1))
    assert tracker.observe(modified(1, 110)) is None


def test_a_close_by_ends_both_only_when_nothing_is_left() -> None:
    tracker = StopTracker(10)
    tracker.observe(opened(1, 100))
    tracker.observe(opened(2, 100, side=signal_pb2.SIDE_SELL))
    close_by = signal_pb2.Signal(
        kind=signal_pb2.SIGNAL_KIND_CLOSE_BY, position_id=1, opposite_position_id=2, volume_lots_e8=5
    )
    tracker.observe(close_by)
    assert len(tracker) == 2
    close_by.volume_lots_e8 = 0
    tracker.observe(close_by)
    assert len(tracker) == 0


def test_the_tracker_forgets_the_oldest_when_it_is_full() -> None:
    tracker = StopTracker(2)
    for position in (1, 2, 3):
        tracker.observe(opened(position, 100))
    assert tracker.observe(modified(1, 110)) is None
    assert tracker.observe(modified(3, 110)) is not None


def test_a_fill_opens_a_position() -> None:
    tracker = StopTracker(2)
    fill = opened(5, 100, side=signal_pb2.SIDE_SELL)
    fill.kind = signal_pb2.SIGNAL_KIND_PENDING_FILL
    tracker.observe(fill)
    assert tracker.observe(modified(5, 90)) == StopChange(5, False, 100, 90)


def test_pauses_have_the_ledgers_numbers() -> None:
    from execution.ledger.v1 import license_service_pb2 as ledger_pb

    assert Pause(ledger_pb.PAUSE_SCOPE_UNSPECIFIED) is Pause.NONE
    assert Pause(ledger_pb.PAUSE_SCOPE_CLOSE_ONLY) is Pause.CLOSE_ONLY
    assert Pause(ledger_pb.PAUSE_SCOPE_ALL) is Pause.ALL
