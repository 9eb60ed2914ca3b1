"""The pool against a real PostgreSQL: failures by name, roles, deadlines, restarts under load."""

from __future__ import annotations

import asyncio
import collections
from urllib.parse import urlsplit

import asyncpg
import pytest
from prometheus_client import REGISTRY

from mesh.embedded import postgres
from services.common import errors, pg

TABLES = """
create table users (
    id int primary key,
    name text not null unique,
    age int constraint age_is_positive check (age > 0),
    boss int references users (id)
)
"""


@pytest.fixture
async def pool(empty_database: str):
    async with pg.pool(empty_database, name="test", size_max=4, acquire_timeout_seconds=2) as made:
        await made.execute(TABLES)
        yield made


async def test_statements_and_transactions(pool: pg.Pool) -> None:
    assert await pool.execute("insert into users values (1, 'a', 5, null)") == "INSERT 0 1"
    async with pool.transaction() as connection:
        await connection.execute("insert into users values (2, 'b', 5, 1)")
    with pytest.raises(KeyError):
        await insert_and_fail(pool)
    assert [row["id"] for row in await pool.fetch("select id from users order by id")] == [1, 2]
    assert await pool.fetchval("select name from users where id = $1", 2) == "b"
    row = await pool.fetchrow("select id from users where id = 3")
    assert row is None


async def insert_and_fail(pool: pg.Pool) -> None:
    async with pool.transaction() as connection:
        await connection.execute("insert into users values (3, 'c', 5, 1)")
        raise KeyError("after the insert")


@pytest.mark.parametrize(
    ("statement", "expected", "constraint"),
    [
        ("insert into users values (1, 'x', 5, null)", errors.AlreadyExistsError, "users_pkey"),
        ("insert into users values (2, 'a', 5, null)", errors.AlreadyExistsError, "users_name_key"),
        ("insert into users values (2, 'b', 0, null)", errors.FailedPreconditionError, "age_is_positive"),
        ("insert into users values (2, 'b', 1, 99)", errors.FailedPreconditionError, "users_boss_fkey"),
    ],
)
async def test_constraints_are_named(
    pool: pg.Pool, statement: str, expected: type[errors.ServiceError], constraint: str
) -> None:
    await pool.execute("insert into users values (1, 'a', 5, null)")
    with pytest.raises(expected) as caught:
        await pool.execute(statement)
    assert caught.value.metadata["constraint"] == constraint
    assert isinstance(caught.value.__cause__, asyncpg.IntegrityConstraintViolationError)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("select * from not_there", "DATABASE_NOT_MIGRATED"),
        ("select not_there()", "DATABASE_NOT_MIGRATED"),
        ("create table not_there.x (id int)", "DATABASE_NOT_MIGRATED"),
        ("select pg_terminate_backend(pg_backend_pid())", "DATABASE_CONNECTION_LOST"),
        ("set statement_timeout = 50; select pg_sleep(30)", "DATABASE_TIMEOUT"),
        ("set transaction_read_only = on; insert into users values (1, 'a', 1)", "DATABASE_READ_ONLY"),
    ],
)
async def test_what_means_that_the_database_cannot_serve_is_unavailable(
    pool: pg.Pool, statement: str, reason: str
) -> None:
    with pytest.raises(errors.UnavailableError) as caught:
        await pool.execute(statement)
    assert caught.value.reason == reason
    assert caught.value.retry_after_seconds
    assert await pool.fetchval("select 1") == 1


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        ("selct 1", ()),
        ("select $1::int", ("not a number",)),
        ("select $1::int", ()),
        ("insert into users (id) values (1)", ()),
        ("select 1/0", ()),
        ("select no_such_column from users", ()),
    ],
)
async def test_our_own_mistakes_pass_through(
    pool: pg.Pool, statement: str, arguments: tuple[object, ...]
) -> None:
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as caught:
        await pool.fetch(statement, *arguments)
    assert pg.classify(caught.value) is None


