"""The archiver: moves the signal log into the archive, COMMIT first and XACK after; it never edits what it moves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from services.common import pg
from services.common.backoff import Backoff
from services.common.clock import now_us
from services.common.errors import ServiceError, UnavailableError
from services.common.stream import BEGINNING, Entry, EntryId
from services.ledger import metrics
from services.ledger.domain import log_runs
from services.ledger.domain.log_runs import Refusal, Run
from services.ledger.log import Log
from services.ledger.settings import LedgerSettings
from services.ledger.store.archive_writing import Archived, ArchiveWriter, HoleError, UnstorableError

_log = logging.getLogger(__name__)

_STRAYS_CHECK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries that are archived in one transaction."""

    ids: tuple[EntryId, ...]
    runs: tuple[Run, ...]
    refusals: tuple[Refusal, ...]
    lost: int
    """How many of the entries were trimmed from the log while they were pending."""

    @property
    def last_id(self) -> EntryId:
        """The newest entry."""
        return self.ids[-1]

    def only(self, entry_id: EntryId) -> Batch:
        """The part that one entry makes."""
        name = str(entry_id)
        runs = tuple(run for run in self.runs if run.entry_id == name)
        return Batch((entry_id,), runs, tuple(one for one in self.refusals if one.entry_id == name), 0)


