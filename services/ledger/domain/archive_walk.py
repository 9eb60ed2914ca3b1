"""Puts archived signals and gaps in order and sees to it that nothing between them goes untold; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from execution.ledger.v1 import archive_service_pb2 as pb
from services.ledger.domain.archive_rows import Columns, GapRow, gap_to_pb, sequenced_of
from services.ledger.domain.archiving import follows

Position: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True, slots=True)
class Walked:
    """Records in order; the reader holds `held` after them.

    `missing_before` is where the records go on behind positions that the archive does not have (any more); None if
    there are no such positions.
    """

    records: list[pb.ArchivedRecord]
    held: Position
    missing_before: Position | None


def walk(held: Position, signals: Sequence[Columns], gaps: Sequence[GapRow], *, records_max: int) -> Walked:
    """The records behind `held`, at most `records_max`, up to the first hole.

    `signals` and `gaps` are those behind `held` in order, each cut off where it likes after `records_max`.
    """
    records: list[pb.ArchivedRecord] = []
    for one in _merged(signals, gaps)[:records_max]:
        if isinstance(one, GapRow) and one.end <= held:
            continue  # All that the hole covered came in after it was found.
        predecessor = one.predecessor if isinstance(one, GapRow) else (one["epoch"], one["sequence"] - 1)
        if not follows(held, predecessor):
            hole = _hole_between(held, predecessor, gaps)
            if hole is None:
                return Walked(records, held, predecessor)
            records.append(pb.ArchivedRecord(gap=gap_to_pb(hole, hole.first)))
            held = predecessor
            if len(records) == records_max:
                break
        if not isinstance(one, GapRow):
            records.append(pb.ArchivedRecord(signal=sequenced_of(one)))
            held = one["epoch"], one["sequence"]
        else:
            first = max(one.first, held[1] + 1) if held[0] == one.previous_epoch else one.first
            if first <= one.last or one.epoch != one.previous_epoch:
                records.append(pb.ArchivedRecord(gap=gap_to_pb(one, min(first, one.last + 1))))
            held = max(held, one.end)
        if len(records) == records_max:
            break
    return Walked(records, held, None)


def _hole_between(held: Position, predecessor: Position, gaps: Sequence[GapRow]) -> GapRow | None:
    """What a hole, of which a later part came in after all, still says of the positions in between."""
    for gap in gaps:
        is_within = gap.is_hole and gap.epoch == gap.previous_epoch == held[0] == predecessor[0]
        if is_within and gap.first <= held[1] + 1 and predecessor[1] <= gap.last:
            return replace(gap, first=held[1] + 1, last=predecessor[1])
    return None


def _merged(signals: Sequence[Columns], gaps: Sequence[GapRow]) -> list[Columns | GapRow]:
    if not gaps:
        return list(signals)
    # What came in late, after its position had been found to be a hole, stands before that hole's end.
    keyed: list[tuple[int, int, int, Columns | GapRow]] = [
        (signal["epoch"], signal["sequence"], 0, signal) for signal in signals
    ]
    keyed += [(gap.epoch, gap.last, 2 if gap.is_hole else 1, gap) for gap in gaps]
    keyed.sort(key=lambda item: item[:3])
    return [item[3] for item in keyed]
