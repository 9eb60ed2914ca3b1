"""The ring: dense logs, shared slices, bounds."""

from __future__ import annotations

from execution.common.v1 import position_pb2
from services.fanout.domain.position import BEGINNING, ZERO, Position, held
from services.fanout.domain.ring import EpochRecord, GapRecord, SignalRecord
from tests.unit.fanout.runs import Logs, epoch_run, events, gap_run, sequences, signals_run, sound


def test_the_zero_position_is_the_beginning_of_the_first_epoch() -> None:
    assert held(ZERO) == BEGINNING
    assert held(Position(2, 0)) == (2, 0)


def test_signals_carry_the_place_before_them() -> None:
    logs = Logs()
    logs.take(signals_run(1, 3))
    piece = logs.log().slice(0, 10_000, 100)
    assert piece is not None
    (response,) = events([piece.message])
    assert [(one.previous_epoch, one.previous_sequence) for one in response.signals.signals] == [
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    assert response.signals.signals[0].received_at_us == 1_000
    assert response.signals.signals[0].sent_at_us == 900


def test_those_who_ask_for_the_same_get_the_same_bytes() -> None:
    logs = Logs()
    logs.take(signals_run(1, 3))
    one, other = logs.log().slice(0, 10_000, 100), logs.log().slice(0, 10_000, 100)
    assert one is not None
    assert one is other
    assert one.message is one.message


def test_a_slice_grows_with_the_log() -> None:
    logs = Logs()
    logs.take(signals_run(1, 3))
    logs.log().slice(0, 10_000, 100)
    logs.take(signals_run(4, 2))
    grown = logs.log().slice(0, 10_000, 100)
    assert grown is not None
    assert sequences([grown.message]) == [1, 2, 3, 4, 5]


def test_a_slice_keeps_to_its_limits_but_holds_one_signal_at_least() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    by_count, by_bytes = logs.log().slice(0, 10_000, 4), logs.log().slice(0, 1, 100)
    assert by_count is not None
    assert by_bytes is not None
    assert (by_count.signals, by_count.end) == (4, 4)
    assert (by_bytes.signals, by_bytes.end) == (1, 1)


def test_a_slice_ends_before_a_hole() -> None:
    logs = Logs()
    logs.take(signals_run(1, 2), gap_run(3, 5), signals_run(6))
    piece = logs.log().slice(0, 10_000, 100)
    assert piece is not None
    assert piece.last == (1, 2)
    assert logs.log().slice(2, 10_000, 100) is None
    assert isinstance(logs.log().record(2), GapRecord)


def test_what_was_read_before_changes_nothing() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    assert logs.take(signals_run(1, 5)) == []
    assert logs.take(signals_run(4, 4)) != []
    piece = logs.log().slice(0, 10_000, 100)
    assert piece is not None
    assert sequences([piece.message]) == [1, 2, 3, 4, 5, 6, 7]


def test_a_hole_that_was_not_declared_lets_the_log_begin_anew() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    logs.take(signals_run(9, 2))
    log = logs.log()
    assert log.floor == (1, 8)
    assert log.head == (1, 10)
    assert not log.covers(Position(1, 5))
    # A cursor at the old end, 5, is behind the ring now.
    assert log.base == 6


def test_an_epoch_that_begins_unseen_lets_the_log_begin_anew() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    logs.take(signals_run(21, 2, epoch=3))
    assert logs.log().floor == (3, 20)


def test_a_new_epoch_follows_also_where_the_log_had_lost_what_was_read() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    logs.take(epoch_run(2, 8, (1, 6)), signals_run(9, 2, epoch=2))
    log = logs.log()
    assert log.floor == BEGINNING
    assert isinstance(log.record(10), EpochRecord)
    assert log.head == (2, 10)


def test_a_full_log_lets_go_of_its_oldest() -> None:
    logs = Logs(records_max=16)
    logs.take(signals_run(1, 40))
    log = logs.log()
    assert len(log) <= 16
    assert log.head == (1, 40)
    assert log.floor == (1, 40 - len(log))
    assert log.offset_after(Position(1, 39)) == log.end - 1


def test_a_full_ring_lets_go_of_the_largest_log() -> None:
    logs = Logs(memory_bytes_max=40_000)
    logs.take(signals_run(1, 5, master=2))
    logs.take(signals_run(1, 500, master=1))
    assert logs.ring.memory_bytes <= 40_000
    assert logs.ring.memory_bytes == sum(log.memory_bytes for log in logs.ring)
    assert len(logs.log(2)) == 5
    assert logs.log(1).floor > BEGINNING


def test_masters_that_nobody_needs_are_forgotten() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5, master=2), signals_run(1, 5, master=1))
    assert logs.intake.discard(lambda log: log.master_id == 2) == 1
    assert logs.ring.get(2) is None
    assert logs.ring.memory_bytes == logs.log(1).memory_bytes


def test_a_snapshot_marker_is_no_record() -> None:
    logs = Logs()
    run = signals_run(3)
    run.first_sequence = run.last_sequence = 2
    run.snapshot.SetInParent()
    grown, snapshots = logs.intake.apply(sound(run))
    assert (grown, snapshots) == ([], [1])


def test_records_know_the_place_before_them() -> None:
    reason = position_pb2.GAP_REASON_LOG_LOST
    assert SignalRecord(2, 5, b"", 0, 0, None).before == (2, 4)
    assert GapRecord(2, 5, 9, reason).before == (2, 4)
    assert EpochRecord(3, 9, Position(2, 7), reason).before == (2, 7)
