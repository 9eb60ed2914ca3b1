"""The judge of schedules finds every kind of fault, and finds none where there is none; schedules can be repeated."""

from __future__ import annotations

import json

import pytest

from bench.torture.schedule_judge import Seen, Truth, judge
from bench.torture.schedule_plan import Kind, Schedule, Sizes, schedule
from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.journal_format import Entry, EntryType
from execution.common.v1 import position_pb2

LOST, TRIMMED = position_pb2.GAP_REASON_LOG_LOST, position_pb2.GAP_REASON_TRIMMED
WITHHELD = position_pb2.GAP_REASON_WITHHELD


def signal(sequence: int, previous: int | None = None, *, epoch: int = 1, before: int | None = None) -> Entry:
    place = Position(before or epoch, sequence - 1 if previous is None else previous)
    ticket = sequence if sequence % 2 else sequence - 1
    return Entry(EntryType.SIGNAL, 7, Position(epoch, sequence), place, 0, ticket=ticket)


def gap(first: int, upto: tuple[int, int], reason: int = LOST, *, epoch: int = 1) -> Entry:
    return Entry(EntryType.GAP, 7, Position(*upto), Position(epoch, first - 1), 0, kind=reason)


def snapshot(as_of: int, previous: int, *, epoch: int = 1) -> Entry:
    return Entry(EntryType.SNAPSHOT, 7, Position(epoch, as_of), Position(epoch, previous), 0)


def progress(sequence: int, previous: Position) -> Entry:
    return Entry(EntryType.PROGRESS, 7, Position(1, sequence), previous, 0)


def verdict(
    *entries: Entry,
    head: int,
    lost: tuple[tuple[int, int], ...] = (),
    place: str = "now",
    resynced: bool = False,
    was_paused: bool = False,
) -> Seen:
    truth = Truth(7, head, list(lost))
    (seen,) = judge(
        "f", entries, {7: truth}, place=place, resynced={7} if resynced else set(), was_paused=was_paused
    )
    return seen


def test_what_came_once_and_in_order_is_right() -> None:
    seen = verdict(*(signal(number) for number in range(1, 6)), head=5, place="beginning")
    assert (seen.problems, seen.signals) == ([], 5)


def test_what_was_lost_and_told_is_right_with_the_full_sync_that_follows() -> None:
    seen = verdict(
        signal(1),
        signal(2),
        gap(3, (2, 5)),
        snapshot(8, 5, epoch=2),
        signal(9, epoch=2),
        head=9,
        lost=((3, 5),),
    )
    assert (seen.problems, seen.missing, seen.synced_over, seen.full_syncs) == ([], 3, 3, 1)


def test_a_snapshot_that_is_older_than_a_loss_needs_another_one() -> None:
    entries = signal(1), signal(2), gap(3, (2, 5)), snapshot(1, 2), snapshot(8, 5, epoch=2)
    seen = verdict(*entries, head=8, lost=((3, 5),))
    assert (seen.problems, seen.full_syncs) == ([], 2)
    (problem,) = verdict(*entries, snapshot(9, 8, epoch=2), head=9, lost=((3, 5),)).problems
    assert "without a cause" in problem


def test_an_epoch_that_took_nothing_is_right() -> None:
    seen = verdict(signal(1), signal(2), gap(2, (2, 2)), signal(3, epoch=2), head=3, lost=((2, 2),))
    assert (seen.problems, seen.missing) == ([], 0)


@pytest.mark.parametrize(
    ("entries", "head", "lost", "text"),
    [
        ([signal(1), signal(3, 2)], 3, (), "leaves out"),
        ([signal(1), signal(3, 1)], 3, (), "leaves out"),
        ([signal(1), signal(2), signal(2)], 2, (), "came again"),
        ([signal(1), signal(2), signal(2, epoch=2, before=1)], 2, (), "came again in epoch 2"),
        ([signal(1), signal(2)], 3, (), "silently behind"),
        ([], 3, (), "nothing was ever received"),
        ([signal(1), gap(2, (2, 4))], 4, ((3, 4),), "names 1 that came or must come"),
        ([signal(1), gap(3, (2, 4))], 4, ((2, 4),), "begins at 3 instead of 2"),
        ([signal(1), gap(2, (1, 4), TRIMMED)], 4, ((2, 4),), "nothing of that kind happened"),
        ([signal(1), signal(2), gap(1, (1, 1))], 2, ((1, 2),), "behind 1:2"),
        ([signal(1), progress(4, Position(1, 1))], 4, (), "in silence"),
        ([signal(1), snapshot(2, 1), snapshot(4, 2)], 4, (), "without a cause"),
        (
            [Entry(EntryType.SIGNAL, 7, Position(1, 1), Position(1, 0), 0, ticket=5)],
            1,
            (),
            "about position 5",
        ),
    ],
)
def test_every_fault_is_found(
    entries: list[Entry], head: int, lost: tuple[tuple[int, int], ...], text: str
) -> None:
    assert any(text in problem for problem in verdict(*entries, head=head, lost=lost).problems)


def test_a_pause_withholds_openings_and_nothing_else() -> None:
    entries = [signal(1), signal(2), gap(3, (1, 3), WITHHELD), signal(4), snapshot(6, 4)]
    seen = verdict(*entries, head=6, was_paused=True)
    assert (seen.problems, seen.withheld, seen.synced_over) == ([], 1, 2)
    assert "nothing of that kind" in verdict(*entries, head=6).problems[0]
    closing = [signal(1), gap(2, (1, 2), WITHHELD)]
    assert "must come" in verdict(*closing, head=2, was_paused=True).problems[0]


def test_who_begins_at_the_beginning_must_have_the_first() -> None:
    late = progress(3, BEGINNING)
    assert verdict(late, head=3, place="now").problems == []
    assert "not at the beginning" in verdict(late, head=3, place="beginning").problems[0]


def test_a_full_sync_that_was_asked_for_needs_no_other_cause() -> None:
    entries = [signal(1), snapshot(2, 1), snapshot(4, 2)]
    assert verdict(*entries, head=4, resynced=True).problems == []


def test_a_seed_gives_its_schedule_again_and_json_keeps_it() -> None:
    sizes = Sizes(acts=60)
    first = schedule(3, sizes)
    assert first == schedule(3, sizes) != schedule(4, sizes)
    assert Schedule.from_json(json.loads(json.dumps(first.as_json()))) == first


def test_schedules_use_every_kind_of_act() -> None:
    used = {act.kind for seed in range(20) for act in schedule(seed, Sizes()).acts}
    assert used == set(Kind)
