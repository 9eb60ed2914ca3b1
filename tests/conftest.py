"""Real servers for the tests, started once per run and only when a test asks; each test gets a database of its own.

DATABASE_URL (a superuser's) and REDIS_URL, where set, are used instead of embedded servers: databases are then made
and dropped under names of their own; the Redis database that the URL names must be empty, as it is flushed. Redis
functions belong to the whole server, so let nothing else depend on functions of the same names there.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import hypothesis
import pytest
from redis.asyncio import Redis

from mesh.embedded import PostgresServer, RedisServer, folders, postgres, redis
from mesh.embedded.postgres import UNPRIVILEGED
from services.common import migrations

T = TypeVar("T")

SERVICES = Path(__file__).resolve().parent.parent / "services"
MIGRATED_SERVICES = ("ledger", "risk")
CONNECT_SECONDS_MAX = 10.0

# buf's cache is otherwise in the home folder, which may not be there to write.
os.environ.setdefault("BUF_CACHE_DIR", str(Path(sys.prefix, "buf-cache")))

# A test never judges by wall time.
hypothesis.settings.register_profile("ecp", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ecp")


@pytest.fixture(scope="session", autouse=True)
def late_grpc_events_are_dropped() -> Iterator[None]:
    """Keeps a call that ended with its test's loop from breaking a call of the next test.

    grpc.aio has one poller for all event loops of a process. What completes after its loop was closed raises there, and
    the completions behind it then wait for the next one, perhaps for ever. A service has one loop and no such trouble.
    """
    original = asyncio.BaseEventLoop.call_soon_threadsafe

    def call_soon_threadsafe(
        self: asyncio.BaseEventLoop, callback: Callable[..., object], *args: Any, **keywords: Any
    ) -> asyncio.Handle:
        if self.is_closed() and (getattr(callback, "__module__", None) or "").startswith("grpc."):
            return asyncio.Handle(callback, args, self)
        return original(self, callback, *args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "call_soon_threadsafe", call_soon_threadsafe)
        yield


@contextmanager
def entered(context: AbstractAsyncContextManager[T], runner: asyncio.Runner) -> Iterator[T]:
    value = runner.run(context.__aenter__())
    try:
        yield value
    finally:
        runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def session_runner() -> Iterator[asyncio.Runner]:
    """A loop for what outlives one test; with a factory, a runner leaves the current loop of the tests alone."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield runner


@pytest.fixture(scope="session")
def postgres_server(session_runner: asyncio.Runner) -> Iterator[PostgresServer | None]:
    """The run's embedded PostgreSQL; None when DATABASE_URL names another. Do not stop it: others share it."""
    if os.environ.get("DATABASE_URL"):
        yield None
        return
    with entered(postgres(durable=False), session_runner) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_admin_url(postgres_server: PostgresServer | None) -> str:
    """A superuser's URL of the run's PostgreSQL."""
    return postgres_server.url if postgres_server else os.environ["DATABASE_URL"]


@pytest.fixture(scope="session")
def database_names() -> Iterator[str]:
    run = secrets.token_hex(4)
    return (f"ecp_test_{run}_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def database_template(
    postgres_admin_url: str, database_names: Iterator[str], session_runner: asyncio.Runner
) -> Iterator[str]:
    """The name of a database in which all services' migrations have run."""
    name = next(database_names)
    session_runner.run(administer(postgres_admin_url, f"create database {name}"))
    try:
        session_runner.run(migrate(at_database(postgres_admin_url, name)))
        yield name
    finally:
        session_runner.run(administer(postgres_admin_url, f"drop database {name} with (force)"))


@pytest.fixture
async def fresh_database(
    postgres_admin_url: str, database_template: str, database_names: Iterator[str]
) -> AsyncIterator[str]:
    """A superuser's URL of a database for this test alone, with all migrations applied."""
    async for url in own_database(postgres_admin_url, next(database_names), database_template):
        yield url


@pytest.fixture
async def empty_database(postgres_admin_url: str, database_names: Iterator[str]) -> AsyncIterator[str]:
    """A superuser's URL of a database for this test alone, with nothing in it."""
    async for url in own_database(postgres_admin_url, next(database_names), "template0"):
        yield url


@pytest.fixture(scope="session")
def redis_server(session_runner: asyncio.Runner) -> Iterator[RedisServer | None]:
    """The run's embedded Redis; None when REDIS_URL names another. Do not stop it: others share it."""
    if os.environ.get("REDIS_URL"):
        yield None
        return
    with entered(redis(appendfsync="no"), session_runner) as server:
        yield server


@pytest.fixture(scope="session")
def redis_session_url(redis_server: RedisServer | None, session_runner: asyncio.Runner) -> Iterator[str]:
    if redis_server:
        yield redis_server.url
        return
    url = os.environ["REDIS_URL"]
    if session_runner.run(redis_command(url, "DBSIZE")):
        pytest.exit("REDIS_URL names a database that is not empty, and the tests flush it: name another", 3)
    yield url
    session_runner.run(redis_command(url, "FLUSHDB"))


@pytest.fixture
async def redis_url(redis_session_url: str, redis_server: RedisServer | None) -> str:
    """The URL of a Redis database that is empty now; on the embedded server no functions are loaded either."""
    await redis_command(redis_session_url, "FLUSHDB")
    if redis_server:
        await redis_command(redis_session_url, "FUNCTION FLUSH")
    return redis_session_url


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for an embedded server's data; unlike tmp_path, root's PostgreSQL under another user gets through."""
    parent = folders.temporary_parent(UNPRIVILEGED)
    with tempfile.TemporaryDirectory(prefix="ecp-test-", dir=parent) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


async def migrate(url: str) -> None:
    for service in MIGRATED_SERVICES:
        folder = SERVICES / service / "migrations"
        if folder.is_dir():
            await migrations.apply(url, folder, schema=service)


async def own_database(admin_url: str, name: str, template: str) -> AsyncIterator[str]:
    await administer(admin_url, f"create database {name} template {template}")
    try:
        yield at_database(admin_url, name)
    finally:
        await administer(admin_url, f"drop database {name} with (force)")


async def administer(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS_MAX)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def redis_command(url: str, command: str) -> object:
    async with Redis.from_url(url) as client:
        return await client.execute_command(command)


def at_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()