async def test_a_serialization_failure_aborts_one_of_both(pool: pg.Pool) -> None:
    await pool.execute("insert into users values (1, 'a', 1, null)")

    async def grow() -> None:
        async with pool.transaction(isolation="serializable") as connection:
            age = await connection.fetchval("select age from users where id = 1")
            await asyncio.sleep(0.02)
            await connection.execute("update users set age = $1 where id = 1", age + 1)

    results = await asyncio.gather(grow(), grow(), return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [errors.AbortedError]
    assert await pool.fetchval("select age from users") == 2


async def test_deadlocks_and_locks_abort(pool: pg.Pool) -> None:
    await pool.execute("insert into users values (1, 'a', 1, null), (2, 'b', 1, null)")
    async with pool.transaction() as holder:
        await holder.execute("select from users where id = 1 for update")
        with pytest.raises(errors.AbortedError) as caught:
            await pool.execute("select from users where id = 1 for update nowait")
    assert caught.value.reason == "LOCKED"


async def test_a_busy_pool_is_unavailable_by_name_and_heals(empty_database: str) -> None:
    async with pg.pool(empty_database, name="busy", size_max=2, acquire_timeout_seconds=0.1) as pool:
        async with pool.connection(), pool.connection():
            with pytest.raises(errors.UnavailableError) as caught:
                await pool.fetchval("select 1")
            assert caught.value.reason == "DATABASE_POOL_EXHAUSTED"
        assert await pool.fetchval("select 1") == 1
    waits = REGISTRY.get_sample_value("database_pool_wait_seconds_count", {"pool": "busy"})
    assert waits is not None
    assert waits >= 4


async def test_a_statement_has_a_deadline(empty_database: str) -> None:
    async with pg.pool(empty_database, name="test", command_timeout_seconds=0.1) as pool:
        with pytest.raises(errors.UnavailableError) as caught:
            await pool.execute("select pg_sleep(30)")
        assert caught.value.reason == "DATABASE_TIMEOUT"
        assert await pool.fetchval("select 1") == 1


async def test_cancelled_callers_give_their_connections_back(empty_database: str) -> None:
    async with pg.pool(empty_database, name="test", size_max=2) as pool:
        for _ in range(10):
            waiting = [asyncio.create_task(pool.execute("select pg_sleep(30)")) for _ in range(4)]
            await asyncio.sleep(0.02)
            for task in waiting:
                task.cancel()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert await pool.fetchval("select 1") == 1


async def test_a_cancellation_is_not_hidden_by_the_connection_that_dies_with_it(pool: pg.Pool) -> None:
    held = asyncio.Event()

    async def work() -> None:
        async with pool.transaction() as connection:
            process = await connection.fetchval("select pg_backend_pid()")
            await pool.execute("select pg_terminate_backend($1)", process)
            held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_time_out_of_the_caller_stays_one_when_the_connection_dies(pool: pg.Pool) -> None:
    async def work() -> None:
        async with asyncio.timeout(0.2), pool.transaction() as connection:
            process = await connection.fetchval("select pg_backend_pid()")
            await pool.execute("select pg_terminate_backend($1)", process)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await work()


async def test_the_role_survives_the_reset_between_uses(empty_database: str) -> None:
    role = "common_example_role"
    async with pg.pool(empty_database) as owner:
        await owner.execute(f"drop role if exists {role}")
        await owner.execute(f"create role {role} nologin")
    try:
        async with pg.pool(empty_database, role=role, name="as role", size_max=1) as pool:
            for _ in range(3):
                assert await pool.fetchval("select current_user::text") == role
                await pool.execute("set application_name = 'changed'")
            assert await pool.fetchval("show application_name") == "as role"
            async with pool.connection() as connection:
                await connection.execute("reset all")
                assert await connection.fetchval("select current_user::text") == role
    finally:
        async with pg.pool(empty_database) as owner:
            await owner.execute(f"drop role {role}")


async def test_a_role_that_lost_its_rights_is_unavailable_and_the_log_says_to_what(
    empty_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a restore that left the grants out."""
    async with pg.pool(empty_database) as owner, pg.pool(empty_database, role="pg_monitor") as pool:
        await owner.execute("create table kept (id int)")
        with pytest.raises(errors.UnavailableError) as caught:
            await pool.fetch("select id from kept")
        await owner.execute("grant select on kept to pg_monitor")
        assert await pool.fetch("select id from kept") == []
    assert caught.value.reason == "DATABASE_REFUSED"
    assert "permission denied for table kept" in caplog.text


async def test_a_role_that_is_not_there_yet_is_unavailable(empty_database: str) -> None:
    async with pg.pool(empty_database, role="no_such_role_yet") as pool:
        with pytest.raises(errors.UnavailableError) as caught:
            await pool.fetchval("select 1")
    assert caught.value.reason == "DATABASE_NOT_MIGRATED"


async def test_a_database_that_is_not_there_yet_is_unavailable(empty_database: str) -> None:
    missing = urlsplit(empty_database)._replace(path="/no_such_database").geturl()
    async with pg.pool(missing) as pool:
        with pytest.raises(errors.UnavailableError) as caught:
            await pool.fetchval("select 1")
    assert caught.value.reason == "DATABASE_MISSING"


async def test_the_pool_starts_before_the_database(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with postgres(durable=False) as server:
        url = server.url
        await server.stop()
        async with pg.pool(url, name="early", size_min=2) as pool:
            with pytest.raises(errors.UnavailableError):
                await pool.fetchval("select 1")
            assert not pool.is_up
            await server.start()
            async with asyncio.timeout(20):
                while not pool.is_up:  # noqa: ASYNC110  # told by a probe, not by an event
                    await asyncio.sleep(0.02)
            assert await pool.fetchval("select 1") == 1
            assert REGISTRY.get_sample_value("database_up", {"pool": "early"}) == 1
    told = [record.getMessage() for record in caplog.records if record.name == "services.common.pg"]
    assert told[0].startswith("database early is not available: the database cannot be reached")
    assert told[-1] == "database early answers"
    assert len(told) < 10


@pytest.mark.parametrize("way", ["restart", "kill"])
async def test_restarts_under_load_are_unavailable_and_nothing_else(way: str) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    unknown: list[BaseException] = []
    stop = asyncio.Event()

    async def load(pool: pg.Pool) -> None:
        while not stop.is_set():
            try:
                async with pool.transaction() as connection:
                    await connection.execute("insert into t select generate_series(1, 20)")
                    await connection.fetch("select pg_sleep(0.002)")
                outcomes["ok"] += 1
            except errors.UnavailableError as error:
                outcomes[error.reason] += 1
                await asyncio.sleep(0.005)
            except Exception as error:
                unknown.append(error)

    async with (
        postgres(durable=False) as server,
        pg.pool(server.url, size_max=8, acquire_timeout_seconds=5) as pool,
    ):
        await pool.execute("create table t (id int)")
        callers = [asyncio.create_task(load(pool)) for _ in range(24)]
        for _ in range(4):
            await asyncio.sleep(0.3)
            if way == "kill":
                server.kill()
                await server.wait()
                await server.start()
            else:
                await server.restart()
        before = collections.Counter(outcomes)
        for _ in range(3_000):
            if outcomes["ok"] >= before["ok"] + 50:
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail(
                f"it did not heal: {outcomes - before} since the last start; {unknown}; up: {pool.is_up}"
            )
        stop.set()
        await asyncio.gather(*callers)
    assert unknown == []
    assert sum(count for reason, count in outcomes.items() if reason != "ok") > 0, outcomes


@pytest.mark.parametrize("url", ["mysql://x/y", "postgresql://h:port/db", "", "postgresql//h"])
async def test_a_url_of_another_kind_is_a_configuration_error_without_the_url(url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"DATABASE_URL: is not a postgresql:// URL"):
        async with pg.pool(url):
            pass
