"""What one ledger at a time does: events in order, housekeeping; and how the ledger bears outages."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from execution.ledger.v1 import archive_service_pb2, events_pb2
from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import user_service_pb2 as users
from mesh.embedded import PostgresServer, RedisServer, postgres, redis
from services.common import migrations, pg, stream
from services.common.errors import UnavailableError
from services.ledger import app
from services.ledger.settings import LedgerSettings
from services.ledger.store.outbox import OutboxStore
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    append,
    events_in,
    eventually,
    ledger_running,
    ledger_settings,
    refused,
    superuser,
    unique,
)
from tests.integration.ledger.log_entries import positions, run


async def revoked(ledger: LedgerClient, user: users.User) -> str:
    """Makes one event; the license it is about."""
    issued = await ledger.license(user)
    await ledger.call(
        "LicenseService/RevokeLicense", licenses.RevokeLicenseRequest(license_id=issued.license.license_id)
    )
    return issued.license.license_id


async def told(redis_url: str, count: int) -> list[events_pb2.LedgerEvent]:
    async def enough() -> list[events_pb2.LedgerEvent]:
        found = await events_in(redis_url)
        return found if len({event.event_id for event in found}) >= count else []

    return await eventually(enough)


async def test_events_written_at_once_get_rising_numbers_and_none_is_missed(
    ledger: LedgerClient, redis_url: str
) -> None:
    user = await ledger.user()
    made = await asyncio.gather(*(revoked(ledger, user) for _ in range(40)))
    events = await told(redis_url, len(made))
    assert [event.event_id for event in events] == sorted({event.event_id for event in events})
    assert {event.license_changed.license_id for event in events} == set(made)


async def test_an_event_that_commits_late_is_numbered_late(
    ledger: LedgerClient, redis_url: str, fresh_database: str
) -> None:
    user = await ledger.user()
    payload = events_pb2.LedgerEvent(
        trust_changed=events_pb2.TrustChanged(user_id="late")
    ).SerializeToString()
    async with superuser(fresh_database) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("insert into ledger.outbox (payload) values ($1)", payload)
        first = await revoked(ledger, user)
        await told(redis_url, 1)
        await transaction.commit()
    events = await told(redis_url, 2)
    assert [event.WhichOneof("event") for event in events] == ["license_changed", "trust_changed"]
    assert events[0].license_changed.license_id == first
    assert events[0].event_id < events[1].event_id


async def test_two_ledgers_tell_every_event_in_order_and_one_takes_over(
    ledger_config: LedgerSettings, redis_url: str
) -> None:
    async with ledger_running(ledger_config) as second:
        async with ledger_running(ledger_config) as first:
            user = await first.user()
            await asyncio.gather(*(revoked(one, user) for one in (first, second) * 5))
            await told(redis_url, 10)
        await asyncio.gather(*(revoked(second, user) for _ in range(5)))
        events = await told(redis_url, 15)
    # One that was published as the first one stopped may come again, but none after a later one.
    numbers = [event.event_id for event in events]
    assert numbers == sorted(numbers)
    assert len({event.license_changed.license_id for event in events}) == 15


async def test_a_published_event_that_was_not_forgotten_comes_again_under_its_number(
    ledger_config: LedgerSettings, redis_url: str, fresh_database: str
) -> None:
    payload = events_pb2.LedgerEvent(
        trust_changed=events_pb2.TrustChanged(user_id="again")
    ).SerializeToString()
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "insert into ledger.outbox (event_id, payload) values (nextval('ledger.event_id_seq'), $1)",
            payload,
        )
        number = await connection.fetchval("select event_id from ledger.outbox")
    async with ledger_running(ledger_config) as ledger:
        await revoked(ledger, await ledger.user())
        events = await told(redis_url, 2)
    assert [event.event_id for event in events] == [number, number + 1]


async def test_an_event_that_a_former_leader_numbers_meanwhile_keeps_that_number(
    fresh_database: str,
) -> None:
    async with superuser(fresh_database) as connection, pg.pool(fresh_database) as pool:
        await connection.execute("insert into ledger.outbox (payload) values (''), ('')")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("update ledger.outbox set event_id = nextval('ledger.event_id_seq')")
        numbering = asyncio.create_task(OutboxStore(pool).number_new(count=10))

        async def waits() -> bool:
            return await connection.fetchval(
                "select exists (select from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock')"
            )

        await eventually(waits)
        await transaction.commit()
        await numbering
        numbers = await connection.fetch("select event_id from ledger.outbox order by outbox_id")
        assert [row["event_id"] for row in numbers] == [1, 2]


async def test_an_event_that_somebody_holds_locked_waits_and_ends_nothing(
    ledger_config: LedgerSettings, redis_url: str, fresh_database: str
) -> None:
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "do $$ begin execute format('alter database %I set lock_timeout = 20', current_database()); end $$"
        )
        await connection.execute("insert into ledger.outbox (payload) values ('')")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from ledger.outbox for update")
        async with ledger_running(ledger_config) as ledger:

            async def noticed() -> bool:
                return not (await checks(ledger))["events"]

            await eventually(noticed)
            await transaction.rollback()
            assert len(await told(redis_url, 1)) == 1


async def test_the_stream_of_events_is_kept_short(
    fresh_database: str, redis_url: str, redis: stream.Redis
) -> None:
    async with (
        ledger_running(ledger_settings(fresh_database, redis_url, ledger_events_length_max=1_000)) as ledger,
        superuser(fresh_database) as connection,
    ):
        await connection.execute(
            "insert into ledger.outbox (payload) select '' from generate_series(1, 5000)"
        )
        await eventually(lambda: _is_empty(connection))
        assert 1_000 <= await redis.xlen(stream.LEDGER_EVENTS) < 1_200
        await ledger.user()


async def _is_empty(connection) -> bool:
    return not await connection.fetchval("select count(*) from ledger.outbox")


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


def admin(ledger: LedgerClient, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{ledger.running.admin_port}{path}", timeout=5
        ) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def checks(ledger: LedgerClient) -> dict[str, bool]:
    return json.loads((await asyncio.to_thread(admin, ledger, "/ready"))[1])["checks"]


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
        await own_redis.start()
        async with stream.connect(own_redis.url) as client:
            await append(client, run(7, 4, 3))
        await ledger.archived(6)
        assert [event.license_changed.license_id for event in await told(own_redis.url, 1)] == [changed]
        assert len(positions(await ledger.read(7))) == 6


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
                except Exception:
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
            except Exception:
                return None

        assert await eventually(made)
