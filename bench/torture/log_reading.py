"""Reads the whole signal log, page by page, for the judge; it writes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, cast

from redis.asyncio import Redis

from bench.torture.promises import MasterLog
from execution.ingest.v1 import log_pb2
from services.common import stream

_PAGE_ENTRIES: Final = 500


async def read_runs(client: Redis) -> AsyncIterator[log_pb2.LogRun]:
    """Every run of the log, in order, as it stands while it is read."""
    after = "-"
    while True:
        entries = await cast(
            "Awaitable[list[Any]]", client.xrange(stream.log_name(), min=after, count=_PAGE_ENTRIES)
        )
        for _, fields in entries:
            for run in log_pb2.LogBatch.FromString(fields[stream.FIELD]).runs:
                yield run
        if len(entries) < _PAGE_ENTRIES:
            return
        after = f"({entries[-1][0].decode()}"


async def read_masters(client: Redis) -> dict[int, MasterLog]:
    """Every master's runs, taken in log order."""
    found: dict[int, MasterLog] = {}
    async for run in read_runs(client):
        found.setdefault(run.master_id, MasterLog(run.master_id)).take(run)
    return found
