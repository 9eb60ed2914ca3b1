"""The open session: what is taken, in which order, what counts as a duplicate, a conflict or a gap."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2, signal_pb2
from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.values import AppendResult, Limits, LogHead, digest_of
from tests.unit.ingest.dialogue import Dialogue, codes, only_ack, only_reject, parsed

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


def test_the_last_sequence_with_other_content_is_a_conflict_also_where_more_follows_it():
    dialogue = Dialogue().open()
    dialogue.send_signals(1, 2)
    dialogue.append()
    reject = only_reject(dialogue.send_signals(2, 2, price_e8=1))
    assert (reject.code, reject.sequence) == (pb.REJECT_CODE_CONFLICT, 2)
    assert dialogue.taken() == []
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
