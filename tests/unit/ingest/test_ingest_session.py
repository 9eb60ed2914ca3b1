"""The open session: sequences, acks, what is refused and how, and what happens when the log fails."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2, signal_pb2
from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.values import AppendResult, Limits, LogHead, StoreSnapshot, digest_of
from tests.unit.ingest.dialogue import HOUR_US, Dialogue, codes, only_ack, only_reject, parsed

CLOSE = signal_pb2.SIGNAL_KIND_CLOSE
GAP = pb.REJECT_CODE_GAP
UNAVAILABLE = pb.REJECT_CODE_UNAVAILABLE


# Taking


def test_nothing_is_acknowledged_before_it_is_in_the_log():
    dialogue = Dialogue().open()
    assert dialogue.send_signals(1, 3) == []
    ack = only_ack(dialogue.append())
    assert (ack.sequence, ack.durability) == (3, position_pb2.DURABILITY_APPENDED)
    assert ack.credits == dialogue.limits.window


def test_the_log_gets_the_bytes_that_were_signed():
    dialogue = Dialogue().open(LogHead(2, 10, 77))
    frame = dialogue.batch(11, 2)
    dialogue.send(frame)
    (run,) = dialogue.taken()
    assert frame.signals.body in run.data
    one = parsed(run)
    assert (one.master_id, one.epoch, one.session_epoch, one.key_id) == (1, 2, 77, "k1")
    assert (one.first_sequence, one.last_sequence) == (11, 12)
    assert one.received_at_us == dialogue.now_us
    assert one.batch == pb.SignalBatch.FromString(frame.signals.body)
    assert run.digest == digest_of(one.batch.signals[1])


def test_acks_are_cumulative():
    dialogue = Dialogue().open()
    for sequence in (1, 2, 3):
        dialogue.send_signals(sequence)
    assert only_ack(dialogue.append()).sequence == 3


def test_several_appends_may_be_under_way():
    dialogue = Dialogue().open()
    dialogue.send_signals(1)
    dialogue.taken()
    dialogue.send_signals(2)
    dialogue.taken()
    assert dialogue.session.intake.in_flight == 2
    dialogue.session.appended(AppendResult.APPENDED, 1)
    assert only_ack(dialogue.answers()).sequence == 1
    dialogue.session.appended(AppendResult.APPENDED, 2)
    assert only_ack(dialogue.answers()).sequence == 2
    assert dialogue.session.intake.is_idle


# Duplicates and conflicts


def test_what_is_in_the_log_is_acknowledged_again():
    dialogue = Dialogue().open()
    frame = dialogue.batch(1, 2)
    dialogue.send(frame)
    dialogue.append()
    assert only_ack(dialogue.send(frame)).sequence == 2
    assert dialogue.taken() == []
    assert dialogue.session.outbox.duplicates == 2


def test_a_duplicate_of_what_is_under_way_waits_for_the_log():
    dialogue = Dialogue().open()
    frame = dialogue.batch(1)
    dialogue.send(frame)
    assert only_ack(dialogue.send(frame)).sequence == 0
    assert only_ack(dialogue.append()).sequence == 1


def test_of_a_partly_old_batch_only_the_rest_is_taken():
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    dialogue.append()
    frame = dialogue.batch(1, 4)
    dialogue.send(frame)
    (run,) = dialogue.taken()
    one = parsed(run)
    assert (one.first_sequence, one.last_sequence, one.batch.first_sequence) == (3, 4, 3)
    assert list(one.batch.signals) == list(pb.SignalBatch.FromString(frame.signals.body).signals)[2:]


@pytest.mark.parametrize("is_durable", [True, False])
def test_the_last_sequence_with_other_content_is_a_conflict(is_durable: bool):
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    if is_durable:
        dialogue.append()
    reject = only_reject(dialogue.send_signals(2, price_e8=1))
    assert (reject.code, reject.sequence) == (pb.REJECT_CODE_CONFLICT, 2)
    assert dialogue.is_closed


def test_a_conflict_is_noticed_across_sessions():
    before = Dialogue()
    last = before.signal(7)
    dialogue = Dialogue().open(LogHead(1, 7, 50, digest=digest_of(last)))
    assert only_ack(dialogue.send(dialogue.keys.signals(7, [last]))).sequence == 7
    other = only_reject(dialogue.send_signals(7, price_e8=5))
    assert other.code == pb.REJECT_CODE_CONFLICT


def test_an_older_sequence_with_other_content_is_only_a_duplicate():
    dialogue = Dialogue().open(LogHead(1, 7, 50, digest="ab" * 16))
    assert only_ack(dialogue.send_signals(3)).sequence == 7


def test_a_signal_where_a_gap_was_declared_is_a_duplicate():
    dialogue = Dialogue().open(LogHead(1, 7, 50, digest="-"))
    assert only_ack(dialogue.send_signals(7)).sequence == 7


# Gaps


def test_beyond_the_next_sequence_is_a_gap():
    dialogue = Dialogue().open()
    reject = only_reject(dialogue.send_signals(3, 2))
    assert (reject.code, reject.sequence, reject.expected_sequence) == (GAP, 3, 1)
    assert not reject.retryable
    assert not dialogue.is_closed


def test_a_declared_gap_goes_into_the_log_as_a_marker():
    dialogue = Dialogue().open()
    body = pb.GapFillBody(from_sequence=1, to_sequence=5, reason=2, note="the disk died")
    dialogue.send(dialogue.keys.signed_gap(body.SerializeToString()))
    (run,) = dialogue.taken()
    one = parsed(run)
    assert (one.first_sequence, one.last_sequence) == (1, 5)
    assert (one.gap.reason, one.gap.note) == (position_pb2.GAP_REASON_MASTER_LOST, "the disk died")
    assert run.digest == "-"
    dialogue.session.appended(AppendResult.APPENDED, 5)
    assert only_ack(dialogue.answers()).sequence == 5
    dialogue.send_signals(6)
    assert only_ack(dialogue.append()).sequence == 6


def test_a_gap_declared_again_is_acknowledged_again():
    dialogue = Dialogue().open()
    dialogue.send(dialogue.keys.gap(1, 5))
    dialogue.append()
    assert only_ack(dialogue.send(dialogue.keys.gap(1, 5))).sequence == 5
    dialogue.send(dialogue.keys.gap(4, 7))
    (run,) = dialogue.taken()
    assert (run.first, run.last) == (6, 7)


def test_a_gap_must_begin_at_the_expected_sequence():
    dialogue = Dialogue().open()
    reject = only_reject(dialogue.send(dialogue.keys.gap(2, 5)))
    assert (reject.code, reject.expected_sequence) == (GAP, 1)


@pytest.mark.parametrize(("first", "last", "reason"), [(0, 1, 1), (2, 1, 1), (1, 1_000_002, 1), (1, 2, 3)])
def test_an_impossible_gap_is_malformed(first: int, last: int, reason: int):
    dialogue = Dialogue().open()
    assert codes(dialogue.send(dialogue.keys.gap(first, last, reason))) == [pb.REJECT_CODE_MALFORMED]
    assert dialogue.is_closed


def test_the_largest_gap_is_taken_and_uses_no_window():
    dialogue = Dialogue(Limits(window=2)).open()
    assert dialogue.send(dialogue.keys.gap(1, 1_000_001)) == []
    assert dialogue.send_signals(1_000_002, 2) == []
    assert only_ack(dialogue.append()).sequence == 1_000_003


# Bad signals


def test_a_batch_is_taken_up_to_its_first_bad_signal():
    dialogue = Dialogue().open()
    signals = [dialogue.signal(n) for n in (1, 2, 3, 4)]
    signals[2].price_e8 = -5
    reject = only_reject(dialogue.send(dialogue.keys.signals(1, signals)))
    assert (reject.code, reject.sequence, reject.expected_sequence) == (
        pb.REJECT_CODE_INVALID_SIGNAL,
        3,
        3,
    )
    assert reject.field == "price_e8"
    assert not reject.retryable
    (run,) = dialogue.taken()
    one = parsed(run)
    assert (one.first_sequence, one.last_sequence, len(one.batch.signals)) == (1, 2, 2)
    # What was under way behind it is refused as a gap, frame by frame.
    assert only_reject(dialogue.send_signals(5)).code == GAP
    # The hole is declared, and the stream goes on.
    dialogue.send(dialogue.keys.gap(3, 3))
    dialogue.send_signals(4)
    dialogue.session.appended(AppendResult.APPENDED, 4)
    assert only_ack(dialogue.answers()).sequence == 4


def test_a_bad_first_signal_takes_nothing():
    dialogue = Dialogue().open()
    reject = only_reject(dialogue.send_signals(1, symbol=""))
    assert (reject.code, reject.field, reject.expected_sequence) == (
        pb.REJECT_CODE_INVALID_SIGNAL,
        "symbol",
        1,
    )
    assert dialogue.taken() == []


def test_an_old_signal_is_stale_and_a_close_never_is():
    dialogue = Dialogue(Limits(signal_age_ms_max=1_000)).open()
    old_us = dialogue.now_us - 1_000_001
    signals = [
        dialogue.signal(1, kind=CLOSE, occurred_at_us=old_us),
        dialogue.signal(2, occurred_at_us=dialogue.now_us - 999_999),
        dialogue.signal(3, occurred_at_us=old_us),
    ]
    reject = only_reject(dialogue.send(dialogue.keys.signals(1, signals)))
    assert (reject.code, reject.sequence, reject.retryable) == (pb.REJECT_CODE_STALE, 3, False)
    assert only_ack(dialogue.append()).sequence == 2


@pytest.mark.parametrize(
    "kind",
    [
        signal_pb2.SIGNAL_KIND_CLOSE,
        signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE,
        signal_pb2.SIGNAL_KIND_CLOSE_BY,
        signal_pb2.SIGNAL_KIND_PENDING_CANCEL,
    ],
)
def test_closes_are_neither_stale_nor_rate_limited(kind: signal_pb2.SignalKind.ValueType):
    dialogue = Dialogue(Limits(signal_age_ms_max=1), per_second=1).open()
    old = {"kind": kind, "occurred_at_us": 1, "opposite_position_id": 3, "order_id": 3}
    dialogue.send_signals(1)
    dialogue.send_signals(2, 10, **old)
    assert only_ack(dialogue.append()).sequence == 11


def test_the_masters_own_age_limit_counts():
    dialogue = Dialogue(Limits(signal_age_ms_max=10_000)).open(signal_age_ms_max=100)
    reject = only_reject(dialogue.send_signals(1, occurred_at_us=dialogue.now_us - 200_000))
    assert reject.code == pb.REJECT_CODE_STALE


def test_too_many_signals_a_second_are_refused_until_later():
    dialogue = Dialogue(per_second=3).open()
    kinds = [1, CLOSE, 1, 1, CLOSE, 1, 1]
    signals = [dialogue.signal(n, kind=kind) for n, kind in enumerate(kinds, 1)]
    reject = only_reject(dialogue.send(dialogue.keys.signals(1, signals)))
    assert (reject.code, reject.sequence) == (pb.REJECT_CODE_RATE_LIMITED, 6)
    assert reject.retryable
    assert 0 < reject.retry_after_ms <= 334
    assert only_ack(dialogue.append()).sequence == 5
    dialogue.pass_time(reject.retry_after_ms / 1_000)
    dialogue.send_signals(6)
    assert only_ack(dialogue.append()).sequence == 6


def test_more_than_the_window_under_way_is_refused_until_the_next_ack():
    dialogue = Dialogue(Limits(window=4)).open()
    assert dialogue.send_signals(1, 4) == []
    reject = only_reject(dialogue.send_signals(5))
    assert (reject.code, reject.sequence, reject.expected_sequence) == (
        pb.REJECT_CODE_WINDOW_EXCEEDED,
        5,
        5,
    )
    assert reject.retryable
    dialogue.append()
    assert dialogue.send_signals(5) == []


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff",
        pb.SignalBatch(first_sequence=1, sent_at_us=1).SerializeToString(),
        pb.SignalBatch(first_sequence=0, sent_at_us=1, signals=[{}]).SerializeToString(),
        pb.SignalBatch(first_sequence=2**53, sent_at_us=1, signals=[{}]).SerializeToString(),
        pb.SignalBatch(first_sequence=1, sent_at_us=0, signals=[{}]).SerializeToString(),
        pb.SignalBatch(first_sequence=1, sent_at_us=2**62, signals=[{}]).SerializeToString(),
        pb.SignalBatch(first_sequence=1, sent_at_us=1, signals=[{}] * 513).SerializeToString(),
        pb.SignalBatch(
            first_sequence=1, sent_at_us=1, signals=[{}], traceparent="x" * 65
        ).SerializeToString(),
        b"\x1a\x04\x1a\x02\xff\xff",
    ],
)
def test_a_signed_body_that_is_no_batch_is_malformed(body: bytes):
    dialogue = Dialogue().open()
    assert codes(dialogue.send(dialogue.keys.signed_batch(body))) == [pb.REJECT_CODE_MALFORMED]
    assert dialogue.is_closed


# Signatures


def test_one_changed_bit_is_noticed():
    for index in (0, 5, 20):
        dialogue = Dialogue().open()
        frame = dialogue.batch(1)
        body = bytearray(frame.signals.body)
        body[index] ^= 1
        frame.signals.body = bytes(body)
        assert codes(dialogue.send(frame)) == [pb.REJECT_CODE_BAD_MAC]
        assert dialogue.is_closed
        assert dialogue.taken() == []


def test_a_body_signed_as_another_kind_is_refused():
    dialogue = Dialogue().open()
    body = dialogue.batch(1).signals.body
    frame = dialogue.keys.signed_gap(body)
    as_signals = pb.SignedSignals(body=body, mac=frame.gap_fill.mac)
    assert codes(dialogue.send(pb.ClientFrame(signals=as_signals))) == [pb.REJECT_CODE_BAD_MAC]


def test_a_gap_or_a_snapshot_needs_its_own_mac():
    dialogue = Dialogue().open()
    frame = dialogue.keys.gap(1, 2)
    frame.gap_fill.mac = b"m" * 32
    assert codes(dialogue.send(frame)) == [pb.REJECT_CODE_BAD_MAC]
    dialogue = Dialogue().open()
    frame = dialogue.snapshot(0)
    frame.snapshot.mac = b""
    assert codes(dialogue.send(frame)) == [pb.REJECT_CODE_BAD_MAC]


def test_nothing_behind_a_fatal_frame_counts():
    dialogue = Dialogue().open()
    bad = dialogue.batch(1)
    bad.signals.mac = b"m" * 32
    assert codes(dialogue.send(bad, dialogue.batch(1), dialogue.batch(2))) == [pb.REJECT_CODE_BAD_MAC]
    assert dialogue.taken() == []


# Snapshots


def test_a_snapshot_is_stored_with_its_epoch_and_acknowledged():
    dialogue = Dialogue().open(LogHead(3, 9, 50))
    dialogue.send_signals(10)
    assert dialogue.send(dialogue.snapshot(10)) == []
    (command,) = dialogue.session.take_commands()
    assert isinstance(command, StoreSnapshot)
    assert (command.epoch, command.sequence) == (3, 10)
    dialogue.append()
    dialogue.session.snapshot_stored(command, True)
    ack = only_ack(dialogue.answers())
    assert (ack.sequence, ack.snapshot_sequence) == (10, 10)


@pytest.mark.parametrize(
    ("field", "fields", "sequence"),
    [("as_of", {}, 1), ("master_id", {"master_id": 9}, 0), ("account_mode", {"account_mode": 0}, 0)],
)
def test_a_bad_snapshot_costs_only_itself(field: str, fields: dict[str, object], sequence: int):
    dialogue = Dialogue().open()
    reject = only_reject(dialogue.send(dialogue.snapshot(sequence, **fields)))
    assert (reject.code, reject.field, reject.sequence) == (pb.REJECT_CODE_INVALID_SIGNAL, field, 0)
    assert not dialogue.is_closed
    assert dialogue.session.take_commands() == []


def test_snapshots_are_limited_too():
    dialogue = Dialogue(Limits(snapshot_seconds_min=1, snapshot_burst=2)).open()
    frames = dialogue.send(*[dialogue.snapshot(0)] * 3)
    reject = only_reject(frames)
    assert (reject.code, reject.sequence, reject.retryable) == (pb.REJECT_CODE_RATE_LIMITED, 0, True)


def test_a_snapshot_that_the_log_does_not_take_is_refused_until_later():
    dialogue = Dialogue().open()
    dialogue.send(dialogue.snapshot(0))
    (command,) = dialogue.session.take_commands()
    dialogue.session.snapshot_stored(command, False)
    assert only_reject(dialogue.answers()).code == UNAVAILABLE
    dialogue.session.log_failed()
    assert only_reject(dialogue.send(dialogue.snapshot(0))).code == UNAVAILABLE


def test_a_snapshot_is_asked_for_when_the_session_is_open():
    dialogue = Dialogue()
    dialogue.session.request_snapshot("x")
    assert dialogue.answers() == []
    dialogue.open()
    dialogue.session.request_snapshot("an operator wants one")
    (frame,) = dialogue.answers()
    assert frame.snapshot_request.reason == "an operator wants one"


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
