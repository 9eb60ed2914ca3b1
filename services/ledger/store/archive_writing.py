"""Writes the archive: one transaction per batch of the log, each position once, whatever comes again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date
from typing import Final

import asyncpg

from services.common import pg, sql
from services.common.errors import AlreadyExistsError, FailedPreconditionError, ServiceError
from services.ledger.domain.archive_rows import (
    COLUMNS,
    SEQUENCE_INDEX,
    SIGNAL_COLUMNS,
    GapRow,
    Row,
    gap_row_of,
    rows_of,
)
from services.ledger.domain.archiving import Plan, Suspect, plan
from services.ledger.domain.log_runs import Refusal, Run, RunKind, refusal_of

_SIGNAL_START: Final = len(COLUMNS) - len(SIGNAL_COLUMNS)
_DAYS_KNOWN_MAX: Final = 1_000
_VALUE_CLASSES: Final = ("22", "23", "54")
"""Classes of SQLSTATE that the values themselves bring about: data exception, constraint violation, a limit."""


@dataclass(frozen=True, slots=True)
class _Queries:
    make_heads: str
    lock_heads: str
    set_heads: str
    count_days: str
    stored: str
    declared_gaps: str
    add_gaps: str
    stored_gap: str
    add_refusals: str
    create_chunks: str


_queries = sql.bind(_Queries, __package__ or "", "archive_writing.sql")


class HoleError(Exception):
    """Positions are missing between what is archived and what came; nothing was written."""

    def __init__(self, holes: Sequence[GapRow]) -> None:
        first = holes[0]
        super().__init__(
            f"master {first.master_id}: {first.previous_epoch}/{first.first} to {first.epoch}/{first.last}"
        )
        self.holes = tuple(holes)


class UnstorableError(Exception):
    """The database cannot take what came, now or later; nothing was written."""


@dataclass(slots=True)
class Archived:
    """What one transaction did."""

    signals: int = 0
    gaps: int = 0
    duplicates: int = 0
    conflicts: int = 0
    poison: int = 0
    holes: int = 0


@dataclass(slots=True)
class _Compared:
    """What became of the suspects."""

    rows: list[Row] = field(default_factory=list)
    gaps: list[GapRow] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    duplicates: int = 0


class ArchiveWriter:
    """Archives batches. Two of them at once, in one process or in several, do no harm."""

    def __init__(self, pool: pg.Pool, stream_name: str) -> None:
        self._pool = pool
        self._stream_name = stream_name
        self._days_known: set[date] = set()

    async def archive(
        self, runs: Sequence[Run], refusals: Sequence[Refusal], *, declare_holes: bool
    ) -> Archived:
        """Archives runs that came in this order; when it returns, all of it is committed.

        Raises:
            HoleError: positions are missing before a run and `declare_holes` is false; nothing was written.
            UnstorableError: some value in it cannot be stored; nothing was written.
            UnavailableError, AbortedError: the database is away, or a lock was not to be had; try again.
            FailedPreconditionError: a partition is missing; call `forget` and try again.
            ServiceError: with reason ARCHIVE_REFUSED: the tables or the role's rights are not what this code expects.
        """
        await self._prepare_days(runs)
        try:
            return await self._archive_checked(runs, refusals, declare_holes=declare_holes)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError) as error:
            if _is_of_the_values(error):
                raise UnstorableError(f"{type(error).__name__}: {error}") from error
            raise ServiceError(
                f"the archive's tables refuse it: {error}", reason="ARCHIVE_REFUSED"
            ) from error
        except FailedPreconditionError as error:
            if not error.metadata.get("constraint"):
                raise  # A partition is missing: it is made before the next attempt.
            raise UnstorableError(f"refused by {error.metadata['constraint']}") from error

    async def _archive_checked(
        self, runs: Sequence[Run], refusals: Sequence[Refusal], *, declare_holes: bool
    ) -> Archived:
        try:
            return await self._archive(runs, refusals, declare_holes=declare_holes, suspicious=False)
        except AlreadyExistsError:
            # A head stands before what is stored: somebody changed the tables by hand, or restored one of them.
            return await self._archive(runs, refusals, declare_holes=declare_holes, suspicious=True)

    def forget(self) -> None:
        """Forgets which partitions are there; call it after a failure that is not an outage."""
        self._days_known.clear()

    async def _prepare_days(self, runs: Sequence[Run]) -> None:
        days = {run.received_at.date() for run in runs if run.kind is RunKind.BATCH}
        if len(self._days_known) > _DAYS_KNOWN_MAX:
            self._days_known.clear()
        for day in sorted(days - self._days_known):
            await self._pool.execute(_queries.create_chunks, day, day)
            self._days_known.add(day)

    async def _archive(
        self, runs: Sequence[Run], refusals: Sequence[Refusal], *, declare_holes: bool, suspicious: bool
    ) -> Archived:
        done = Archived()
        async with self._pool.transaction() as connection:
            heads = await _lock_heads(connection, sorted({run.master_id for run in runs}))
            made = plan(runs, heads, suspicious=suspicious)
            if made.holes and not declare_holes:
                raise HoleError(made.holes)
            compared = await _compare(connection, made.suspects)
            await _add_rows(connection, made.rows + compared.rows)
            await _set_heads(connection, heads, made)
            await _add_gaps(connection, made.holes)
            done.gaps = await _add_gaps(connection, made.gaps + compared.gaps)
            counted = await self._add_refusals(connection, [*refusals, *compared.refusals])
        done.signals = len(made.rows) + len(compared.rows)
        done.duplicates, done.holes = compared.duplicates, len(made.holes)
        done.conflicts = counted["CONFLICT"]
        done.poison = sum(counted.values()) - done.conflicts
        return done

    async def _add_refusals(self, connection: pg.Connection, refusals: Sequence[Refusal]) -> Counter[str]:
        if not refusals:
            return Counter()
        added = await connection.fetch(
            _queries.add_refusals,
            self._stream_name,
            [one.entry_id for one in refusals],
            [one.run_number for one in refusals],
            [one.reason for one in refusals],
            [one.detail for one in refusals],
            [one.payload for one in refusals],
        )
        return Counter(row["reason"] for row in added)


def _is_of_the_values(error: Exception) -> bool:
    """Whether it would fail again, however sound the database is; all else is for the archiver to wait out."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _VALUE_CLASSES
    # What asyncpg cannot encode: an OverflowError of COPY, and a DataError of its own, which is a ValueError.
    return isinstance(error, OverflowError | ValueError)


