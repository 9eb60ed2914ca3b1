"""The open session: what happens when the log fails, when somebody leaves, and as time passes."""

from __future__ import annotations

import pytest

from execution.common.v1 import signal_pb2
from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.values import AppendResult, Limits, LogHead, StoreSnapshot, digest_of
from tests.unit.ingest.dialogue import HOUR_US, Dialogue, codes, only_ack, only_reject

CLOSE = signal_pb2.SIGNAL_KIND_CLOSE
GAP = pb.REJECT_CODE_GAP
UNAVAILABLE = pb.REJECT_CODE_UNAVAILABLE


# The log fails


def test_when_the_log_fails_the_first_frame_is_unavailable_and_the_others_gaps():
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    dialogue.append()
    for sequence in (3, 4, 5):
        dialogue.send_signals(sequence)
    dialogue.taken()
    dialogue.session.log_failed()
    frames = dialogue.answers()
    assert codes(frames) == [UNAVAILABLE, GAP, GAP]
    assert [frame.reject.sequence for frame in frames] == [3, 4, 5]
    assert {frame.reject.expected_sequence for frame in frames} == {3}
    assert frames[0].reject.retryable
    assert frames[0].reject.retry_after_ms > 0
    # And so with what comes while it is away.
    assert codes(dialogue.send_signals(6)) == [GAP]
    assert codes(dialogue.send_signals(3)) == [UNAVAILABLE]
    assert codes(dialogue.send(dialogue.keys.gap(3, 3))) == [UNAVAILABLE]
    assert only_ack(dialogue.send_signals(1)).sequence == 2


def test_when_the_log_is_back_the_stream_goes_on_where_it_stands():
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    dialogue.taken()
    dialogue.session.log_failed()
    dialogue.answers()
    dialogue.session.log_restored(LogHead(1, 0, 50))
    assert dialogue.answers() == []
    dialogue.send_signals(1, 2)
    assert only_ack(dialogue.append()).sequence == 2


def test_what_reached_the_log_although_the_answer_was_lost_is_acknowledged():
    dialogue = Dialogue().open()
    frames = [dialogue.batch(1), dialogue.batch(2)]
    dialogue.send(*frames)
    dialogue.taken()
    dialogue.session.log_failed()
    dialogue.answers()
    digest = digest_of(pb.SignalBatch.FromString(frames[1].signals.body).signals[0])
    dialogue.session.log_restored(LogHead(1, 2, 50, digest=digest))
    assert only_ack(dialogue.answers()).sequence == 2
    assert only_ack(dialogue.send(*frames)).sequence == 2
    assert dialogue.taken() == []


@pytest.mark.parametrize("head", [None, LogHead(1, 1, 50)])
def test_a_log_that_came_back_with_less_ends_the_session(head: LogHead | None):
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    dialogue.append()
    dialogue.session.log_failed()
    dialogue.session.log_restored(head)
    (frame,) = dialogue.answers()
    assert frame.HasField("bye")
    assert dialogue.is_closed


def test_a_session_that_was_overtaken_while_the_log_was_away_is_fenced():
    dialogue = Dialogue().open()
    dialogue.session.log_failed()
    dialogue.session.log_restored(LogHead(1, 0, 51))
    assert only_reject(dialogue.answers()).code == pb.REJECT_CODE_FENCED


def test_an_append_that_a_later_login_fenced_is_not_acknowledged():
    dialogue = Dialogue().open()
    dialogue.send_signals(1)
    reject = only_reject(dialogue.append(AppendResult.FENCED, 0))
    assert (reject.code, reject.sequence, reject.expected_sequence) == (pb.REJECT_CODE_FENCED, 1, 1)
    assert dialogue.is_closed


def test_a_conflict_that_only_the_log_sees_ends_the_session():
    dialogue = Dialogue().open()
    dialogue.send_signals(1)
    assert codes(dialogue.append(AppendResult.CONFLICT, 1)) == [pb.REJECT_CODE_CONFLICT]
    assert dialogue.is_closed


def test_a_log_that_is_ahead_acknowledges_what_it_has_and_refuses_the_rest():
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    dialogue.send_signals(3, 2)
    dialogue.send_signals(5)
    frames = dialogue.append(AppendResult.MOVED, 3)
    assert codes(frames) == [GAP, GAP]
    assert [frame.reject.sequence for frame in frames if frame.HasField("reject")] == [4, 5]
    assert frames[-1].ack.sequence == 3
    dialogue.send_signals(4)
    assert only_ack(dialogue.append()).sequence == 4


@pytest.mark.parametrize("sequence", [-1, 1])
def test_a_log_that_is_behind_what_it_confirmed_ends_the_session(sequence: int):
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    dialogue.append()
    dialogue.send_signals(3)
    frames = dialogue.append(AppendResult.MOVED, sequence)
    assert [frame.WhichOneof("frame") for frame in frames] == ["bye"]


# The end


