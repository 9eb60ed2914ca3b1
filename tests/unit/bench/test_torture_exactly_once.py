"""The judge of `ecp torture fanout`: what is missing, doubled, out of order or late is seen, and nothing else."""

from __future__ import annotations

from bench.torture.exactly_once import Span, Told, spans_of
from bench.torture.fanout import FanoutTortureReport
from bench.torture.followers import Outcome
from execution.common.v1 import signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb


def signals(*sequences: int, previous: int | None = None) -> pb.Signals:
    """These, each said to follow the one before it."""
    message = pb.Signals()
    before = sequences[0] - 1 if previous is None else previous
    for sequence in sequences:
        message.signals.append(signal_pb2.SequencedSignal(sequence=sequence, previous_sequence=before))
        before = sequence
    return message


def told(*messages: pb.Signals, last: int) -> Told:
    one = Told()
    for number, message in enumerate(messages):
        one.take(spans_of(message), float(number))
    one.is_told(last)
    return one


def test_everything_once_and_in_order_is_no_problem() -> None:
    one = told(signals(1, 2, 3), signals(4), signals(5, 6), last=6)
    assert (one.delivered, one.missing, one.doubled, one.problems) == (6, 0, 0, [])


def test_a_hole_between_messages_is_missing() -> None:
    one = told(signals(1, 2), signals(5, 6), last=6)
    assert (one.delivered, one.missing, one.doubled) == (4, 2, 0)
    assert one.problems


def test_a_hole_inside_a_message_is_missing_even_if_it_is_owned_up_to() -> None:
    one = told(signals(1, 2, 4), last=4)
    assert (one.delivered, one.missing) == (3, 1)
    assert one.problems


def test_a_repetition_is_doubled() -> None:
    one = told(signals(1, 2, 3), signals(2, 3, 4), signals(5), last=5)
    assert (one.delivered, one.missing, one.doubled) == (7, 0, 2)
    assert len(one.problems) == 1


def test_a_wrong_word_about_the_position_before_is_a_problem() -> None:
    one = told(signals(1, 2), signals(3, previous=1), last=3)
    assert (one.missing, one.doubled) == (0, 0)
    assert one.problems


def test_the_end_is_held_against_the_log() -> None:
    assert told(signals(1, 2), last=5).missing == 3
    assert told(signals(1, 2, 3), last=2).problems


def test_the_longest_silence_counts_from_signal_to_signal() -> None:
    one = Told()
    for at in (10.0, 10.5, 13.0, 13.1):
        one.take((Span(one.held, one.held + 1, one.held + 1),), at)
    assert one.silence_seconds_max == 2.5


def test_problems_are_kept_in_bounds() -> None:
    one = Told()
    for number in range(100):
        one.problem(str(number))
    assert len(one.problems) == 5


def test_a_report_is_sound_only_without_violations() -> None:
    fine = Outcome(10, deliveries=20, silences_seconds=[0.1, 0.2, 0.3, 4.0])
    report = FanoutTortureReport({}, outcome=fine)
    assert report.is_sound
    assert (report.silence_seconds(0.5), report.silence_seconds(1.0)) == (0.3, 4.0)
    assert report.summary()[-1] == "sound"
    for broken in (
        Outcome(10, deliveries=20, missing=1),
        Outcome(10, deliveries=20, doubled=1),
        Outcome(10, deliveries=20, problems=["what"]),
        Outcome(10),
    ):
        report = FanoutTortureReport({}, outcome=broken)
        assert not report.is_sound
        assert report.summary()[-1] == "NOT SOUND"
        assert not report.as_json()["is_sound"]