async def _lock_heads(connection: pg.Connection, master_ids: list[int]) -> dict[int, tuple[int, int]]:
    if not master_ids:
        return {}
    rows = await connection.fetch(_queries.lock_heads, master_ids)
    if len(rows) < len(master_ids):
        await connection.execute(_queries.make_heads, master_ids)
        rows = await connection.fetch(_queries.lock_heads, master_ids)
    return {row["master_id"]: (row["epoch"], row["sequence"]) for row in rows}


async def _set_heads(connection: pg.Connection, before: dict[int, tuple[int, int]], made: Plan) -> None:
    moved = [(master_id, *head) for master_id, head in made.heads.items() if head != before[master_id]]
    if moved:
        await connection.execute(_queries.set_heads, *map(list, zip(*moved, strict=True)))


async def _add_rows(connection: pg.Connection, rows: list[Row]) -> None:
    if not rows:
        return
    await connection.copy_records_to_table(
        "signal_archive", schema_name="ledger", columns=COLUMNS, records=rows
    )
    days = Counter(row[0].astimezone(UTC).date() for row in rows)
    await connection.execute(_queries.count_days, list(days.keys()), list(days.values()))


async def _add_gaps(connection: pg.Connection, gaps: Sequence[GapRow]) -> int:
    if not gaps:
        return 0
    added = await connection.fetch(
        _queries.add_gaps,
        [one.master_id for one in gaps],
        [one.epoch for one in gaps],
        [one.last for one in gaps],
        [one.first for one in gaps],
        [one.previous_epoch for one in gaps],
        [one.reason for one in gaps],
        [one.note for one in gaps],
        [one.session_epoch for one in gaps],
        [one.key_id for one in gaps],
        [one.received_at for one in gaps],
        [one.is_hole for one in gaps],
    )
    return len(added)


async def _compare(connection: pg.Connection, suspects: Iterable[Suspect]) -> _Compared:
    """Sorts out suspects: what is stored with the same content, with other content, or not at all."""
    result = _Compared()
    by_epoch: defaultdict[tuple[int, int], list[Suspect]] = defaultdict(list)
    for suspect in suspects:
        if suspect.run.kind is RunKind.BATCH:
            by_epoch[suspect.run.master_id, suspect.run.epoch].append(suspect)
        else:
            await _compare_gap(connection, suspect.run, result)
    for (master_id, epoch), group in by_epoch.items():
        await _compare_signals(connection, master_id, epoch, group, result)
    return result


async def _compare_signals(
    connection: pg.Connection, master_id: int, epoch: int, suspects: Sequence[Suspect], result: _Compared
) -> None:
    first, last = min(one.first for one in suspects), max(one.last for one in suspects)
    found = await connection.fetch(_queries.stored, master_id, epoch, first, last)
    stored: dict[int, Row] = {row[0]: tuple(row)[1:] for row in found}
    gaps: list[tuple[int, int]] | None = None
    for suspect in suspects:
        differing: list[int] = []
        for row in rows_of(suspect.run, suspect.first, suspect.last):
            sequence, values = row[SEQUENCE_INDEX], row[_SIGNAL_START:]
            known = stored.get(sequence)
            if known is None and gaps is None:
                gaps = [
                    tuple(gap)
                    for gap in await connection.fetch(_queries.declared_gaps, master_id, epoch, first, last)
                ]
            if known is None and not any(low <= sequence <= high for low, high in gaps or ()):
                result.rows.append(row)
                stored[sequence] = values
            elif known == values:
                result.duplicates += 1
            else:
                differing.append(sequence)
        if differing:
            result.refusals.append(
                _conflict(suspect.run, f"sequences {differing[0]} to {differing[-1]} of epoch {epoch}")
            )


async def _compare_gap(connection: pg.Connection, run: Run, result: _Compared) -> None:
    gap = gap_row_of(run)
    row = await connection.fetchrow(_queries.stored_gap, gap.master_id, gap.epoch, gap.last)
    if row is not None and tuple(row) == (gap.first, gap.previous_epoch, gap.reason):
        result.duplicates += 1
    elif row is not None or await _holds_signals(connection, gap):
        result.refusals.append(
            _conflict(run, f"gap {gap.previous_epoch}/{gap.first} to {gap.epoch}/{gap.last}")
        )
    else:
        result.gaps.append(gap)


async def _holds_signals(connection: pg.Connection, gap: GapRow) -> bool:
    # A start of an epoch names what the log lost; that the archive kept some of it is no contradiction.
    if gap.previous_epoch != gap.epoch or gap.first > gap.last:
        return False
    return bool(await connection.fetch(_queries.stored, gap.master_id, gap.epoch, gap.first, gap.last))


def _conflict(run: Run, what: str) -> Refusal:
    return refusal_of(
        run.entry_id, run.number, run.message, "CONFLICT", f"already archived with other content: {what}"
    )
