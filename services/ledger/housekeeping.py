"""Keeps the ledger's tables in bounds, round by round; it touches no books."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, NoReturn

from services.common.errors import ServiceError
from services.ledger import metrics
from services.ledger.settings import LedgerSettings
from services.ledger.store.upkeep import UpkeepStore

_log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 10.0
_STATEMENTS_MAX: Final = 100
"""Deleting statements per kind and round; what is left waits for the next round."""


class Housekeeper:
    """Makes partitions ahead and removes what is older than its retention, while its process leads."""

    def __init__(self, store: UpkeepStore, settings: LedgerSettings) -> None:
        self._store = store
        self._settings = settings

    async def run(self) -> NoReturn:
        """A round now, then one per interval, until cancelled; a round that failed is tried again soon."""
        while True:
            try:
                await self.round()
                delay_seconds = self._settings.housekeeping_interval_seconds
            except ServiceError as error:
                metrics.HOUSEKEEPING_FAILURES.inc()
                _log.warning("housekeeping failed and will be tried again: %s", error.message)
                delay_seconds = min(_RETRY_SECONDS, self._settings.housekeeping_interval_seconds)
            await asyncio.sleep(delay_seconds * random.uniform(0.9, 1.1))

    async def round(self) -> None:
        """One round.

        Raises:
            UnavailableError, AbortedError: the database is away, or a lock was not to be had.
        """
        settings, rows_max = self._settings, self._settings.housekeeping_rows_max
        retention = timedelta(days=settings.archive_retention_days)
        keys, history = (
            timedelta(days=settings.idempotency_retention_days),
            timedelta(days=settings.history_retention_days),
        )
        await self._store.create_chunks(days_ahead=settings.archive_days_ahead)
        await _until_short(rows_max, lambda: self._store.drop_gaps(retention, rows_max=rows_max))
        await _until_short(rows_max, lambda: self._store.purge_idempotency_keys(keys, rows_max=rows_max))
        await _until_short(rows_max, lambda: self._store.purge_history(history, rows_max=rows_max))
        # Last, because whoever reads the archive for long holds it up.
        dropped = await self._store.drop_chunks(retention)
        if dropped:
            _log.info("dropped old partitions of the archive: %s", ", ".join(dropped))
        metrics.HOUSEKEEPING_LAST.set(time.time())


async def _until_short(rows_max: int, delete: Callable[[], Awaitable[int]]) -> None:
    for _ in range(_STATEMENTS_MAX):
        if await delete() < rows_max:
            return
