"""What is to be written of a batch of the log, given how far each master is archived; pure.

The log holds each position of a master once and in order, but an archiver may get it again (a crash before the
acknowledgement, a log restored from an older file), and another archiver may have been at it. So a position behind the
master's head is new, and one at or before it is a suspect that must be compared with what is stored. The head must be
locked from the moment it is read until the plan is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.ledger.domain.archive_rows import GapRow, Row, gap_row_of, hole_row_of, rows_of
from services.ledger.domain.log_runs import Run, RunKind

BEGINNING = (0, 0)
"""The head of a master of which nothing is archived."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """Sequences `first` to `last` of a run, which may be archived already."""

    run: Run
    first: int
    last: int


@dataclass(slots=True)
class Plan:
    """What to write, what to compare, and where each master stands afterwards."""

    rows: list[Row] = field(default_factory=list)
    gaps: list[GapRow] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    holes: list[GapRow] = field(default_factory=list)
    heads: dict[int, tuple[int, int]] = field(default_factory=dict)


def plan(runs: Iterable[Run], heads: Mapping[int, tuple[int, int]], *, suspicious: bool = False) -> Plan:
    """Plans a batch, in the order of the log. `heads` has each master of the batch.

    With `suspicious` every position is a suspect, whatever the heads say.
    """
    made = Plan(heads=dict(heads))
    for run in runs:
        head = made.heads[run.master_id]
        if suspicious or run.end <= head:
            made.suspects.append(Suspect(run, run.first, run.last))
        else:
            _add_new(made, run, head)
        made.heads[run.master_id] = max(head, run.end)
    return made


def _add_new(made: Plan, run: Run, head: tuple[int, int]) -> None:
    if is_hole(head, run.predecessor):
        made.holes.append(hole_row_of(run, head))
    if run.kind is not RunKind.BATCH:
        made.gaps.append(gap_row_of(run))
        return
    first = run.first
    if run.epoch == head[0] and run.first <= head[1]:
        made.suspects.append(Suspect(run, run.first, head[1]))
        first = head[1] + 1
    made.rows.extend(rows_of(run, first, run.last))


def is_hole(head: tuple[int, int], predecessor: tuple[int, int]) -> bool:
    """Whether positions lie between the head and what follows `predecessor`.

    Nothing is missing before the first run of a master ever archived: what came before it was never ours. A predecessor
    behind the head is no hole either: the log lost what the archive kept.
    """
    return head != BEGINNING and predecessor > head


def follows(held: tuple[int, int], predecessor: tuple[int, int]) -> bool:
    """Whether a reader who holds `held` misses nothing before the record that follows `predecessor`."""
    return predecessor <= held or (predecessor[1] == 0 and held[1] == 0)
