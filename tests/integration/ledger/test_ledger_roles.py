"""Who may do what in the database, and migrations that run at the same moment."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from services.common import migrations, stream
from services.ledger import app
from tests.integration.ledger.ledger_service import LedgerClient, append, superuser
from tests.integration.ledger.log_entries import run

SECRETS = {
    ("licenses", "token_sha256"),
    ("signing_keys", "sealed_secret"),
}


async def test_analysts_read_everything_but_secrets_and_change_nothing(fresh_database: str) -> None:
    async with superuser(fresh_database) as connection:
        columns = await connection.fetch(
            "select table_name, column_name from information_schema.columns as c"
            " join pg_class on relname = table_name and relnamespace = 'ledger'::regnamespace"
            " where table_schema = 'ledger' and relkind in ('r', 'p') and not relispartition"
        )
        hidden = {
            (row["table_name"], row["column_name"])
            for row in columns
            if not await connection.fetchval(
                "select has_column_privilege('analyst_readonly', $1, $2, 'select')",
                f"ledger.{row['table_name']}",
                row["column_name"],
            )
        }
        assert hidden == SECRETS
        writable = await connection.fetch(
            "select relname from pg_class where relnamespace = 'ledger'::regnamespace and relkind in ('r', 'p')"
            " and has_any_column_privilege('analyst_readonly', oid, 'insert, update')"
        )
        assert writable == []


@pytest.mark.parametrize(
    "statement",
    [
        "create table ledger.anything (number int)",
        "alter table ledger.users add column anything int",
        "drop table ledger.users",
        "create schema anything",
        "truncate ledger.signal_archive",
        "update ledger.signal_archive set price_e8 = 1",
        "delete from ledger.signal_archive",
        "delete from ledger.signal_gaps",
        "delete from ledger.users",
        "update ledger.licenses set user_id = user_id",
        "update ledger.licenses set token_sha256 = token_sha256",
        "update ledger.signing_keys set sealed_secret = sealed_secret",
        "update ledger.subscriptions set user_id = user_id",
        "update ledger.idempotency_keys set result = ''",
        "select ledger.drop_chunks('ledger.signal_archive', interval '1 hour')",
    ],
)
async def test_the_service_cannot_do_what_it_never_does(fresh_database: str, statement: str) -> None:
    async with superuser(fresh_database) as connection:
        await connection.execute("set role ledger_service")
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError)):
            await connection.execute(statement)


async def test_the_service_acts_as_its_role_on_every_connection(
    ledger: LedgerClient, fresh_database: str
) -> None:
    await asyncio.gather(*(ledger.user() for _ in range(10)))
    async with superuser(fresh_database) as connection:
        acting = await connection.fetch(
            "select pid from pg_stat_activity where datname = current_database() and application_name = 'ledger'"
        )
        assert acting
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("set role ledger_service; select * from pg_authid")


async def test_migrations_may_run_in_several_processes_and_databases_at_once(
    empty_database: str, fresh_database: str
) -> None:
    applied = await asyncio.gather(
        *(
            migrations.apply(url, app.MIGRATIONS, schema=app.SCHEMA)
            for url in (empty_database, fresh_database, empty_database, empty_database)
        )
    )
    versions = tuple(migration.version for migration in migrations.read(app.MIGRATIONS))
    assert sorted(applied) == [(), (), (), versions]


async def test_chunks_are_made_once_each_and_dropped_when_all_of_them_is_old(fresh_database: str) -> None:
    async with superuser(fresh_database) as connection:
        await connection.execute("set role ledger_service")
        make = "select ledger.create_chunks('ledger.signal_archive', date '2020-02-27', date '2020-03-02')"
        assert await connection.fetchval(make) == 5
        assert await connection.fetchval(make) == 0
        older_than = await connection.fetchval("select now() - timestamptz '2020-03-01 12:00:00+00'")
        dropped = await connection.fetch("select ledger.drop_chunks('ledger.signal_archive', $1)", older_than)
        assert [row[0].rpartition("_")[2] for row in dropped] == ["20200227", "20200228", "20200229"]
        assert await connection.fetchval(make) == 3


async def test_a_chunk_that_somebody_dropped_is_made_again(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    made = run(7, 1, 2, received_at_us=1_700_000_000_000_000)
    await append(redis, made)
    await ledger.archived(2)
    async with superuser(fresh_database) as connection:
        await connection.execute("drop table ledger.signal_archive_20231114")
    await append(redis, run(7, 3, 2, received_at_us=1_700_000_000_000_000))
    await ledger.archived(4)