def test_a_bye_is_answered_by_the_last_ack():
    dialogue = Dialogue().open()
    dialogue.send_signals(1)
    assert dialogue.send(pb.ClientFrame(bye=pb.Bye())) == []
    assert dialogue.send_signals(2) == []
    frames = dialogue.append()
    assert [frame.WhichOneof("frame") for frame in frames] == ["ack", "bye"]
    assert frames[0].ack.sequence == 1
    assert dialogue.is_closed


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("is_leaving", [True, False])
def test_a_snapshot_under_way_is_answered_before_the_goodbye(is_leaving: bool, is_stored: bool):
    dialogue = Dialogue().open()
    dialogue.send(dialogue.snapshot(0))
    (command,) = dialogue.session.take_commands()
    assert isinstance(command, StoreSnapshot)
    if is_leaving:
        dialogue.send(pb.ClientFrame(bye=pb.Bye()))
    else:
        dialogue.session.drain(0)
        dialogue.answers()
    assert not dialogue.is_closed
    dialogue.session.snapshot_stored(command, is_stored)
    answer = "ack" if is_stored else "reject"
    assert [frame.WhichOneof("frame") for frame in dialogue.answers()] == [answer, "bye"]


def test_draining_takes_no_more_and_says_goodbye_when_all_is_durable():
    dialogue = Dialogue().open()
    dialogue.send_signals(1)
    dialogue.taken()
    dialogue.session.drain(123)
    (frame,) = dialogue.answers()
    assert frame.drain.reconnect_after_ms == 123
    reject = only_reject(dialogue.send_signals(2))
    assert (reject.code, reject.retryable) == (pb.REJECT_CODE_DRAINING, True)
    assert only_reject(dialogue.send_signals(3)).code == GAP
    assert only_reject(dialogue.send(dialogue.snapshot(0))).code == pb.REJECT_CODE_DRAINING
    dialogue.session.appended(AppendResult.APPENDED, 1)
    assert [frame.WhichOneof("frame") for frame in dialogue.answers()] == ["ack", "bye"]


def test_an_idle_session_drains_at_once():
    dialogue = Dialogue().open()
    dialogue.session.drain(5)
    assert [frame.WhichOneof("frame") for frame in dialogue.answers()] == ["drain", "bye"]
    assert dialogue.is_closed


@pytest.mark.parametrize("code", [pb.REJECT_CODE_LICENSE_REVOKED, pb.REJECT_CODE_TOO_MANY_CONNECTIONS])
def test_a_decision_from_outside_ends_the_session(code: pb.RejectCode.ValueType):
    dialogue = Dialogue().open()
    dialogue.session.end(code, "enough")
    assert only_reject(dialogue.answers()).code == code
    assert dialogue.is_closed


# Time


def test_silence_is_filled_with_pings_and_answered_by_pongs():
    dialogue = Dialogue(Limits(heartbeat_ms=1_000)).open()
    dialogue.pass_time(0.8)
    dialogue.session.tick(dialogue.now_us, dialogue.now_seconds)
    (frame,) = dialogue.answers()
    assert frame.ping.id == 1
    assert dialogue.send(pb.ClientFrame(pong=pb.Pong(id=1))) == []
    (frame,) = dialogue.send(pb.ClientFrame(ping=pb.Ping(id=9)))
    assert (frame.pong.id, frame.pong.time_us) == (9, dialogue.now_us)


def test_a_client_that_is_silent_for_too_long_is_cut():
    dialogue = Dialogue(Limits(heartbeat_ms=1_000, silent_heartbeats_max=3)).open()
    dialogue.pass_time(3.1)
    dialogue.session.tick(dialogue.now_us, dialogue.now_seconds)
    assert [frame.WhichOneof("frame") for frame in dialogue.answers()] == ["bye"]


def test_a_client_that_we_do_not_read_from_is_not_called_silent():
    dialogue = Dialogue(Limits(heartbeat_ms=1_000, silent_heartbeats_max=3)).open()
    dialogue.pass_time(3.1)
    dialogue.session.tick(dialogue.now_us, dialogue.now_seconds, is_held=True)
    assert not dialogue.is_closed


def test_a_session_ends_with_its_license():
    dialogue = Dialogue().open(expires_at_us=Dialogue().now_us + HOUR_US)
    dialogue.now_us += HOUR_US
    dialogue.session.tick(dialogue.now_us, dialogue.now_seconds)
    assert only_reject(dialogue.answers()).code == pb.REJECT_CODE_LICENSE_EXPIRED


@pytest.mark.parametrize("frame", [pb.ClientFrame(), pb.ClientFrame(hello=pb.Hello(version=1))])
def test_frames_that_do_not_belong_into_an_open_session_are_malformed(frame: pb.ClientFrame):
    dialogue = Dialogue().open()
    dialogue.session.receive_frame(frame, dialogue.now_us, dialogue.now_seconds)
    assert codes(dialogue.answers()) == [pb.REJECT_CODE_MALFORMED]


def test_answers_that_come_before_the_session_is_open_change_nothing():
    dialogue = Dialogue()
    dialogue.session.log_failed()
    dialogue.session.log_restored(None)
    assert dialogue.session.appended(AppendResult.APPENDED, 1) == []
    dialogue.session.snapshot_stored(StoreSnapshot(b"", 1, 1), True)
    assert dialogue.answers() == []