class Archiver:
    """Archives one shard of the log while its process leads.

    Whatever happens between reading and acknowledging, the entries stay pending and come again; whatever comes again
    is recognised in the archive. Where the log turns out not to hold what should come next, it is first read again from
    its beginning (the database may have been restored to an older state), and only then is the hole declared.
    """

    def __init__(self, log: Log, writer: ArchiveWriter, settings: LedgerSettings) -> None:
        self._source = log
        self._writer = writer
        self._settings = settings
        self._checked_at = 0.0
        self._fine_at = 0.0
        self._rewound_at: float | None = None
        self._reread_up_to: EntryId | None = None
        self._declare_up_to = BEGINNING
        self.is_up = True
        """Whether the last attempt went well; true while another process leads."""

    async def run(self, _: pg.Connection) -> NoReturn:
        """Archives until cancelled."""
        backoff = Backoff(initial_seconds=0.05, cap_seconds=2.0, floor_seconds=0.02)
        self._fine_at = time.monotonic()
        try:
            while True:
                try:
                    await self._take_over()
                    while True:
                        await self._archive_new()
                        self._set_up(None)
                        backoff.reset()
                except ServiceError as error:
                    self._set_up(error)
                    await asyncio.sleep(backoff.next_delay())
        finally:
            self.is_up = True
            metrics.archive_lag(self._source.shard, 0)

    async def _take_over(self) -> None:
        """Archives what was read before and not acknowledged, by whomever."""
        await self._source.check_shards(self._settings.log_shards)
        await self._source.group.ensure()
        if self._reread_up_to is not None:
            await self._reread(self._reread_up_to)
        idle_ms = int(self._settings.archive_claim_idle_seconds * 1_000)
        while await self._source.group.claim_stale(min_idle_ms=idle_ms, count=self._count):
            pass
        await self._archive_pending()

    async def _archive_pending(self) -> None:
        while True:
            entries = await self._source.group.read_pending(count=self._count)
            if not entries:
                self._checked_at = time.monotonic()
                return
            await self._archive(entries, settled=True)

    async def _archive_new(self) -> None:
        if time.monotonic() - self._checked_at > _STRAYS_CHECK_SECONDS:
            await self._look_for_strays()
        entries = await self._source.group.read_new(count=self._count, block_ms=self._block_ms)
        if entries:
            await self._archive(entries, settled=False)
        else:
            metrics.archive_lag(self._source.shard, 0)

    async def _look_for_strays(self) -> None:
        """A former leader may read once more after we began; what it took waits under the name that we share."""
        self._checked_at = time.monotonic()
        if await self._source.pending():
            await self._take_over()

    async def _archive(self, entries: Sequence[Entry], *, settled: bool) -> None:
        """Archives entries in order. `settled` says that nothing older can be pending."""
        for batch in self._batches(entries):
            try:
                await self._commit(batch, declare_holes=batch.last_id <= self._declare_up_to)
            except HoleError as hole:
                if not settled:
                    # What is missing may be pending; all that was read now is pending too, and comes in order.
                    await self._archive_pending()
                    return
                if self._may_rewind():
                    _log.warning("the archive misses %s: reading the log again from its beginning", hole)
                    await self._reread(batch.last_id)
                    return
                await self._commit(batch, declare_holes=True)

    def _may_rewind(self) -> bool:
        interval = self._settings.archive_rewind_interval_seconds
        return self._rewound_at is None or time.monotonic() - self._rewound_at >= interval

    async def _reread(self, up_to: EntryId) -> None:
        """Archives from the log's beginning; holes that show up to its present end are holes of the log itself."""
        self._reread_up_to = up_to
        self._rewound_at = time.monotonic()
        self._declare_up_to = await self._source.rewind()
        while entries := await self._source.group.read_new(count=self._count):
            await self._archive(entries, settled=True)
            if entries[-1].id >= up_to:
                break
        self._reread_up_to = None

    async def _commit(self, batch: Batch, *, declare_holes: bool) -> None:
        began = time.perf_counter()
        try:
            done = await self._writer.archive(batch.runs, batch.refusals, declare_holes=declare_holes)
        except UnstorableError as error:
            await self._commit_apart(batch, error)
            return
        except ServiceError as error:
            if not isinstance(error, UnavailableError):
                self._writer.forget()
            raise
        metrics.ARCHIVE_TRANSACTION.observe(time.perf_counter() - began)
        await self._source.group.acknowledge(batch.ids)
        _tell(batch, done)
        if batch.runs:
            lag_us = max(0, now_us() - batch.runs[-1].message.received_at_us)
            metrics.archive_lag(self._source.shard, lag_us / 1e6)

    async def _commit_apart(self, batch: Batch, error: UnstorableError) -> None:
        """Finds the entry that cannot be stored, and keeps it as a refusal, so that it does not hold up all others."""
        if not batch.runs:
            raise ServiceError(f"refusals of the archive cannot be stored: {error}", reason="ARCHIVE_REFUSED")
        if len(batch.ids) == 1:
            refusals = tuple(
                log_runs.refusal_of(run.entry_id, run.number, run.message, "UNSTORABLE", str(error)[:200])
                for run in batch.runs
            )
            await self._commit(
                Batch(batch.ids, (), (*batch.refusals, *refusals), batch.lost), declare_holes=False
            )
            return
        for entry_id in batch.ids:
            # Holes must be declared here: what an entry of this very batch would fill may have been refused.
            await self._commit(batch.only(entry_id), declare_holes=True)

    def _batches(self, entries: Sequence[Entry]) -> Iterator[Batch]:
        """The entries in portions of about the rows of one transaction."""
        ids: list[EntryId] = []
        runs: list[Run] = []
        refusals: list[Refusal] = []
        rows = lost = 0
        for entry in entries:
            ids.append(entry.id)
            if entry.payload is None:
                lost += 1
            else:
                parsed, refused = log_runs.parse(str(entry.id), entry.payload)
                runs += parsed
                refusals += refused
                rows += sum(run.row_count for run in parsed)
            if rows >= self._settings.archive_rows_per_transaction_max:
                yield Batch(tuple(ids), tuple(runs), tuple(refusals), lost)
                ids, runs, refusals = [], [], []
                rows = lost = 0
        if ids:
            yield Batch(tuple(ids), tuple(runs), tuple(refusals), lost)

    @property
    def _count(self) -> int:
        return self._settings.archive_entries_per_read_max

    @property
    def _block_ms(self) -> int:
        return self._settings.archive_block_ms

    def _set_up(self, error: ServiceError | None) -> None:
        if error is not None and self.is_up:
            _log.warning(
                "the archive waits: %s", error.message, exc_info=not isinstance(error, UnavailableError)
            )
        elif error is None and not self.is_up:
            _log.info("signals are archived again")
        self.is_up = error is None
        now = time.monotonic()
        if error is None:
            self._fine_at = now
        else:
            # What waits cannot be seen now; it may have come right after the last good turn.
            metrics.archive_lag(self._source.shard, now - self._fine_at)


def _tell(batch: Batch, done: Archived) -> None:
    metrics.ARCHIVED_ENTRIES.inc(len(batch.ids))
    metrics.ARCHIVED_SIGNALS.inc(done.signals)
    metrics.ARCHIVED_GAPS.inc(done.gaps)
    metrics.ARCHIVE_BATCH.observe(done.signals)
    metrics.ARCHIVE_DUPLICATES.inc(done.duplicates)
    metrics.ARCHIVE_CONFLICTS.inc(done.conflicts)
    metrics.ARCHIVE_POISON.inc(done.poison)
    metrics.ARCHIVE_HOLES.inc(done.holes)
    metrics.ARCHIVE_LOST_ENTRIES.inc(batch.lost)
    if done.conflicts or done.poison or done.holes or batch.lost:
        _log.error(
            "the log and the archive disagree: %d conflicts, %d not understood, %d holes declared, %d entries trimmed"
            " too soon (entries %s to %s; see ledger.archive_refusals and ledger.signal_gaps)",
            done.conflicts,
            done.poison,
            done.holes,
            batch.lost,
            batch.ids[0],
            batch.ids[-1],
        )
