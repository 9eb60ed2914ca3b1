"""One stream: what comes in which order, and how it ends."""

from __future__ import annotations

import pytest

from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.errors import (
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from services.fanout.domain import errors
from services.fanout.domain.cursor import Cursor, Sync
from services.fanout.domain.filter import Pause
from services.fanout.domain.position import Position
from services.fanout.domain.stream import ProgressCache, Reader, Stream, StreamLimits, state_of
from tests.unit.fanout.runs import (
    CLOSE,
    Logs,
    event,
    events,
    gap_run,
    names,
    sequences,
    signals_run,
)

NOW = 1_000_000
FOREVER = 10**18


def stream_of(logs: Logs, *masters: int, pause: Pause = Pause.NONE, **limits: int) -> Stream:
    """A stream that has told where it begins, last of all that it tells at its start."""
    stream = new_stream_of(logs, *masters, pause=pause, **limits)
    assert names([stream._control.pop()]) == ["progress"]
    return stream


def new_stream_of(logs: Logs, *masters: int, pause: Pause = Pause.NONE, **limits: int) -> Stream:
    cursors: list[Cursor] = []
    for master in masters or (1,):
        cursor = Cursor(logs.log(master), subscription_id=f"s{master}", pause=pause)
        cursor.start(Position(0, 0))
        cursors.append(cursor)
    chosen = StreamLimits(
        message_bytes_max=limits.get("bytes_max", 100_000),
        message_signals_max=limits.get("signals_max", 1_000),
        progress_interval_seconds=1.0,
    )
    return Stream(1, Reader("user", "license", limits.get("expires", FOREVER)), cursors, chosen, now_us=NOW)


def wake(stream: Stream) -> None:
    for cursor in stream.cursors.values():
        stream.wake(cursor)


def test_a_stream_tells_first_where_it_begins() -> None:
    """Also when signals came before its first turn: one who begins now holds nothing that they could follow."""
    logs = Logs()
    logs.take(signals_run(1, 3))
    cursor = Cursor(logs.log())
    cursor.start(logs.log().head)
    stream = Stream(1, Reader("u", "l", FOREVER), [cursor], StreamLimits(10_000, 100, 1.0), now_us=NOW)
    logs.take(signals_run(4, 2))
    wake(stream)
    messages = stream.next_messages(NOW)
    assert names(messages) == ["progress", "signals"]
    assert event(messages[0]).progress.positions[0].position.sequence == 3
    assert sequences(messages) == [4, 5]


def test_what_gathered_comes_in_one_message_also_of_several_masters() -> None:
    logs = Logs()
    stream = stream_of(logs, 1, 2)
    logs.take(signals_run(1, 3, master=1), signals_run(1, 2, master=2))
    wake(stream)
    messages = stream.next_messages(NOW)
    assert names(messages) == ["signals"]
    assert messages[0].signals == 5
    assert sequences(messages) == [1, 2, 3, 1, 2]
    assert not stream.has_next


def test_two_streams_share_the_bytes_of_what_both_are_told() -> None:
    logs = Logs()
    one, other = stream_of(logs), stream_of(logs)
    logs.take(signals_run(1, 3))
    wake(one)
    wake(other)
    assert one.next_messages(NOW)[0] is other.next_messages(NOW)[0]


def test_messages_keep_to_their_limits() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    stream = stream_of(logs, signals_max=4)
    counts = []
    while stream.has_next:
        counts.append(sum(message.signals for message in stream.next_messages(NOW)))
    assert counts == [4, 4, 2]


def test_a_master_that_never_rests_keeps_nobody_waiting() -> None:
    logs = Logs()
    logs.take(signals_run(1, 100, master=1), signals_run(1, 1, master=2))
    stream = stream_of(logs, 1, 2, signals_max=10)
    first, second = stream.next_messages(NOW), stream.next_messages(NOW)
    masters = {one.master_id for response in events([*first, *second]) for one in response.signals.signals}
    assert masters == {1, 2}


def test_a_gap_stands_between_what_was_before_and_what_comes_after() -> None:
    logs = Logs()
    logs.take(signals_run(1, 2), gap_run(3, 4), signals_run(5, 2))
    messages = stream_of(logs).next_messages(NOW)
    assert names(messages) == ["signals", "gap", "signals", "state_change"]
    assert event(messages[-1]).state_change.state == pb.SUBSCRIPTION_STATE_DEGRADED_GAP


def test_progress_tells_where_each_master_stands() -> None:
    logs = Logs()
    stream = stream_of(logs, 1, 2)
    logs.take(signals_run(1, 3))
    wake(stream)
    stream.next_messages(NOW)
    stream.tick(NOW + 1, ProgressCache(NOW + 1))
    (message,) = stream.next_messages(NOW + 1)
    progress = event(message).progress
    assert progress.server_time_us == NOW + 1
    assert [(one.master_id, one.position.sequence) for one in progress.positions] == [(1, 3), (2, 0)]
    stream.tick(NOW + 2, ProgressCache(NOW + 2))
    assert not stream.has_next
    stream.tick(NOW + 1_000_001, ProgressCache(NOW))
    assert stream.has_next


def test_streams_that_stand_alike_share_their_progress() -> None:
    logs = Logs()
    one, other = stream_of(logs), stream_of(logs)
    cache = ProgressCache(NOW)
    one.tick(NOW, cache)
    other.tick(NOW, cache)
    assert one.next_messages(NOW)[0] is other.next_messages(NOW)[0]


def test_progress_never_runs_ahead_of_what_is_not_told_yet() -> None:
    logs = Logs()
    stream = stream_of(logs)
    logs.take(signals_run(1, 3))
    wake(stream)
    stream.tick(NOW, ProgressCache(NOW))
    messages = stream.next_messages(NOW)
    assert names(messages) == ["progress", "signals"]
    assert event(messages[0]).progress.positions[0].position.sequence == 0


def test_a_paused_stream_is_told_so_first_and_what_is_withheld_with_the_next_progress() -> None:
    logs = Logs()
    stream = stream_of(logs, pause=Pause.ALL)
    logs.take(signals_run(1, 3))
    wake(stream)
    messages = stream.next_messages(NOW)
    assert names(messages) == ["state_change"]
    assert event(messages[0]).state_change.state == pb.SUBSCRIPTION_STATE_PAUSED_ALL
    stream.tick(NOW, ProgressCache(NOW))
    told = stream.next_messages(NOW)
    assert names(told) == ["gap", "progress"]
    assert event(told[1]).progress.positions[0].position.sequence == 3


def test_a_pause_that_goes_on_is_told_before_any_position() -> None:
    """A reader takes a position without a pause for the end of the pause that it knew."""
    stream = new_stream_of(Logs(), 1, 2, pause=Pause.CLOSE_ONLY)
    assert names(stream.next_messages(NOW)) == ["state_change", "state_change", "progress"]


def test_a_pause_is_told_before_anything_that_it_withholds() -> None:
    logs = Logs()
    stream = stream_of(logs)
    logs.take(signals_run(1, 2), signals_run(3, 1, kind=CLOSE))
    wake(stream)
    assert stream.pause(1, Pause.CLOSE_ONLY, 2, "risk", NOW)
    assert names(stream.next_messages(NOW)) == ["state_change", "gap", "signals"]


def test_an_older_pause_changes_nothing() -> None:
    stream = stream_of(Logs())
    assert stream.pause(1, Pause.ALL, 5, "", NOW)
    assert not stream.pause(1, Pause.NONE, 4, "", NOW)
    assert not stream.pause(1, Pause.NONE, 5, "", NOW)
    assert not stream.pause(2, Pause.ALL, 9, "", NOW)
    assert not stream.pause(1, Pause.ALL, 6, "", NOW)
    assert stream.cursors[1].pause is Pause.ALL


def test_states_of_sync_are_not_told_while_a_pause_counts() -> None:
    """A reader would take them for the end of the pause."""
    logs = Logs()
    stream = stream_of(logs, pause=Pause.ALL)
    logs.take(gap_run(1, 2))
    wake(stream)
    assert names(stream.next_messages(NOW)) == ["state_change", "gap"]
    assert [cursor.sync for cursor in stream.turned()] == [Sync.DEGRADED_GAP]
    assert state_of(stream.cursors[1]) == pb.SUBSCRIPTION_STATE_PAUSED_ALL
    stream.pause(1, Pause.NONE, 2, "over", NOW)
    (message,) = stream.next_messages(NOW)
    assert event(message).state_change.state == pb.SUBSCRIPTION_STATE_DEGRADED_GAP


def test_the_end_of_a_pause_is_told_as_in_step() -> None:
    stream = stream_of(Logs(), pause=Pause.ALL)
    stream.next_messages(NOW)
    stream.pause(1, Pause.NONE, 2, "over", NOW)
    (message,) = stream.next_messages(NOW)
    assert event(message).state_change.state == pb.SUBSCRIPTION_STATE_SYNCED


def test_a_cancelled_subscription_ends_its_part_and_the_last_one_the_stream() -> None:
    stream = stream_of(Logs(), 1, 2)
    assert stream.cancel(1, "left", NOW) is not None
    assert stream.ended is None
    (message,) = stream.next_messages(NOW)
    assert event(message).state_change.state == pb.SUBSCRIPTION_STATE_CANCELLED
    assert stream.cancel(1, "left", NOW) is None
    stream.cancel(2, "left", NOW)
    assert isinstance(stream.ended, PermissionDeniedError)
    assert names(stream.next_messages(NOW)) == ["state_change"]


def test_a_cancelled_master_says_nothing_more() -> None:
    logs = Logs()
    stream = stream_of(logs, 1, 2)
    logs.take(signals_run(1, 3, master=1), signals_run(1, 1, master=2))
    wake(stream)
    stream.cancel(1, "left", NOW)
    messages = stream.next_messages(NOW)
    assert {one.master_id for response in events(messages) for one in response.signals.signals} == {2}


def test_an_expired_license_ends_the_stream() -> None:
    stream = stream_of(Logs(), expires=NOW + 10)
    stream.tick(NOW + 10, ProgressCache(NOW))
    assert isinstance(stream.ended, UnauthenticatedError)
    assert stream.ended.reason == "LICENSE_EXPIRED"


def test_a_drain_tells_positions_and_comes_last() -> None:
    logs = Logs()
    stream = stream_of(logs)
    logs.take(signals_run(1, 3))
    wake(stream)
    stream.next_messages(NOW)
    logs.take(signals_run(4, 3))
    wake(stream)
    stream.drain(1_500_000)
    messages = stream.next_messages(NOW)
    assert names(messages) == ["drain"]
    drain = event(messages[0]).drain
    assert drain.positions[0].position.sequence == 3
    assert drain.reconnect_after.ToMicroseconds() == 1_500_000
    assert isinstance(stream.ended, UnavailableError)
    assert stream.ended.reason == "DRAINING"
    stream.drain(0)
    assert not stream.next_messages(NOW)


def test_a_drain_tells_first_what_was_withheld() -> None:
    logs = Logs()
    stream = stream_of(logs, pause=Pause.ALL)
    logs.take(signals_run(1, 3))
    wake(stream)
    stream.next_messages(NOW)
    stream.drain(0)
    messages = stream.next_messages(NOW)
    assert names(messages) == ["gap", "drain"]
    assert event(messages[1]).drain.positions[0].position.sequence == 3


def test_the_first_reason_to_end_counts() -> None:
    stream = stream_of(Logs())
    stream.end(errors.license_revoked())
    stream.end(errors.draining())
    assert stream.ended is not None
    assert stream.ended.reason == "LICENSE_REVOKED"


def test_a_stream_with_everything_has_no_lag() -> None:
    logs = Logs()
    logs.take(signals_run(1, 5))
    stream = stream_of(logs)
    stream.next_messages(NOW)
    lag = stream.lag(NOW + 5_000_000, is_writing=False)
    assert (lag.signals, lag.bytes, lag.seconds, lag.is_catching_up) == (0, 0, 0.0, False)


def test_lag_counts_what_is_left_and_since_when_there_is_something() -> None:
    logs = Logs()
    stream = stream_of(logs)
    stream.next_messages(NOW)
    logs.take(signals_run(1, 5))
    wake(stream)
    lag = stream.lag(NOW + 2_000_000, is_writing=False)
    assert (lag.signals, lag.seconds) == (5, 2.0)
    assert lag.bytes == 5 * logs.log().chunk_bytes_mean


def test_a_reader_that_does_not_take_what_was_given_lags_in_time() -> None:
    logs = Logs()
    stream = stream_of(logs)
    logs.take(signals_run(1, 1))
    wake(stream)
    stream.next_messages(NOW)
    assert stream.lag(NOW + 3_000_000, is_writing=True).seconds == 3.0


def test_a_reader_that_resumed_far_back_is_catching_up_until_it_has_everything() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    stream = stream_of(logs, signals_max=3)
    stream.next_messages(NOW)
    assert stream.lag(NOW, is_writing=True).is_catching_up
    while stream.has_next:
        stream.next_messages(NOW)
    assert not stream.lag(NOW, is_writing=False).is_catching_up


def test_a_reader_that_acknowledges_is_measured_by_it() -> None:
    logs = Logs()
    logs.take(signals_run(1, 10))
    stream = stream_of(logs)
    stream.next_messages(NOW)
    assert stream.lag(NOW + 9_000_000, is_writing=False).unacknowledged_seconds == 0
    stream.acknowledge(1, Position(1, 4), NOW)
    stream.acknowledge(1, Position(1, 3), NOW + 1)
    assert stream.cursors[1].acknowledged == (1, 4)
    assert stream.lag(NOW + 9_000_000, is_writing=False).unacknowledged_seconds == 9
    stream.acknowledge(1, Position(1, 10), NOW + 9_000_000)
    assert stream.lag(NOW + 20_000_000, is_writing=False).unacknowledged_seconds == 0


@pytest.mark.parametrize("what", ["signals", "seconds"])
def test_a_slow_reader_is_told_where_it_can_resume(what: str) -> None:
    error = errors.slow_reader(what, [(7, Position(2, 30))])
    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == "SLOW_READER"
    assert error.metadata == {"limit": what, "positions": "7:2:30"}
