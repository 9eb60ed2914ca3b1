"""Streams that stand at the end of a log: who does, and where they stand after they were told."""

from __future__ import annotations

from services.fanout.domain import errors
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.filter import Pause
from services.fanout.domain.level import Follower, level_at, move_behind, pieces
from services.fanout.domain.position import Position
from services.fanout.domain.stream import ProgressCache, Reader, Stream, StreamLimits
from tests.unit.fanout.runs import Logs, gap_run, names, sequences, signals_run

NOW = 1_000_000
LIMITS = StreamLimits(message_bytes_max=10_000, message_signals_max=2, progress_interval_seconds=1.0)


def follower_of(logs: Logs, stream_id: int = 1) -> Follower:
    """A stream that has told where it begins, and waits."""
    cursor = Cursor(logs.log())
    cursor.start(logs.log().head)
    stream = Stream(stream_id, Reader("user", "license", 10**18), [cursor], LIMITS, now_us=NOW)
    assert not level_at(cursor.offset, [Follower(stream, cursor)]), "it has not said where it begins"
    assert names(stream.next_messages(NOW)) == ["progress"]
    return Follower(stream, cursor)


def test_who_was_told_everything_is_level_and_moves_with_the_log() -> None:
    logs = Logs()
    logs.take(signals_run(1, 2))
    one, other = follower_of(logs, 1), follower_of(logs, 2)
    start = logs.log().end
    logs.take(signals_run(3, 3))
    assert level_at(start, [one, other]) == [one, other]
    found = pieces(logs.log(), start, LIMITS)
    assert sequences([piece.message for piece in found]) == [3, 4, 5]
    assert [piece.signals for piece in found] == [2, 1]
    for piece in found:
        move_behind(piece, [one], NOW + 7)
    assert one.cursor.position == Position(1, 5)
    assert not one.stream.wake(one.cursor), "it has nothing more to give"
    assert one.stream.lag(NOW + 7, is_writing=False).signals == 0
    assert level_at(logs.log().end, [one, other]) == [one]
    other.stream.wake(other.cursor)
    assert sequences(other.stream.next_messages(NOW)) == [3, 4]
    assert not level_at(other.cursor.offset, [other])
    assert sequences(other.stream.next_messages(NOW)) == [5]
    assert level_at(logs.log().end, [one, other]) == [one, other]


def test_pieces_end_before_a_gap() -> None:
    logs = Logs()
    logs.take(signals_run(1, 1))
    start = logs.log().end
    logs.take(signals_run(2, 3), gap_run(5, 6), signals_run(7, 1))
    assert sequences([piece.message for piece in pieces(logs.log(), start, LIMITS)]) == [2, 3, 4]


def test_who_has_something_else_to_tell_is_not_level() -> None:
    logs = Logs()
    logs.take(signals_run(1, 1))
    one = follower_of(logs)
    stream, offset = one.stream, logs.log().end

    stream.progress(NOW, ProgressCache(NOW))
    assert level_at(offset, [one]) == []
    stream.next_messages(NOW)
    assert level_at(offset, [one]) == [one]

    stream.pause(1, Pause.CLOSE_ONLY, 1, "risk", NOW)
    stream.next_messages(NOW)
    assert level_at(offset, [one]) == [], "what comes must be looked at"
    stream.pause(1, Pause.NONE, 2, "", NOW)
    assert level_at(offset, [one]) == []
    stream.next_messages(NOW)
    assert level_at(offset, [one]) == [one]

    stream.resync(one.cursor, "asked for", NOW)
    assert level_at(offset, [one]) == []
    stream.next_messages(NOW)

    stream.end(errors.draining())
    assert level_at(offset, [one]) == []
