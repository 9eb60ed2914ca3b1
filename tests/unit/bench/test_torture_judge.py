"""The judge of a torture run: each way to break a promise is seen, and a kept promise is no violation."""

from __future__ import annotations

import pytest

from bench.torture.promises import MasterLog, Promises, Span, judge, unexplained_losses
from execution.common.v1 import position_pb2, signal_pb2
from execution.ingest.v1 import frames_pb2, log_pb2


def batch(first: int, last: int, epoch: int = 1, shift: int = 0) -> log_pb2.LogRun:
    signals = [signal_pb2.Signal(magic=sequence + shift) for sequence in range(first, last + 1)]
    return log_pb2.LogRun(
        master_id=1, epoch=epoch, first_sequence=first, last_sequence=last,
        batch=frames_pb2.SignalBatch(first_sequence=first, signals=signals),
    )  # fmt: skip


def epoch_start(epoch: int, last: int, previous: tuple[int, int], reason: int = 3) -> log_pb2.LogRun:
    run = log_pb2.LogRun(master_id=1, epoch=epoch, first_sequence=last, last_sequence=last, received_at_us=9)
    run.epoch_start.reason = position_pb2.GapReason.ValueType(reason)
    run.epoch_start.previous.epoch, run.epoch_start.previous.sequence = previous
    return run


def log_of(*runs: log_pb2.LogRun) -> MasterLog:
    log = MasterLog(1)
    for run in runs:
        log.take(run)
    return log


def promises(*heard: tuple[int, int]) -> Promises:
    made = Promises()
    for epoch, sequence in heard:
        made.acknowledged(epoch, sequence)
    return made


def test_a_log_that_holds_what_was_acknowledged_and_more_is_sound():
    verdict = judge(promises((1, 3), (1, 5), (1, 4)), log_of(batch(1, 4), batch(5, 9)))
    assert (verdict.acknowledged, verdict.lost_visibly, verdict.problems) == (5, 0, [])


def test_what_is_missing_at_the_end_is_a_violation():
    verdict = judge(promises((1, 6)), log_of(batch(1, 4)))
    assert "2 are neither in the log nor named as lost" in verdict.problems[0]


def test_a_loss_that_a_new_epoch_names_is_visible():
    log = log_of(batch(1, 4), epoch_start(2, 6, (1, 4)), batch(7, 9, epoch=2))
    verdict = judge(promises((1, 6), (2, 9)), log)
    assert (verdict.acknowledged, verdict.lost_visibly, verdict.problems) == (9, 2, [])
    assert log.log_losses_at_us == [9]


def test_a_loss_that_is_named_too_small_is_a_violation():
    log = log_of(batch(1, 4), epoch_start(2, 5, (1, 4)), batch(6, 9, epoch=2))
    assert judge(promises((1, 6), (2, 9)), log).problems


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([batch(1, 4), batch(6, 7)], id="hole"),
        pytest.param([batch(1, 4), batch(4, 5)], id="twice"),
        pytest.param([batch(1, 4), batch(5, 6, epoch=2)], id="epoch without a start"),
        pytest.param([batch(1, 4, shift=1)], id="other content"),
        pytest.param([batch(1, 4), epoch_start(2, 5, (1, 3))], id="wrong position before"),
        pytest.param([batch(1, 4), epoch_start(2, 3, (1, 4))], id="epoch goes back"),
        pytest.param([batch(1, 4), epoch_start(1, 5, (1, 4))], id="same epoch again"),
        pytest.param([batch(1, 4), epoch_start(2, 5, (1, 4), reason=2)], id="master blamed"),
        pytest.param([log_pb2.LogRun(master_id=1)], id="empty run"),
    ],
)
def test_a_log_that_breaks_its_own_rules_is_a_violation(runs: list[log_pb2.LogRun]):
    assert log_of(*runs).problems


def test_a_batch_that_does_not_fill_its_run_is_a_violation():
    run = batch(1, 4)
    del run.batch.signals[3:]
    assert log_of(run).problems


def test_promises_join_within_an_epoch():
    assert promises((1, 3), (1, 5), (2, 9)).spans == [Span(1, 1, 5), Span(2, 6, 9)]


@pytest.mark.parametrize(
    ("losses_at_us", "cuts_at_us", "unexplained"),
    [
        ([], [], 0),
        ([20], [10], 0),
        ([20, 40], [10, 30], 0),
        # Both cuts hit before the master could log in between them.
        ([40], [10, 30], 0),
        ([20], [], 1),
        ([20], [30], 1),
        ([20, 25], [10], 1),
    ],
)
def test_each_loss_needs_a_cut_of_its_own(losses_at_us: list[int], cuts_at_us: list[int], unexplained: int):
    log = MasterLog(7, log_losses_at_us=losses_at_us)
    assert len(unexplained_losses(log, cuts_at_us)) == unexplained


def test_promises_so_far_do_not_grow():
    promises = Promises()
    promises.acknowledged(1, 5)
    before = promises.so_far()
    promises.acknowledged(1, 9)
    promises.acknowledged(2, 12)
    assert (before.spans, before.sequence) == ([Span(1, 1, 5)], 5)
