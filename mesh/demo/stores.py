"""Reads the log from Redis, and archive and books from PostgreSQL, directly: the witnesses of the reconciliation.

It goes past the services on purpose, so that a service that misreports cannot hide it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import asyncpg
import redis.asyncio

from execution.common.v1 import signal_pb2, snapshot_pb2
from execution.ingest.v1 import log_pb2
from mesh.demo.reconcile import LoggedSignal, ToldGap
from services.common import stream

PAGE_ENTRIES = 1_000
DIGEST_BYTES = 8

_ARCHIVE = """
    select epoch, sequence, kind, position_id, order_id, opposite_position_id, symbol, side, order_type, volume_lots_e8,
           price_e8, stop_loss_e8, take_profit_e8, stop_limit_price_e8, occurred_at_us, expires_at_us, comment, magic
      from ledger.signal_archive
     where master_id = $1
     order by epoch, sequence
"""
_ARCHIVED = "select count(*) from ledger.signal_archive where master_id = any($1::bigint[])"
_UNBALANCED = """
    select count(*) from (
        select 1 from ledger.billing_ledger group by journal_id, asset having sum(amount_e8) <> 0
    ) as unbalanced
"""
_JOURNALS = "select count(*) from ledger.journals"
_PAUSED = """
    select s.user_id::text, (extract(epoch from min(h.changed_at)) * 1000000)::bigint
      from ledger.subscription_history h join ledger.subscriptions s using (subscription_id)
     where h.change = 'pause' and h.new_value <> 0 and s.user_id = any($1::uuid[])
     group by s.user_id
"""


@dataclass(frozen=True, slots=True)
class LogContent:
    """All signals and declared gaps of the log, by master, in log order."""

    signals: Mapping[int, list[LoggedSignal]]
    gaps: Mapping[int, list[ToldGap]]


def digest_of(signal: signal_pb2.Signal) -> bytes:
    """A digest of a signal's content, the same wherever it is stored."""
    return hashlib.sha256(signal.SerializeToString(deterministic=True)).digest()[:DIGEST_BYTES]


class Stores:
    """Both data servers of one mesh."""

    def __init__(self, database: asyncpg.Connection, log: redis.asyncio.Redis) -> None:
        self._database = database
        self._log = log

    async def read_log(self, master_ids: list[int]) -> LogContent:
        """Everything that the log holds of these masters."""
        signals: defaultdict[int, list[LoggedSignal]] = defaultdict(list)
        gaps: defaultdict[int, list[ToldGap]] = defaultdict(list)
        wanted = set(master_ids)
        async for run in self._runs():
            if run.master_id not in wanted:
                continue
            if run.HasField("batch"):
                for offset, signal in enumerate(run.batch.signals):
                    position = (run.epoch, run.first_sequence + offset)
                    signals[run.master_id].append(
                        LoggedSignal(position, digest_of(signal), signal, run.received_at_us)
                    )
            elif run.HasField("gap"):
                first, last = (run.epoch, run.first_sequence), (run.epoch, run.last_sequence)
                gaps[run.master_id].append(ToldGap(run.master_id, first, last, run.gap.reason))
        return LogContent(signals, gaps)

    async def read_archive(self, master_id: int) -> list[LoggedSignal]:
        """Everything that the archive holds of one master, in order of position."""
        rows = await self._database.fetch(_ARCHIVE, master_id)
        return [_archived(row) for row in rows]

    async def archived_count(self, master_ids: list[int]) -> int:
        """How many signals of these masters the archive holds."""
        return int(await self._database.fetchval(_ARCHIVED, master_ids))

    async def stored_snapshot(self, master_id: int) -> snapshot_pb2.Snapshot | None:
        """The latest snapshot that the front door stored of a master."""
        data = await self._log.hget(stream.snapshots_name(), str(master_id))
        return None if data is None else snapshot_pb2.Snapshot.FromString(cast("bytes", data))

    async def is_balanced(self) -> bool:
        """Whether there are journals and each of them sums to zero per asset."""
        return not await self._database.fetchval(_UNBALANCED) and await self._database.fetchval(_JOURNALS) > 0

    async def paused_users(self, user_ids: list[str]) -> dict[str, int]:
        """Those of these users who were ever paused, and when first, in microseconds."""
        return {row[0]: row[1] for row in await self._database.fetch(_PAUSED, user_ids)}

    async def _runs(self) -> AsyncIterator[log_pb2.LogRun]:
        start = b"-"
        while page := await self._page(start):
            for _, fields in page:
                for run in log_pb2.LogBatch.FromString(fields[stream.FIELD]).runs:
                    yield run
            start = b"(" + page[-1][0]

    async def _page(self, start: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        page = await self._log.xrange(stream.log_name(), start, "+", PAGE_ENTRIES)
        return cast("list[tuple[bytes, dict[bytes, bytes]]]", page)  # as it is without decode_responses


def _archived(row: asyncpg.Record) -> LoggedSignal:
    signal = signal_pb2.Signal()
    for name, value in list(row.items())[2:]:
        if value:
            setattr(signal, name, value)
    return LoggedSignal((row["epoch"], row["sequence"]), digest_of(signal), signal)


@asynccontextmanager
async def opened(database_url: str, redis_url: str) -> AsyncIterator[Stores]:
    """Connections of the demo's own to both servers."""
    database = await asyncpg.connect(database_url)
    log = redis.asyncio.Redis.from_url(redis_url)
    try:
        yield Stores(database, log)
    finally:
        await log.aclose()
        await database.close()
