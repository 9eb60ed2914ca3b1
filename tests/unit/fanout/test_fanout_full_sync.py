"""A full sync within a stream: at its beginning, or asked for in its midst."""

from __future__ import annotations

from execution.common.v1 import position_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.fanout.domain.cursor import Cursor, Sync
from services.fanout.domain.filter import Pause
from services.fanout.domain.position import ZERO, Position
from services.fanout.domain.ring import Segment
from services.fanout.domain.stream import ProgressCache, Reader, Stream, StreamLimits
from tests.unit.fanout.runs import Logs, event, gap_run, names, sequences, signals_run

NOW = 1_000_000
FOREVER = 10**18


def stream_of(logs: Logs, position: Position = ZERO) -> Stream:
    """A stream behind the position that has told everything up to now."""
    cursor = Cursor(logs.log())
    cursor.start(position)
    stream = Stream(1, Reader("u", "l", FOREVER), [cursor], StreamLimits(10_000, 100, 1.0), now_us=NOW)
    while stream.has_next:
        stream.next_messages(NOW)
    return stream


def wake(stream: Stream) -> None:
    for cursor in stream.cursors.values():
        stream.wake(cursor)


def test_a_full_sync_is_told_from_its_beginning_to_its_end() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    cursor = Cursor(logs.log())
    cursor.resync()
    stream = Stream(1, Reader("u", "l", FOREVER), [cursor], StreamLimits(10_000, 100, 1.0), now_us=NOW)
    assert names(stream.next_messages(NOW)) == ["state_change"]
    stream.tick(NOW, ProgressCache(NOW))
    (progress,) = stream.next_messages(NOW)
    assert not event(progress).progress.positions
    snapshot = snapshot_pb2.Snapshot(master_id=1, as_of=position_pb2.StreamPosition(epoch=1, sequence=3))
    stream.begin_with(cursor, snapshot, NOW)
    messages = stream.next_messages(NOW)
    assert names(messages) == ["snapshot", "signals", "state_change"]
    assert sequences(messages) == [4, 5]
    assert event(messages[-1]).state_change.state == pb.SUBSCRIPTION_STATE_SYNCED
    assert [one.sync for one in stream.turned()] == [Sync.RESYNCING, Sync.SYNCED]


def test_a_full_sync_that_was_asked_for_comes_in_the_midst_of_a_stream() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    stream = stream_of(logs)
    (cursor,) = stream.cursors.values()
    stream.next_messages(NOW)
    cursor.full_sync = 7
    stream.resync(cursor, "asked for", NOW)
    logs.take(signals_run(6, 1))
    wake(stream)
    messages = stream.next_messages(NOW)
    assert names(messages) == ["state_change", "signals"]
    assert event(messages[0]).state_change.state == pb.SUBSCRIPTION_STATE_RESYNCING
    snapshot = snapshot_pb2.Snapshot(master_id=1, as_of=position_pb2.StreamPosition(epoch=1, sequence=4))
    stream.begin_with(cursor, snapshot, NOW + 5)
    messages = stream.next_messages(NOW + 5)
    assert names(messages) == ["snapshot", "signals", "state_change"]
    assert sequences(messages) == [5, 6]
    turns = [(one.sync, one.at_us, one.full_sync_done) for one in stream.turned()]
    assert turns == [(Sync.RESYNCING, NOW, 0), (Sync.SYNCED, NOW + 5, 7)]


def test_what_a_pause_withheld_is_told_before_the_snapshot_of_a_full_sync() -> None:
    logs = Logs()
    stream = stream_of(logs)
    (cursor,) = stream.cursors.values()
    stream.next_messages(NOW)
    stream.pause(1, Pause.ALL, 2, "a test", NOW)
    logs.take(signals_run(1, 3))
    wake(stream)
    stream.next_messages(NOW)
    stream.pause(1, Pause.NONE, 3, "a test", NOW)
    snapshot = snapshot_pb2.Snapshot(master_id=1, as_of=position_pb2.StreamPosition(epoch=1, sequence=3))
    stream.begin_with(cursor, snapshot, NOW)
    assert names(stream.next_messages(NOW)) == ["state_change", "gap", "snapshot", "state_change"]


def test_a_page_that_was_asked_for_before_a_full_sync_is_not_taken() -> None:
    """It lies further on: from the snapshot to its beginning nothing would be told."""
    logs = Logs(records_max=16)
    for first in range(1, 100, 10):
        logs.take(signals_run(first, 10))
    stream = stream_of(logs, Position(1, 50))
    (cursor,) = stream.wants()
    asked = Segment(Position(1, 50), ())
    snapshot = snapshot_pb2.Snapshot(master_id=1, as_of=position_pb2.StreamPosition(epoch=1, sequence=20))
    stream.begin_with(cursor, snapshot, NOW)
    stream.feed(cursor, asked, NOW)
    assert stream.wants() == [cursor]
    assert cursor.position == Position(1, 20)


def test_a_state_that_the_ledger_told_is_not_told_back_to_it() -> None:
    """Another process may have healed it and be about to say so."""
    logs = Logs()
    logs.take(signals_run(1, 5))
    stream = stream_of(logs, Position(1, 3))
    (cursor,) = stream.cursors.values()
    stream.turned()
    stream.stood(cursor, Sync.DEGRADED_GAP, NOW)
    (message,) = stream.next_messages(NOW)
    assert event(message).state_change.state == pb.SUBSCRIPTION_STATE_DEGRADED_GAP
    assert stream.turned() == []
    # What happens from here on is, even what changes nothing.
    logs.take(gap_run(6, 6))
    wake(stream)
    assert names(stream.next_messages(NOW)) == ["gap", "state_change"]
    assert [(one.sync, one.position) for one in stream.turned()] == [(Sync.DEGRADED_GAP, Position(1, 6))]
    snapshot = snapshot_pb2.Snapshot(master_id=1, as_of=position_pb2.StreamPosition(epoch=1, sequence=6))
    stream.begin_with(cursor, snapshot, NOW)
    stream.next_messages(NOW)
    assert [(one.sync, one.position) for one in stream.turned()] == [(Sync.SYNCED, Position(1, 6))]


def test_turns_say_up_to_where_everything_was_told() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5), gap_run(6, 8), signals_run(9, 1))
    stream = stream_of(logs)
    (cursor,) = stream.cursors.values()
    stream.resync(cursor, "asked for", NOW)
    snapshot = snapshot_pb2.Snapshot(master_id=1, as_of=position_pb2.StreamPosition(epoch=1, sequence=8))
    stream.begin_with(cursor, snapshot, NOW)
    stream.next_messages(NOW)
    assert [(one.sync, one.position) for one in stream.turned()] == [
        (Sync.DEGRADED_GAP, Position(1, 8)),
        (Sync.RESYNCING, Position(0, 0)),
        (Sync.SYNCED, Position(1, 9)),
    ]
