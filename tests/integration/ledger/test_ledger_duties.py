"""What one ledger at a time does beside events: housekeeping, metrics; and how the ledger bears outages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from execution.ledger.v1 import archive_service_pb2
from execution.ledger.v1 import user_service_pb2 as users
from mesh.embedded import PostgresServer, RedisServer, postgres, redis
from services.common import migrations, stream
from services.common.errors import UnavailableError
from services.ledger import app
from services.ledger.leadership import Duty
from tests.integration.ledger.duties import admin, checks, revoked, told
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    append,
    eventually,
    ledger_running,
    ledger_settings,
    refused,
    superuser,
    unique,
)
from tests.integration.ledger.log_entries import positions, run


async def test_housekeeping_removes_what_is_older_than_its_retention(
    fresh_database: str, redis_url: str, redis: stream.Redis
) -> None:
    configured = ledger_settings(fresh_database, redis_url, archive_retention_days=180)
    async with ledger_running(configured) as ledger, superuser(fresh_database) as connection:
        await ledger.subscription(
            await ledger.user(), (await ledger.master(await ledger.user())).master.master_id
        )
        await append(redis, run(7, 1, 2), run(7, 5, 1))
        await redis.xadd(stream.log_name(), {stream.FIELD: b"\xff"})
        await ledger.archived(3)
        for table, column in [
            ("idempotency_keys", "created_at"),
            ("subscription_history", "changed_at"),
            ("signal_gaps", "received_at"),
            ("archive_refusals", "refused_at"),
        ]:
            await connection.execute(f"update ledger.{table} set {column} = now() - interval '181 days'")
        await connection.execute(
            "select ledger.create_chunks('ledger.signal_archive', date '2020-01-01', '2020-01-03')"
        )
    async with ledger_running(configured), superuser(fresh_database) as connection:

        async def clean() -> bool:
            return not await connection.fetchval(
                """
                select (select count(*) from ledger.idempotency_keys) + (select count(*) from ledger.signal_gaps)
                     + (select count(*) from ledger.subscription_history)
                     + (select count(*) from ledger.archive_refusals)
                     + (select count(*) from pg_class where relname like 'signal_archive_2020%')
                """
            )

        await eventually(clean)
        assert await connection.fetchval("select count(*) from ledger.signal_archive") == 3
        assert await connection.fetchval("select count(*) from ledger.subscriptions") == 1


async def test_housekeeping_waits_for_a_long_query_and_nothing_waits_for_housekeeping(
    fresh_database: str, redis_url: str, redis: stream.Redis
) -> None:
    configured = ledger_settings(
        fresh_database,
        redis_url,
        archive_retention_days=180,
        housekeeping_interval_seconds=0.2,
        database_command_timeout_seconds=600,
    )
    old = "select to_regclass('ledger.signal_archive_20200101')"
    async with superuser(fresh_database) as reader, superuser(fresh_database) as connection:
        await connection.execute(
            "select ledger.create_chunks('ledger.signal_archive', date '2020-01-01', '2020-01-01')"
        )
        long_query = reader.transaction()
        await long_query.start()
        await reader.execute("select from ledger.signal_archive")
        async with ledger_running(configured) as ledger:

            async def drops() -> bool:
                return await connection.fetchval(
                    "select exists (select from pg_locks where mode = 'AccessExclusiveLock' and not granted"
                    " and relation = 'ledger.signal_archive'::regclass)"
                )

            await eventually(drops)
            await append(redis, run(7, 1, 2))
            await ledger.archived(2)
            assert await connection.fetchval(old) is not None
            await long_query.rollback()
            await eventually(lambda: _is_gone(connection, old))


async def _is_gone(connection, query: str) -> bool:
    return await connection.fetchval(query) is None


async def test_a_duty_that_another_process_does_is_told_as_not_led_here(
    fresh_database: str, redis_url: str
) -> None:
    async with superuser(fresh_database) as another:
        await another.execute("select pg_advisory_lock($1, $2)", 0x6563_706C, Duty.ARCHIVE + 1)
        async with ledger_running(ledger_settings(fresh_database, redis_url, log_shards=2)) as ledger:

            async def told_both() -> bool:
                text = (await asyncio.to_thread(admin, ledger, "/metrics"))[1]
                return {'ledger_leader{duty="archive"} 1.0', 'ledger_leader{duty="archive 1"} 0.0'} <= set(
                    text.splitlines()
                )

            await eventually(told_both)


async def test_metrics_and_checks_are_on_the_admin_port(ledger: LedgerClient, redis: stream.Redis) -> None:
    await append(redis, run(7, 1, 3))
    await ledger.archived(3)
    await revoked(ledger, await ledger.user())

    async def fine() -> bool:
        return all((await checks(ledger)).values())

    await eventually(fine)
    assert set(await checks(ledger)) == {"archive", "database", "events"}
    text = (await asyncio.to_thread(admin, ledger, "/metrics"))[1]
    for name in (
        'ledger_leader{duty="archive"} 1.0',
        'ledger_leader{duty="events"} 1.0',
        "ledger_archived_signals_total",
        "ledger_archive_lag_seconds",
        "ledger_archive_transaction_seconds_count",
        "ledger_outbox_published_total",
        "ledger_outbox_waiting",
        "ledger_housekeeping_last_seconds",
        'grpc_server_handling_seconds_count{grpc_method="CreateUser"',
        'database_pool_wait_seconds_count{pool="ledger"}',
    ):
        assert name in text


@pytest.fixture
async def own_redis() -> AsyncIterator[RedisServer]:
    async with redis(appendfsync="always") as server:
        yield server


@pytest.fixture
async def own_postgres() -> AsyncIterator[PostgresServer]:
    async with postgres() as server:
        await migrations.apply(server.url, app.MIGRATIONS, schema=app.SCHEMA)
        yield server


async def test_while_redis_is_down_calls_go_on_and_events_and_signals_wait(
    fresh_database: str, own_redis: RedisServer
) -> None:
    async with ledger_running(ledger_settings(fresh_database, own_redis.url)) as ledger:
        async with stream.connect(own_redis.url) as client:
            await append(client, run(7, 1, 3))
        await ledger.archived(3)
        await own_redis.stop()
        changed = await revoked(ledger, await ledger.user())
        status = ledger.call("ArchiveService/GetArchiveStatus", archive_service_pb2.GetArchiveStatusRequest())
        assert isinstance(await refused(status), UnavailableError)

        async def noticed() -> bool:
            found = await checks(ledger)
            return not found["events"] and not found["archive"] and found["database"]

        await eventually(noticed)
        lag_seconds = await archive_lag_seconds(ledger)

        async def rises() -> bool:
            return await archive_lag_seconds(ledger) > lag_seconds > 0

        await eventually(rises)
        await own_redis.start()
        async with stream.connect(own_redis.url) as client:
            await append(client, run(7, 4, 3))
        await ledger.archived(6)
        assert [event.license_changed.license_id for event in await told(own_redis.url, 1)] == [changed]
        assert len(positions(await ledger.read(7))) == 6


@pytest.mark.parametrize("refusal", ["NOREPLICAS", "NOPERM"])
async def test_while_redis_refuses_writes_calls_go_on_and_events_wait(
    fresh_database: str, own_redis: RedisServer, refusal: str
) -> None:
    async with (
        stream.connect(own_redis.url) as client,
        ledger_running(ledger_settings(fresh_database, own_redis.url)) as ledger,
    ):
        user = await ledger.user()
        if refusal == "NOREPLICAS":
            await client.config_set("min-replicas-to-write", 1)
        else:
            await client.execute_command("ACL", "SETUSER", "default", "-xadd")
        changed = await revoked(ledger, user)

        async def noticed() -> bool:
            return not (await checks(ledger))["events"]

        await eventually(noticed)
        await ledger.user()
        await client.config_set("min-replicas-to-write", 0)
        await client.execute_command("ACL", "SETUSER", "default", "+xadd")
        assert [event.license_changed.license_id for event in await told(own_redis.url, 1)] == [changed]


async def test_while_the_database_is_down_calls_are_unavailable_and_signals_wait(
    own_postgres: PostgresServer, redis_url: str, redis: stream.Redis
) -> None:
    async with ledger_running(ledger_settings(own_postgres.url, redis_url)) as ledger:
        user = await ledger.user()
        await append(redis, run(7, 1, 3))
        await ledger.archived(3)
        await own_postgres.stop()
        await append(redis, run(7, 4, 3))
        error = await refused(ledger.call("UserService/GetUser", users.GetUserRequest(user_id=user.user_id)))
        assert isinstance(error, UnavailableError)

        async def noticed() -> bool:
            found = await checks(ledger)
            return not found["database"]

        await eventually(noticed)
        assert (await asyncio.to_thread(admin, ledger, "/ready"))[0] == 200
        await own_postgres.start()
        await ledger.archived(6)
        assert (
            await ledger.call("UserService/GetUser", users.GetUserRequest(user_id=user.user_id))
        ).user == user


async def archive_lag_seconds(ledger: LedgerClient) -> float:
    _, text = await asyncio.to_thread(admin, ledger, "/metrics")
    (value,) = re.findall(r"^ledger_archive_lag_seconds (\S+)$", text, re.MULTILINE)
    return float(value)


async def test_it_starts_before_its_stores_and_works_once_they_are_there(data_folder: Path) -> None:
    async with redis(data_folder / "redis") as log, postgres(data_folder / "postgres") as database:
        await migrations.apply(database.url, app.MIGRATIONS, schema=app.SCHEMA)
        await log.stop()
        await database.stop()
        async with ledger_running(ledger_settings(database.url, log.url)) as ledger:
            request = users.CreateUserRequest(request_id=unique(), email="a@example.com", display_name="A")
            assert isinstance(await refused(ledger.call("UserService/CreateUser", request)), UnavailableError)
            await database.start()
            await log.start()

            async def made():
                try:
                    return await ledger.call("UserService/CreateUser", request)
                except grpc.aio.AioRpcError:
                    return None

            await eventually(made)
            await revoked(ledger, await ledger.user())
            assert await told(log.url, 1)


async def test_before_its_migrations_ran_it_says_so(empty_database: str, redis_url: str) -> None:
    async with ledger_running(ledger_settings(empty_database, redis_url)) as ledger:
        error = await refused(ledger.user())
        assert (type(error), error.reason) == (UnavailableError, "DATABASE_NOT_MIGRATED")
        await app.migrate(ledger_settings(empty_database, redis_url))

        async def made():
            try:
                return await ledger.user()
            except grpc.aio.AioRpcError:
                return None

        assert await eventually(made)
