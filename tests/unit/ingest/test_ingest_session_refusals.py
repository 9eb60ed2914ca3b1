"""The open session: which signals, signatures and snapshots are refused, and what that costs."""

from __future__ import annotations

import pytest

from execution.common.v1 import signal_pb2
from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.values import AppendResult, Limits, LogHead, StoreSnapshot
from tests.unit.ingest.dialogue import Dialogue, codes, only_ack, only_reject, parsed

CLOSE = signal_pb2.SIGNAL_KIND_CLOSE
GAP = pb.REJECT_CODE_GAP
UNAVAILABLE = pb.REJECT_CODE_UNAVAILABLE


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
