"""One cursor: epochs, holes, pauses, pages."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from services.fanout.domain.codec import Message
from services.fanout.domain.cursor import Cursor, Place, Sync
from services.fanout.domain.filter import Pause
from services.fanout.domain.intake import records_of_run
from services.fanout.domain.position import Position
from services.fanout.domain.ring import Segment
from tests.unit.fanout.runs import (
    CLOSE,
    MODIFY,
    Logs,
    epoch_run,
    event,
    gap_places,
    gap_run,
    given_run,
    signals_run,
    sound,
    take_all,
    told,
)

LOG_LOST = position_pb2.GAP_REASON_LOG_LOST
MASTER_LOST = position_pb2.GAP_REASON_MASTER_LOST


def started(logs: Logs, sequence: int, *, epoch: int = 1, pause: Pause = Pause.NONE) -> Cursor:
    cursor = Cursor(logs.log(), pause=pause)
    cursor.start(Position(epoch, sequence))
    return cursor


def gaps(pieces: list[object]) -> list[Message]:
    return [piece for piece in pieces if isinstance(piece, Message)]


def test_a_cursor_gives_what_follows_its_position() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    assert told(take_all(started(logs, 4))) == [5, 6, 7, 8, 9, 10]


def test_the_zero_position_gives_everything() -> None:
    logs = Logs()
    logs.take(signals_run(1, 3))
    assert told(take_all(started(logs, 0, epoch=0))) == [1, 2, 3]


def test_a_hole_is_told_from_where_the_reader_stands() -> None:
    logs = Logs()
    logs.take(signals_run(1, 2), gap_run(3, 8), signals_run(9))
    cursor = started(logs, 5)
    pieces = take_all(cursor)
    assert told(pieces) == ["GAP", 9]
    assert gap_places(gaps(pieces)[0]) == ((1, 6), (1, 8), (1, 8))
    assert event(gaps(pieces)[0]).gap.note == "stale"
    assert cursor.sync is Sync.DEGRADED_GAP


@pytest.mark.parametrize(
    ("held", "reason", "expected"),
    [
        (6, LOG_LOST, ((1, 7), (1, 8), (2, 8))),
        (8, LOG_LOST, ((2, 8), (2, 8), (2, 8))),
        (10, LOG_LOST, ((2, 8), (2, 10), (2, 10))),
        (6, MASTER_LOST, ((1, 7), (1, 8), (2, 8))),
        (8, MASTER_LOST, ((2, 8), (2, 8), (2, 8))),
        (10, MASTER_LOST, ((2, 8), (2, 8), (2, 8))),
    ],
)
def test_what_a_new_epoch_means_depends_on_what_the_reader_held(
    held: int, reason: position_pb2.GapReason.ValueType, expected: tuple[Position, Position, Position]
) -> None:
    """The log has come back with six signals and goes on behind the eighth."""
    logs = Logs()
    logs.take(signals_run(1, 6), epoch_run(2, 8, (1, 6), reason=reason))
    (gap,) = gaps(take_all(started(logs, held)))
    assert gap_places(gap) == expected
    assert event(gap).gap.reason == reason


@pytest.mark.parametrize(("reason", "first"), [(LOG_LOST, 11), (MASTER_LOST, 9)])
def test_what_a_reader_held_before_the_log_lost_it_is_not_given_again(
    reason: position_pb2.GapReason.ValueType, first: int
) -> None:
    """The master sends the same signals again under the same sequences; after a wiped outbox they are others."""
    logs = Logs()
    logs.take(signals_run(1, 10))
    cursor = started(logs, 0)
    take_all(cursor)
    logs.take(epoch_run(2, 8, (1, 6), reason=reason), signals_run(9, 5, epoch=2))
    assert told(take_all(cursor)) == ["GAP", *range(first, 14)]


def test_what_a_reader_held_is_not_given_again_when_it_comes_later() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    cursor = started(logs, 10)
    logs.take(epoch_run(2, 8, (1, 6)))
    assert told(take_all(cursor)) == ["GAP"]
    logs.take(signals_run(9, 1, epoch=2))
    assert told(take_all(cursor)) == []
    logs.take(signals_run(10, 3, epoch=2))
    assert told(take_all(cursor)) == [11, 12]


def test_a_reader_that_comes_with_more_than_was_read_waits_for_what_follows() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    cursor = started(logs, 7)
    assert not cursor.has_next
    logs.take(signals_run(6, 4))
    assert told(take_all(cursor)) == [8, 9]


def test_a_pause_withholds_and_names_what_it_withheld() -> None:
    logs = Logs()
    cursor = started(logs, 0, pause=Pause.CLOSE_ONLY)
    logs.take(signals_run(1, 3), signals_run(4, 2, kind=CLOSE), signals_run(6, 2))
    pieces = take_all(cursor)
    assert told(pieces) == ["GAP", 4, 5]
    assert gap_places(gaps(pieces)[0]) == ((1, 1), (1, 3), (1, 3))
    assert event(gaps(pieces)[0]).gap.reason == position_pb2.GAP_REASON_WITHHELD
    assert (cursor.position, cursor.scanned) == ((1, 5), (1, 7))
    rest = cursor.flush_withheld()
    assert rest is not None
    assert gap_places(rest) == ((1, 6), (1, 7), (1, 7))
    assert cursor.flush_withheld() is None
    assert cursor.sync is Sync.UNKNOWN


def test_what_was_withheld_is_told_before_what_comes_after_the_pause() -> None:
    logs = Logs()
    cursor = started(logs, 0, pause=Pause.ALL)
    logs.take(signals_run(1, 3))
    assert told(take_all(cursor)) == []
    cursor.set_pause(Pause.NONE)
    logs.take(signals_run(4, 2))
    assert told(take_all(cursor)) == ["GAP", 4, 5]


def test_what_was_withheld_is_told_before_a_hole() -> None:
    logs = Logs()
    cursor = started(logs, 0, pause=Pause.ALL)
    logs.take(signals_run(1, 3), gap_run(4, 6))
    pieces = take_all(cursor)
    assert [gap_places(one)[1] for one in gaps(pieces)] == [(1, 3), (1, 6)]


def buy(position: int, stop: int) -> signal_pb2.Signal:
    return signal_pb2.Signal(
        kind=signal_pb2.SIGNAL_KIND_OPEN,
        position_id=position,
        side=signal_pb2.SIDE_BUY,
        stop_loss_e8=stop,
    )


def stop_of(position: int, stop: int) -> signal_pb2.Signal:
    return signal_pb2.Signal(kind=MODIFY, position_id=position, stop_loss_e8=stop)


def test_a_tightened_stop_passes_a_pause_and_a_loosened_one_does_not() -> None:
    logs = Logs()
    logs.take(given_run(1, [buy(1, 100)]))
    cursor = started(logs, 1, pause=Pause.ALL)
    logs.take(given_run(2, [stop_of(1, 110), stop_of(1, 90)]))
    assert told(take_all(cursor)) == [2]


def test_tightening_is_measured_against_the_stop_that_the_subscriber_holds() -> None:
    logs = Logs()
    logs.take(given_run(1, [buy(1, 100)]))
    cursor = started(logs, 1, pause=Pause.CLOSE_ONLY)
    # 90 is withheld, so the subscriber still has 100: 95 would loosen it, 105 tightens it, and then 106 does.
    logs.take(given_run(2, [stop_of(1, 90), stop_of(1, 95), stop_of(1, 105), stop_of(1, 106)]))
    assert told(take_all(cursor)) == ["GAP", 4, 5]


def test_a_restated_position_that_was_withheld_leaves_the_stop_that_the_subscriber_holds() -> None:
    """In netting an opening states a position anew, with a stop of its own."""
    logs = Logs()
    logs.take(given_run(1, [buy(1, 100)]))
    cursor = started(logs, 1, pause=Pause.ALL)
    # The subscriber still has 100: 90 would loosen it, though the master had 80; 105 tightens it.
    logs.take(given_run(2, [buy(1, 80), stop_of(1, 90), stop_of(1, 105)]))
    assert told(take_all(cursor)) == ["GAP", 4]


def test_no_stop_of_a_side_that_the_subscriber_does_not_hold_passes() -> None:
    logs = Logs()
    logs.take(given_run(1, [buy(1, 100)]))
    cursor = started(logs, 1, pause=Pause.ALL)
    sell = buy(1, 130)
    sell.side = signal_pb2.SIDE_SELL
    logs.take(given_run(2, [sell, stop_of(1, 120), stop_of(1, 101), buy(1, 90), stop_of(1, 95)]))
    cursor.take(1_000, 1_000)
    assert cursor.flush_withheld() is not None
    assert cursor.position == Position(1, 6)


def test_a_restated_position_that_was_sent_counts_with_its_own_stop() -> None:
    logs = Logs()
    logs.take(given_run(1, [buy(1, 100)]))
    cursor = started(logs, 1)
    logs.take(given_run(2, [buy(1, 80)]))
    assert told(take_all(cursor)) == [2]
    cursor.set_pause(Pause.ALL)
    logs.take(given_run(3, [stop_of(1, 90), stop_of(1, 85)]))
    assert told(take_all(cursor)) == [3]


def test_a_changed_stop_of_an_unknown_position_passes() -> None:
    logs = Logs()
    cursor = started(logs, 0, pause=Pause.ALL)
    logs.take(given_run(1, [stop_of(9, 90)]))
    assert told(take_all(cursor)) == [1]


def page_of(first: int, count: int, after: int) -> Segment:
    (run,) = sound(signals_run(first, count))
    return Segment(Position(1, after), records_of_run(run, after=Position(1, after)))


def test_a_cursor_before_the_ring_reads_pages_until_it_is_in_the_ring() -> None:
    logs = Logs(records_max=16)
    logs.take(signals_run(1, 30))
    cursor = started(logs, 2)
    assert cursor.place is Place.BEHIND
    assert not cursor.has_next
    cursor.feed(page_of(1, 8, 2))
    assert told(take_all(cursor)) == [3, 4, 5, 6, 7, 8]
    assert cursor.place is Place.BEHIND
    cursor.feed(page_of(9, 12, 8))
    assert told(take_all(cursor)) == list(range(9, 31))
    assert cursor.place is Place.LIVE


def test_a_cursor_that_the_ring_overtakes_falls_behind() -> None:
    logs = Logs(records_max=16)
    logs.take(signals_run(1, 10))
    cursor = started(logs, 5)
    logs.take(signals_run(11, 30))
    assert cursor.take(10_000, 100) is None
    assert cursor.place is Place.BEHIND
    assert cursor.position == (1, 5)


def test_a_paused_cursor_that_the_ring_overtakes_tells_first_what_it_withheld() -> None:
    logs = Logs(records_max=16)
    cursor = started(logs, 0, pause=Pause.ALL)
    logs.take(signals_run(1, 10))
    assert told(take_all(cursor)) == []
    logs.take(signals_run(11, 30))
    pieces = take_all(cursor)
    assert gap_places(gaps(pieces)[0])[1] == (1, 10)
    assert cursor.place is Place.BEHIND
    cursor.feed(page_of(9, 20, 10))
    take_all(cursor)
    assert cursor.scanned == (1, 40)


def test_what_is_not_to_be_had_any_more_is_named() -> None:
    logs = Logs(records_max=16)
    logs.take(signals_run(1, 30))
    cursor = started(logs, 2)
    message = cursor.skip_to(logs.log().floor, position_pb2.GAP_REASON_TRIMMED, "gone")
    assert gap_places(message)[0] == (1, 3)
    assert gap_places(message)[1] == logs.log().floor
    assert cursor.place is Place.LIVE
    assert cursor.sync is Sync.DEGRADED_GAP


def snapshot(sequence: int) -> snapshot_pb2.Snapshot:
    return snapshot_pb2.Snapshot(master_id=1, as_of=position_pb2.StreamPosition(epoch=1, sequence=sequence))


def test_a_full_sync_ends_when_everything_up_to_its_beginning_was_told() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    cursor = Cursor(logs.log())
    assert not cursor.has_next
    cursor.resync()
    assert cursor.sync is Sync.RESYNCING
    assert event(cursor.start_with(snapshot(7))).snapshot.snapshot.as_of.sequence == 7
    logs.take(signals_run(11, 5))
    cursor.take(10_000, 2)
    cursor.note_sync()
    assert cursor.sync is Sync.RESYNCING
    cursor.take(10_000, 1)
    cursor.note_sync()
    assert cursor.sync is Sync.SYNCED


def test_a_hole_during_a_full_sync_leaves_it_incomplete() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10), gap_run(11, 12), signals_run(13))
    cursor = Cursor(logs.log())
    cursor.resync()
    cursor.start_with(snapshot(7))
    take_all(cursor)
    cursor.note_sync()
    assert cursor.sync is Sync.DEGRADED_GAP


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (Sync.SYNCED, Sync.SYNCED),
        (Sync.UNKNOWN, Sync.SYNCED),
        (Sync.RESYNCING, Sync.SYNCED),
        (Sync.DEGRADED_GAP, Sync.DEGRADED_GAP),
    ],
)
def test_one_who_resumes_stands_as_before_unless_a_full_sync_was_under_way(
    stored: Sync, expected: Sync
) -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    cursor = started(logs, 2)
    cursor.was_known_as(stored)
    take_all(cursor)
    cursor.note_sync()
    assert cursor.sync is expected


def test_what_happened_in_this_stream_counts_more_than_what_was_before() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5), gap_run(6, 7))
    cursor = started(logs, 2)
    take_all(cursor)
    cursor.was_known_as(Sync.SYNCED)
    assert cursor.sync is Sync.DEGRADED_GAP
