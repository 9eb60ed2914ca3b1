"""Migrations against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.embedded import postgres
from services.common import errors, migrations, pg
from services.common.migrations import SchemaState


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    write(made, "0001_users.sql", "create table demo.users (id int); create table demo.b (id int);")
    write(made, "0002_names.sql", "alter table demo.users add column name text;")
    return made


def write(folder: Path, name: str, sql: str) -> None:
    (folder / name).write_text(sql, encoding="utf-8")


async def columns(url: str) -> list[str]:
    async with pg.pool(url) as pool:
        rows = await pool.fetch(
            "select table_name || '.' || column_name as name from information_schema.columns"
            " where table_schema = 'demo' and table_name <> 'schema_migrations' order by 1"
        )
    return [row["name"] for row in rows]


async def test_all_files_are_applied_once_in_order(empty_database: str, folder: Path) -> None:
    assert await migrations.apply(empty_database, folder, schema="demo") == (1, 2)
    assert await columns(empty_database) == ["b.id", "users.id", "users.name"]
    assert await migrations.apply(empty_database, folder, schema="demo") == ()
    write(folder, "0003_more.sql", "create table demo.c (id int);")
    assert await migrations.apply(empty_database, folder, schema="demo") == (3,)


async def test_many_at_once_apply_each_file_once(empty_database: str, folder: Path) -> None:
    write(folder, "0003_slow.sql", "select pg_sleep(0.2); create table demo.c (id int);")
    results = await asyncio.gather(
        *(migrations.apply(empty_database, folder, schema="demo") for _ in range(5))
    )
    assert sorted(results, key=len) == [(), (), (), (), (1, 2, 3)]


async def test_a_file_that_fails_leaves_nothing_of_itself(empty_database: str, folder: Path) -> None:
    write(folder, "0003_bad.sql", "create table demo.c (id int); insert into demo.nowhere values (1);")
    with pytest.raises(errors.ConfigurationError) as caught:
        await migrations.apply(empty_database, folder, schema="demo")
    assert "migration 0003_bad failed" in str(caught.value)
    assert 'relation "demo.nowhere" does not exist' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert await columns(empty_database) == ["b.id", "users.id", "users.name"]
    write(folder, "0003_bad.sql", "create table demo.c (id int);")
    assert await migrations.apply(empty_database, folder, schema="demo") == (3,)


async def test_a_file_that_changed_after_it_was_applied_is_refused(empty_database: str, folder: Path) -> None:
    await migrations.apply(empty_database, folder, schema="demo")
    write(folder, "0001_users.sql", "create table demo.users (id bigint);")
    with pytest.raises(errors.ConfigurationError, match="migration 0001_users changed after it was applied"):
        await migrations.apply(empty_database, folder, schema="demo")
    async with pg.pool(empty_database) as pool:
        with pytest.raises(errors.ConfigurationError, match="0001_users changed"):
            await migrations.check(pool, folder, schema="demo")


async def test_line_ends_of_another_system_are_no_change(empty_database: str, folder: Path) -> None:
    write(folder, "0003_two_lines.sql", "create table\ndemo.c (id int);\n")
    await migrations.apply(empty_database, folder, schema="demo")
    (folder / "0003_two_lines.sql").write_bytes(b"create table\r\ndemo.c (id int);\r\n")
    assert await migrations.apply(empty_database, folder, schema="demo") == ()


async def test_a_schema_newer_than_the_code_is_fine(empty_database: str, folder: Path) -> None:
    write(folder, "0003_future.sql", "create table demo.c (id int);")
    await migrations.apply(empty_database, folder, schema="demo")
    (folder / "0003_future.sql").unlink()
    assert await migrations.apply(empty_database, folder, schema="demo") == ()
    async with pg.pool(empty_database) as pool:
        state = await migrations.check(pool, folder, schema="demo")
    assert state == SchemaState(pending=(), newer=(3,))
    assert state.is_current


async def test_check_says_what_is_missing(empty_database: str, folder: Path) -> None:
    async with pg.pool(empty_database) as pool:
        with pytest.raises(errors.UnavailableError):
            await migrations.check(pool, folder, schema="demo")
        await migrations.apply(empty_database, folder, schema="demo")
        write(folder, "0003_more.sql", "create table demo.c (id int);")
        state = await migrations.check(pool, folder, schema="demo")
    assert state == SchemaState(pending=(3,), newer=())
    assert not state.is_current


async def test_phase_before_stops_at_the_first_file_that_must_run_after_the_new_code(
    empty_database: str, folder: Path
) -> None:
    write(folder, "0003_drop.sql", "-- phase: after\ndrop table demo.b;")
    write(folder, "0004_more.sql", "-- phase: before\ncreate table demo.c (id int);")
    assert await migrations.apply(empty_database, folder, schema="demo", phase="before") == (1, 2)
    assert await migrations.apply(empty_database, folder, schema="demo") == (3, 4)


async def test_a_role_without_rights_can_check(empty_database: str, folder: Path) -> None:
    role = "common_migrations_reader"
    await migrations.apply(empty_database, folder, schema="demo")
    async with pg.pool(empty_database) as owner:
        await owner.execute(
            f"drop role if exists {role}; create role {role}; grant usage on schema demo to {role}"
        )
        try:
            async with pg.pool(empty_database, role=role) as pool:
                assert (await migrations.check(pool, folder, schema="demo")).is_current
        finally:
            await owner.execute(f"revoke usage on schema demo from {role}; drop role {role}")


async def test_two_schemas_of_one_database_do_not_mix(empty_database: str, folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    write(other, "0001_things.sql", "create table other.things (id int);")
    results = await asyncio.gather(
        migrations.apply(empty_database, folder, schema="demo"),
        migrations.apply(empty_database, other, schema="other"),
    )
    assert results == [(1, 2), (1,)]


@pytest.mark.parametrize(
    ("name", "sql", "message"),
    [
        ("3_short.sql", "", "is not named NNNN_name.sql"),
        ("0002_twice.sql", "", "two migrations have the same number"),
        ("0003_x.sql", "-- phase: later\n", "phase 'later' is neither"),
    ],
)
def test_a_folder_that_makes_no_sense_is_refused(folder: Path, name: str, sql: str, message: str) -> None:
    write(folder, name, sql)
    with pytest.raises(errors.ConfigurationError, match=message):
        migrations.read(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match="no such folder"):
        migrations.read(tmp_path / "nowhere")


async def test_a_schema_name_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="schema name"):
        await migrations.apply("postgresql://x/y", folder, schema="demo; drop")


async def test_migrations_wait_for_the_database(folder: Path) -> None:
    async with postgres(durable=False) as server:
        url = server.url
        await server.stop()
        with pytest.raises(errors.UnavailableError):
            await migrations.apply(url, folder, schema="demo", wait_seconds=0.2)
        applying = asyncio.create_task(migrations.apply(url, folder, schema="demo", wait_seconds=30))
        await asyncio.sleep(0.1)
        await server.start()
        assert await applying == (1, 2)


async def test_another_process_that_keeps_migrating_is_unavailable(empty_database: str, folder: Path) -> None:
    async with pg.pool(empty_database) as pool, pool.connection() as connection:
        await connection.execute("select pg_advisory_lock($1)", migrations._LOCK_KEY)
        with pytest.raises(errors.UnavailableError, match="another process is migrating"):
            await migrations.apply(empty_database, folder, schema="demo", wait_seconds=0.2)
