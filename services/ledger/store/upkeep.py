"""What keeps the tables in bounds: partitions made ahead, and what is older than its retention removed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.common import pg, sql

_LOCK_WAIT_MS_MAX: Final = 1_000
"""While a drop waits for the archive, everybody else who needs it waits behind the drop."""


@dataclass(frozen=True, slots=True)
class _Queries:
    create_chunks: str
    drop_chunks: str
    drop_gaps: str
    purge_idempotency_keys: str
    purge_history: str


_queries = sql.bind(_Queries, __package__ or "", "upkeep.sql")


class UpkeepStore:
    """Each call may be repeated and may run in several processes at once; all raise UnavailableError."""

    def __init__(self, pool: pg.Pool) -> None:
        self._pool = pool

    async def create_chunks(self, *, days_ahead: int) -> int:
        """Makes the archive's partitions from yesterday to `days_ahead` from today; how many were missing."""
        return int(await self._pool.fetchval(_queries.create_chunks, days_ahead))

    async def drop_chunks(self, older_than: timedelta) -> list[str]:
        """Drops the archive's partitions that hold nothing younger; their names.

        Raises AbortedError when somebody reads the archive for long; try again later.
        """
        async with self._pool.transaction() as connection:
            await connection.execute(f"set local lock_timeout = {_LOCK_WAIT_MS_MAX}")
            return [row[0] for row in await connection.fetch(_queries.drop_chunks, older_than)]

    async def drop_gaps(self, older_than: timedelta, *, rows_max: int) -> int:
        """Deletes old gaps and refusals of the archive; how many."""
        return int(await self._pool.fetchval(_queries.drop_gaps, older_than, rows_max))

    async def purge_idempotency_keys(self, older_than: timedelta, *, rows_max: int) -> int:
        """Forgets old idempotency keys; how many."""
        return int(await self._pool.fetchval(_queries.purge_idempotency_keys, older_than, rows_max))

    async def purge_history(self, older_than: timedelta, *, rows_max: int) -> int:
        """Forgets old transitions of subscriptions; how many."""
        return int(await self._pool.fetchval(_queries.purge_history, older_than, rows_max))
