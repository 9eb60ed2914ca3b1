"""Lets the log go of what is archived and old enough, a bounded step at a time; it never removes what is not archived.

The front door's MAXLEN is only a valve for the day on which nothing is archived. What it takes away is told here.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, NoReturn

from services.common.errors import ServiceError
from services.common.stream import EntryId, StreamState
from services.ledger import metrics
from services.ledger.log import Log, Progress
from services.ledger.settings import LedgerSettings

_log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 0.002
"""Between two steps, in which Redis serves everybody else."""


class Trimmer:
    """Trims one shard of the log while its process leads its archive. Two at once do no harm."""

    def __init__(self, log: Log, settings: LedgerSettings) -> None:
        self._source = log
        self._settings = settings
        # There from the start, as the increase from nothing to 1 is none to Prometheus.
        for counter in (metrics.LOG_TRIMMED, metrics.LOG_VALVE_CUT, metrics.LOG_VALVE_UNARCHIVED):
            counter.labels(str(log.shard))
        self._removed_before: int | None = None
        """How many entries the stream had lost when this process looked last, with those that it removed since."""

    async def run(self) -> NoReturn:
        """A round now, then one per interval, until cancelled; one that failed is tried again with the next."""
        self._removed_before = None
        while True:
            try:
                await self.round()
            except ServiceError as error:
                _log.debug("%s is not trimmed now: %s", self._source.name, error.message)
            await asyncio.sleep(self._settings.log_trim_interval_seconds * random.uniform(0.9, 1.1))

    async def round(self) -> int:
        """Trims up to what is archived and older than the retention, in a bounded number of steps; how many entries.

        Raises:
            UnavailableError: Redis does not answer.
        """
        progress = await self._source.progress()
        state = await self._source.state()
        if state is None:
            self._removed_before = None
            return 0
        metrics.LOG_ENTRIES.labels(str(self._source.shard)).set(state.length)
        self._look_at_valve(state, progress)
        if progress is None or state.first is None:
            return 0
        before = min(progress.archived_before, await self._kept_from())
        return await self._trim(before) if state.first < before else 0

    async def _kept_from(self) -> EntryId:
        """The oldest id that the retention keeps, by Redis's clock, which gives the ids."""
        now_ms = await self._source.now_ms()
        return EntryId(max(0, now_ms - int(self._settings.log_retention_seconds * 1_000)))

    async def _trim(self, before: EntryId) -> int:
        settings, trimmed = self._settings, 0
        for _ in range(settings.log_trim_steps_max):
            step = await self._source.trim(before, entries_max=settings.log_trim_entries_per_step_max)
            if not step:
                break
            trimmed += step
            if self._removed_before is not None:
                self._removed_before += step
            await asyncio.sleep(_PAUSE_SECONDS)
        metrics.LOG_TRIMMED.labels(str(self._source.shard)).inc(trimmed)
        return trimmed

    def _look_at_valve(self, state: StreamState, progress: Progress | None) -> None:
        """Tells what somebody else removed since the last look: that was MAXLEN, or a former leader."""
        removed, before = state.trimmed, self._removed_before
        self._removed_before = removed
        if before is None or removed <= before:
            return
        shard, cut = str(self._source.shard), removed - before
        metrics.LOG_VALVE_CUT.labels(shard).inc(cut)
        read = None if progress is None else progress.entries_read
        unarchived = min(cut, max(0, removed - read)) if read is not None else 0
        if unarchived:
            metrics.LOG_VALVE_UNARCHIVED.labels(shard).inc(unarchived)
            _log.error(
                "%s was cut by LOG_ENTRIES_MAX: at least %d entries were not archived",
                self._source.name,
                unarchived,
            )
        else:
            _log.warning(
                "%s was cut by LOG_ENTRIES_MAX, of archived entries that its retention keeps",
                self._source.name,
            )
