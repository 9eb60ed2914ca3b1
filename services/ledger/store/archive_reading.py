"""Reads the archive in order and never across a hole that it does not tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from execution.common.v1 import signal_pb2
from execution.ledger.v1 import archive_service_pb2 as pb
from services.common import pg, sql
from services.common.errors import NotFoundError, OutOfRangeError
from services.ledger.domain.archive_rows import GapRow, sequenced_of
from services.ledger.domain.archive_walk import Position, walk

STATUS_MASTERS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Queries:
    head: str
    signals: str
    gaps: str
    signal: str
    heads: str
    signal_count: str


_queries = sql.bind(_Queries, __package__ or "", "archive_reading.sql")


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """Last archived position by master, and how many signals there are in all."""

    heads: tuple[tuple[int, tuple[int, int]], ...]
    signal_count: int


@dataclass(frozen=True, slots=True)
class StoredSignal:
    """An archived signal, and when it was archived."""

    signal: signal_pb2.SequencedSignal
    archived_at: datetime


@dataclass(frozen=True, slots=True)
class _Page:
    """What one look found; the head is known only where there are no rows."""

    signals: list[asyncpg.Record]
    gaps: list[GapRow]
    head: Position
    rows_max: int

    @property
    def rows(self) -> int:
        return len(self.signals) + len(self.gaps)

    @property
    def is_last(self) -> bool:
        return (
            len(self.signals) < self.rows_max
            and len(self.gaps) < self.rows_max
            and self.rows <= self.rows_max
        )


class ArchiveReader:
    """Reads what is committed. All calls raise UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool, *, page_rows: int) -> None:
        self._pool = pool
        self._page_rows = page_rows

    async def read(
        self, master_id: int, after: Position, *, records_max: int
    ) -> AsyncIterator[list[pb.ArchivedRecord]]:
        """A master's records behind `after`, in order and without holes, in lists of at most a page.

        Ends where the archive ends at that moment. No connection is held between two lists.

        Raises:
            OutOfRangeError: what follows `after` is not in the archive any more; `metadata["oldest"]` is the oldest
                position (epoch and sequence with a colon between them) behind which it is.
        """
        held, left = after, records_max
        while left > 0:
            page = await self._page(master_id, held, min(left, self._page_rows))
            walked = walk(held, page.signals, page.gaps, records_max=page.rows_max)
            if walked.records:
                yield walked.records
            elif walked.missing_before is not None:
                raise _gone(walked.missing_before)
            elif not page.rows and page.head > held:
                raise _gone(page.head)
            is_whole = page.is_last and len(walked.records) < page.rows_max
            if walked.missing_before is not None or is_whole:
                return
            left -= len(walked.records)
            held = walked.held

    async def _page(self, master_id: int, held: Position, rows_max: int) -> _Page:
        # One snapshot, or a gap could be seen without the signals before it.
        async with self._pool.transaction(isolation="repeatable_read", readonly=True) as connection:
            signals = await connection.fetch(_queries.signals, master_id, *held, rows_max)
            gaps = await connection.fetch(_queries.gaps, master_id, *held, rows_max)
            head = None if signals or gaps else await connection.fetchrow(_queries.head, master_id)
        return _Page(
            signals, [GapRow(*row) for row in gaps], (0, 0) if head is None else tuple(head), rows_max
        )

    async def get(self, master_id: int, position: tuple[int, int]) -> StoredSignal:
        """One signal.

        Raises:
            NotFoundError: it is not in the archive.
        """
        row = await self._pool.fetchrow(_queries.signal, master_id, *position)
        if row is None:
            raise NotFoundError("no such signal in the archive", reason="SIGNAL_NOT_FOUND")
        return StoredSignal(sequenced_of(row), row["archived_at"])

    async def status(self) -> ArchiveStatus:
        """How far the archive has come, for the 10,000 masters with the lowest numbers."""
        async with self._pool.transaction(isolation="repeatable_read", readonly=True) as connection:
            heads = await connection.fetch(_queries.heads, STATUS_MASTERS_MAX)
            signal_count = await connection.fetchval(_queries.signal_count)
        return ArchiveStatus(
            tuple((row["master_id"], (row["epoch"], row["sequence"])) for row in heads), signal_count
        )


def _gone(oldest: Position) -> OutOfRangeError:
    return OutOfRangeError(
        "what follows this position is not in the archive any more",
        reason="POSITION_NOT_ARCHIVED",
        metadata={"oldest": f"{oldest[0]}:{oldest[1]}"},
    )
