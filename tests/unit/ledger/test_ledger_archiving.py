"""What is to be written of a batch, and what is read back, without any I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest

from execution.ingest.v1 import log_pb2
from services.ledger.domain import log_runs
from services.ledger.domain.archive_rows import COLUMNS, SEQUENCE_INDEX, GapRow, gap_row_of, rows_of
from services.ledger.domain.archive_walk import walk
from services.ledger.domain.archiving import BEGINNING, Plan, is_hole, plan
from tests.integration.ledger.log_entries import epoch_start, gap, positions, run, signal


def planned(*messages: log_pb2.LogRun, head: tuple[int, int] = BEGINNING, suspicious: bool = False) -> Plan:
    runs, refusals = log_runs.parse("1-0", log_pb2.LogBatch(runs=messages).SerializeToString())
    assert not refusals
    return plan(runs, {one.master_id: head for one in runs}, suspicious=suspicious)


def sequences(made: Plan) -> list[int]:
    return [row[SEQUENCE_INDEX] for row in made.rows]


def test_what_is_behind_the_head_is_new() -> None:
    made = planned(run(7, 5, 3), gap(7, 8, 9), run(7, 10, 1), head=(1, 4))
    assert sequences(made) == [5, 6, 7, 10]
    assert [(one.first, one.last) for one in made.gaps] == [(8, 9)]
    assert (made.suspects, made.holes, made.heads) == ([], [], {7: (1, 10)})


def test_what_is_at_or_before_the_head_is_compared() -> None:
    made = planned(run(7, 1, 3), run(7, 4, 4), head=(1, 5))
    assert [(one.first, one.last) for one in made.suspects] == [(1, 3), (4, 5)]
    assert sequences(made) == [6, 7]
    assert made.heads == {7: (1, 7)}


def test_an_old_epoch_is_compared_and_moves_no_head() -> None:
    made = planned(run(7, 9, 3), epoch_start(7, 2, 5, (1, 5)), head=(2, 7))
    assert len(made.suspects) == 2
    assert made.heads == {7: (2, 7)}


def test_everything_is_compared_when_the_heads_are_not_trusted() -> None:
    made = planned(run(7, 5, 3), gap(7, 8, 9), head=(1, 2), suspicious=True)
    assert (made.rows, made.gaps, len(made.suspects)) == ([], [], 2)
    assert made.heads == {7: (1, 9)}


@pytest.mark.parametrize(
    ("head", "predecessor", "hole"),
    [
        (BEGINNING, (1, 0), False),
        (BEGINNING, (4, 99), False),
        ((1, 5), (1, 5), False),
        ((1, 5), (1, 6), True),
        ((1, 5), (2, 5), True),
        ((1, 5), (1, 3), False),
    ],
)
def test_a_hole_is_what_lies_between_head_and_predecessor(
    head: tuple[int, int], predecessor: tuple[int, int], hole: bool
) -> None:
    assert is_hole(head, predecessor) is hole


def test_a_start_of_an_epoch_follows_what_the_log_still_held() -> None:
    made = planned(epoch_start(7, 2, 9, (1, 6)), run(7, 10, 1, epoch=2), head=(1, 8))
    assert made.holes == []
    assert [(one.previous_epoch, one.first, one.end) for one in made.gaps] == [(1, 7, (2, 9))]
    assert made.heads == {7: (2, 10)}


@pytest.mark.parametrize(
    "change",
    [
        {"master_id": 0},
        {"master_id": 2**63},
        {"epoch": 0},
        {"first_sequence": 0, "last_sequence": 1},
        {"last_sequence": 9},
        {"last_sequence": 2**53},
        {"received_at_us": 0},
        {"received_at_us": 2**62},
    ],
)
def test_a_run_that_contradicts_itself_is_refused_and_the_others_are_not(change: dict[str, int]) -> None:
    broken, good = run(7, 1, 2), run(8, 1, 1)
    for name, value in change.items():
        setattr(broken, name, value)
    runs, refusals = log_runs.parse("1-0", log_pb2.LogBatch(runs=[broken, good]).SerializeToString())
    assert [one.master_id for one in runs] == [8]
    assert [(one.run_number, one.reason) for one in refusals] == [(0, "INVALID_RUN")]
    assert log_pb2.LogRun.FromString(refusals[0].payload) == broken


@pytest.mark.parametrize(
    "message", [gap(7, 3, 2), gap(7, 0, 2), epoch_start(7, 2, 5, (2, 5)), epoch_start(7, 2, 5, (1, 6))]
)
def test_gaps_and_epochs_that_are_none_are_refused(message: log_pb2.LogRun) -> None:
    runs, refusals = log_runs.parse("1-0", log_pb2.LogBatch(runs=[message]).SerializeToString())
    assert (runs, len(refusals)) == ([], 1)


def stored(*messages: log_pb2.LogRun) -> tuple[list[dict[str, object]], list[GapRow]]:
    runs, _ = log_runs.parse("1-0", log_pb2.LogBatch(runs=messages).SerializeToString())
    rows = [
        dict(zip(COLUMNS, row, strict=True))
        for one in runs
        if one.row_count
        for row in rows_of(one, one.first, one.last)
    ]
    return rows, [gap_row_of(one) for one in runs if not one.row_count]


def test_a_walk_tells_signals_and_gaps_in_order() -> None:
    signals, gaps = stored(run(7, 1, 2), gap(7, 3, 4), run(7, 5, 1))
    walked = walk((0, 0), signals, gaps, records_max=10)
    assert positions(walked.records) == [
        ("signal", 1, 1),
        ("signal", 1, 2),
        ("gap", (1, 3), (1, 4), (1, 4)),
        ("signal", 1, 5),
    ]
    assert (walked.held, walked.missing_before) == ((1, 5), None)


def test_a_walk_stops_at_a_hole() -> None:
    signals, gaps = stored(run(7, 1, 2), run(7, 5, 1))
    walked = walk((0, 0), signals, gaps, records_max=10)
    assert (len(walked.records), walked.held, walked.missing_before) == (2, (1, 2), (1, 4))


def test_signals_that_came_after_their_hole_was_declared_leave_nothing_of_it_to_tell() -> None:
    signals, gaps = stored(run(7, 1, 5), gap(7, 3, 5), run(7, 6, 1))
    walked = walk((0, 0), signals, gaps, records_max=10)
    assert positions(walked.records) == [("signal", 1, sequence) for sequence in (1, 2, 3, 4, 5, 6)]


@pytest.mark.parametrize("records_max", [1, 2, 4, 5, 100])
def test_what_is_left_of_a_hole_that_filled_in_part_is_told_around_what_came(records_max: int) -> None:
    signals, gaps = stored(run(7, 1, 3), run(7, 6, 2), gap(7, 4, 9), run(7, 10, 1))
    gaps = [replace(one, is_hole=True) for one in gaps]
    told, held = [], (0, 0)
    while True:
        behind = [one for one in signals if (one["epoch"], one["sequence"]) > held]
        walked = walk(held, behind, [one for one in gaps if one.end > held], records_max=records_max)
        assert walked.missing_before is None
        assert len(walked.records) <= records_max
        if not walked.records:
            break
        told += positions(walked.records)
        held = walked.held
    assert told == [
        *(("signal", 1, sequence) for sequence in (1, 2, 3)),
        ("gap", (1, 4), (1, 5), (1, 5)),
        *(("signal", 1, sequence) for sequence in (6, 7)),
        ("gap", (1, 8), (1, 9), (1, 9)),
        ("signal", 1, 10),
    ]


def test_a_signal_reads_back_as_it_was_signed() -> None:
    odd = signal(1, comment="a\0b", magic=2**64 - 1)
    signals, _ = stored(run(7, 1, [odd]))
    assert signals[0]["raw"] is not None
    assert walk((0, 0), signals, [], records_max=1).records[0].signal.signal == odd
