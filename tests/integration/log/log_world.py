"""The three services that touch the log, on any REDIS_URL, with masters in every shard and one subscriber."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from execution.ingest.v1 import log_pb2
from services.common import log as signal_log
from services.common import stream
from services.common.log import SignalLog
from services.ingest import app as ingest_app
from tests.integration.fanout.fanout_service import Fanout, Subscriber, after, fanout_running, fanout_settings
from tests.integration.ingest.front_door import ingest_settings
from tests.integration.ingest.steady_master import SteadyMaster, check_log
from tests.integration.ingest.waiting import until
from tests.integration.ledger.ledger_service import LedgerClient, ledger_running, ledger_settings
from tests.unit.ingest.signing import Credentials

WAIT_SECONDS = 60.0
RECORDS_MAX = 1_000_000
QUICK = {"redis_timeout_seconds": 1.0}
"""Outages show soon."""
PATIENT = {"signal_age_ms_max": 600_000}
"""A failover may take longer than a signal usually counts; the masters of these tests declare no gaps."""


@dataclass
class LogWorld:
    """What runs, the masters that may log in, and the license of one who follows them all."""

    ledger: LedgerClient
    ingest: ingest_app.Running
    fanout: Fanout
    masters: list[Credentials]
    token: str
    log: SignalLog

    def subscribe(self) -> Subscriber:
        """Everything of all masters, from the beginning."""
        return self.fanout.subscribe(self.token, *(after(who.master_id, 0, 0) for who in self.masters))

    async def read(self, shard: int) -> list[log_pb2.LogRun]:
        """Every run of a shard of the log, in order."""
        entries = await self.log.client(shard).xrange(stream.log_name(shard))
        return [
            run for _, fields in entries for run in log_pb2.LogBatch.FromString(fields[stream.FIELD]).runs
        ]

    def shard_of(self, who: Credentials) -> int:
        return self.log.shard_of(who.master_id)


@asynccontextmanager
async def log_world(
    database_url: str,
    redis_url: str,
    *,
    masters: int = 3,
    shards: int = 3,
    of_ledger: Mapping[str, object] | None = None,
    **overrides: object,
) -> AsyncIterator[LogWorld]:
    """The world; `overrides` are settings of ingest, `of_ledger` of the ledger."""
    shared = {"log_shards": shards, **QUICK}
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(
            ledger_running(ledger_settings(database_url, redis_url, **(shared | dict(of_ledger or {}))))
        )
        who, token = await _people(ledger, masters)
        ingest = await stack.enter_async_context(
            ingest_app.running(
                ingest_settings(redis_url, ledger.running.port, **(shared | PATIENT | overrides))
            )
        )
        await until(lambda: ingest.publisher.is_ready)
        loaded = fanout_settings(redis_url, ledger.running, **shared)
        fanout = await stack.enter_async_context(fanout_running(loaded))
        log = await stack.enter_async_context(signal_log.connect(loaded))
        yield LogWorld(ledger, ingest, fanout, who, token, log)


async def _people(ledger: LedgerClient, masters: int) -> tuple[list[Credentials], str]:
    owner, follower = await ledger.user(), await ledger.user()
    license_token = (await ledger.license(owner)).token
    who: list[Credentials] = []
    for _ in range(masters):
        made = await ledger.master(owner)
        await ledger.subscription(follower, made.master.master_id)
        who.append(Credentials(made.master.master_id, made.key.secret, made.key.key_id, license_token))
    return who, (await ledger.license(follower)).token


async def check_everything(world: LogWorld, subscriber: Subscriber, masters: list[SteadyMaster]) -> None:
    """What masters saw acknowledged is once and in order in the log, with the subscriber, and in the archive."""
    for master in masters:
        master_id = master.who.master_id
        assert check_log(await world.read(world.shard_of(master.who)), master) == []
        told = subscriber.of(master_id)
        await subscriber.until(lambda told=told, goal=master.acknowledged: (told.held or (0, 0))[1] >= goal)
        assert told.gaps == []
        assert told.sequences == list(range(1, told.sequences[-1] + 1))
        await archived(world, master)


async def archived(world: LogWorld, master: SteadyMaster) -> None:
    """Waits until all that the master saw acknowledged is in the archive, each once."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            records = await world.ledger.read(master.who.master_id, records_max=RECORDS_MAX)
            if len(records) >= master.acknowledged:
                break
            await asyncio.sleep(0.05)
    assert [record.signal.sequence for record in records] == list(range(1, len(records) + 1))
