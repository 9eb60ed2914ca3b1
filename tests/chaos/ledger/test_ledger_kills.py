"""Processes and servers die at any moment under load; the archive then holds each position exactly once, in order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from execution.ingest.v1 import log_pb2
from mesh.embedded import PostgresServer, RedisServer, postgres, redis
from services.common import migrations, stream
from services.common.errors import UnavailableError
from services.ledger import app
from tests.integration.ledger.ledger_service import (
    KEY_ENCRYPTION_KEY,
    OPERATOR_TOKEN,
    SERVICE_TOKEN,
    LedgerClient,
    append,
    eventually,
    ledger_running,
    ledger_settings,
    superuser,
)
from tests.integration.ledger.log_entries import gap, positions, run

MASTERS = tuple(range(1, 6))
KILLS = 6
REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(slots=True)
class Load:
    """Masters that go on sending; an entry counts as sent when the log acknowledged it."""

    redis_url: str
    chance: random.Random
    sent: dict[int, list[tuple]] = field(default_factory=lambda: {master_id: [] for master_id in MASTERS})
    last: dict[int, int] = field(default_factory=lambda: dict.fromkeys(MASTERS, 0))

    @property
    def signal_count(self) -> int:
        return sum(one[0] == "signal" for seen in self.sent.values() for one in seen)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run(enough))
            try:
                yield
            finally:
                enough.set()

    async def _run(self, enough: asyncio.Event) -> None:
        async with stream.connect(self.redis_url) as client:
            while not enough.is_set():
                for master_id in MASTERS:
                    await self._send(client, master_id)
                await asyncio.sleep(0.002)

    async def _send(self, client: stream.Redis, master_id: int) -> None:
        first, size = self.last[master_id] + 1, self.chance.randint(1, 20)
        last = first + size - 1
        is_gap = self.chance.random() < 0.05
        message = gap(master_id, first, last) if is_gap else run(master_id, first, size)
        # As the front door: a lost answer is asked for again, and the log takes the run once.
        await eventually(lambda: self._appended(client, message))
        self.last[master_id] = last
        seen = self.sent[master_id]
        if is_gap:
            seen.append(("gap", (1, first), (1, last), (1, last)))
        else:
            seen += [("signal", 1, sequence) for sequence in range(first, last + 1)]

    async def _appended(self, client: stream.Redis, message: log_pb2.LogRun) -> bool:
        try:
            with stream.translating():
                newest = await client.xrevrange(stream.log_name(), count=len(MASTERS))
                payload = _payload_of(message)
                if any(entry.payload == payload for entry in stream.entries_of(newest)):
                    return True
                await append(client, message)
        except UnavailableError:
            return False
        return True


def _payload_of(message: log_pb2.LogRun) -> bytes:
    return log_pb2.LogBatch(runs=[message]).SerializeToString()


async def require_archived(load: Load, database_url: str) -> None:
    """Everything that was sent is archived, each position once, with its content, and reads back in order."""
    async with ledger_running(ledger_settings(database_url, load.redis_url)) as ledger:
        await ledger.archived(load.signal_count)
        for master_id in MASTERS:
            assert positions(await ledger.read(master_id, records_max=1_000_000)) == load.sent[master_id]
    async with superuser(database_url) as connection:
        stored, different = await connection.fetchrow(
            "select count(*), count(distinct (master_id, epoch, sequence)) from ledger.signal_archive"
        )
        assert stored == different == load.signal_count
        wrong = "select count(*) from ledger.signal_archive where position_id <> sequence"
        assert await connection.fetchval(wrong) == 0
        assert await connection.fetchval("select count(*) from ledger.archive_refusals") == 0
        assert await connection.fetchval("select count(*) from ledger.signal_gaps where is_hole") == 0


@asynccontextmanager
async def ledger_process(database_url: str, redis_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SERVICE_TOKEN": SERVICE_TOKEN,
        "OPERATOR_TOKEN": OPERATOR_TOKEN,
        "KEY_ENCRYPTION_KEY": KEY_ENCRYPTION_KEY,
        "GRPC_BIND_ADDRESS": "127.0.0.1:0",
        "ADMIN_BIND_ADDRESS": "127.0.0.1:0",
        "ARCHIVE_ROWS_PER_TRANSACTION_MAX": "50",
        "ARCHIVE_ENTRIES_PER_READ_MAX": "20",
        "LEASE_SECONDS": "3",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.ledger",
        "serve",
        env=environment,
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def archived_more(database_url: str, than: int) -> int:
    """Waits until the archive holds more signals than `than`; how many."""

    async def more() -> int:
        async with superuser(database_url) as connection:
            count = await connection.fetchval(
                "select coalesce(sum(signal_count), 0)::int from ledger.archive_days"
            )
        return count if count > than else 0

    return await eventually(more)


async def test_a_ledger_killed_at_any_moment_archives_everything_once(
    fresh_database: str, redis_url: str
) -> None:
    chance = random.Random(1)
    load = Load(redis_url, chance)
    archived = 0
    async with load.going_on():
        for _ in range(KILLS):
            async with ledger_process(fresh_database, redis_url) as process:
                archived = await archived_more(fresh_database, archived)
                await asyncio.sleep(chance.uniform(0, 0.3))
                process.kill()
    await require_archived(load, fresh_database)


@pytest.fixture
async def own_postgres() -> AsyncIterator[PostgresServer]:
    async with postgres() as server:
        await migrations.apply(server.url, app.MIGRATIONS, schema=app.SCHEMA)
        yield server


@pytest.fixture
async def own_redis() -> AsyncIterator[RedisServer]:
    async with redis(appendfsync="always") as server:
        yield server


async def test_a_database_killed_at_any_moment_has_everything_once(
    own_postgres: PostgresServer, redis_url: str
) -> None:
    chance = random.Random(2)
    load = Load(redis_url, chance)
    configured = ledger_settings(own_postgres.url, redis_url, archive_rows_per_transaction_max=50)
    archived = 0
    async with load.going_on(), ledger_running(configured):
        for _ in range(KILLS // 2):
            archived = await archived_more(own_postgres.url, archived)
            await asyncio.sleep(chance.uniform(0, 0.3))
            own_postgres.kill()
            await own_postgres.wait()
            await asyncio.sleep(chance.uniform(0, 0.5))
            await own_postgres.start()
    await require_archived(load, own_postgres.url)


async def test_a_log_killed_at_any_moment_is_archived_once(
    fresh_database: str, own_redis: RedisServer
) -> None:
    chance = random.Random(3)
    load = Load(own_redis.url, chance)
    configured = ledger_settings(fresh_database, own_redis.url, archive_rows_per_transaction_max=50)
    archived = 0
    async with load.going_on(), ledger_running(configured):
        for _ in range(KILLS // 2):
            archived = await archived_more(fresh_database, archived)
            await asyncio.sleep(chance.uniform(0, 0.3))
            own_redis.kill()
            await own_redis.wait()
            await asyncio.sleep(chance.uniform(0, 0.5))
            await own_redis.start()
    await require_archived(load, fresh_database)


async def test_a_leader_that_slept_through_its_succession_does_no_harm(
    fresh_database: str, redis_url: str
) -> None:
    load = Load(redis_url, random.Random(4))
    async with load.going_on(), ledger_process(fresh_database, redis_url) as sleeper:
        archived = await archived_more(fresh_database, 0)
        for _ in range(3):
            sleeper.send_signal(signal.SIGSTOP)
            async with superuser(fresh_database) as connection:
                await connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and application_name = 'ledger'"
                )
            async with ledger_running(ledger_settings(fresh_database, redis_url)):
                archived = await archived_more(fresh_database, archived)
                sleeper.send_signal(signal.SIGCONT)
                archived = await archived_more(fresh_database, archived)
            archived = await archived_more(fresh_database, archived)
    await require_archived(load, fresh_database)


async def test_a_leader_that_hangs_or_whose_host_is_gone_is_succeeded(
    fresh_database: str, redis_url: str
) -> None:
    """Its sessions stay, as after a power cut: nothing on the wire says that they ended."""
    load = Load(redis_url, random.Random(5))
    async with load.going_on(), ledger_process(fresh_database, redis_url) as hanging:
        archived = await archived_more(fresh_database, 0)
        hanging.send_signal(signal.SIGSTOP)
        async with ledger_running(ledger_settings(fresh_database, redis_url)) as successor:
            # What was on its way when it was stopped may still come in.
            archived = await archived_more(fresh_database, archived)
            await eventually(lambda: _leads(successor))
            await archived_more(fresh_database, archived)
            hanging.send_signal(signal.SIGCONT)
    await require_archived(load, fresh_database)


async def _leads(ledger: LedgerClient) -> bool:
    address = f"http://127.0.0.1:{ledger.running.admin_port}/metrics"
    with await asyncio.to_thread(urllib.request.urlopen, address, timeout=5) as page:
        text = page.read().decode()
    return all(f'ledger_leader{{duty="{duty}"}} 1.0' in text for duty in ("archive", "events"))
