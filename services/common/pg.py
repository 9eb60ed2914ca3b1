"""PostgreSQL for the stores: a pool that outlives restarts, failures classified once; it knows no tables."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from prometheus_client import Counter, Gauge, Histogram

from services.common import tasks
from services.common.backoff import Backoff
from services.common.errors import (
    AbortedError,
    AlreadyExistsError,
    ConfigurationError,
    FailedPreconditionError,
    ServiceError,
    UnavailableError,
)
from services.common.settings import ServiceSettings, require_secret

_log = logging.getLogger(__name__)

# A text, because the class is generic only in its stubs.
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"
Isolation = Literal["read_committed", "repeatable_read", "serializable"]

# Of every session. Days are of 24 hours and begin at 00:00 UTC, wherever the server stands. And PostgreSQL gives up on
# a process that hangs in a transaction, or whose host is gone without a word, and on the locks that it holds.
_SESSION: Final = {
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_PROBE_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 5.0
_RETRY_AFTER_SECONDS: Final = 1.0

POOL_WAIT = Histogram(
    "database_pool_wait_seconds",
    "Time a caller waited for a connection, failures included.",
    ("pool",),
    buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
)
POOL_CONNECTIONS = Gauge("database_pool_connections", "Connections of the pool, by state.", ("pool", "state"))
POOL_UP = Gauge("database_up", "1 while the database answers, else 0.", ("pool",))
FAILURES = Counter(
    "database_failures_total", "Statements that failed, by the error they became.", ("reason",)
)


class Pool:
    """Connections to one database, acting as one role. Made by `pool`; its failures are service errors."""

    def __init__(
        self, raw: asyncpg.Pool[asyncpg.Record], *, name: str, acquire_timeout_seconds: float
    ) -> None:
        self._raw = raw
        self._name = name
        self._acquire_timeout_seconds = acquire_timeout_seconds
        self._wait = POOL_WAIT.labels(name)
        self._trouble: str | None = None
        self.is_up = False
        """Whether the last probe of the database succeeded."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for the block, outside of a transaction.

        Raises:
            UnavailableError: none was free or could be opened in time, or the database went away in the
            block. AlreadyExistsError, AbortedError, FailedPreconditionError: what a statement in the block
            ran into; see
                `classify`.
        """
        with translating():
            acquired = await self._acquire()
            try:
                yield acquired
            finally:
                await self._raw.release(acquired)

    async def _acquire(self) -> Connection:
        began = time.perf_counter()
        try:
            return await self._raw.acquire(timeout=self._acquire_timeout_seconds)
        except TimeoutError as error:
            if self._raw.get_idle_size() == 0 and self._raw.get_size() == self._raw.get_max_size():
                raise _unavailable(
                    "DATABASE_POOL_EXHAUSTED", "all database connections are busy", error
                ) from error
            raise
        finally:
            self._wait.observe(time.perf_counter() - began)

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation | None = None, readonly: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection with a transaction around the block: commits at its end, rolls back when it raises.

        Raises:
            as `connection`. UnavailableError from the commit leaves unknown whether it took effect.
        """
        async with (
            self.connection() as connection,
            connection.transaction(isolation=isolation, readonly=readonly),
        ):
            yield connection

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """All rows of one statement. Raises as `connection`."""
        async with self.connection() as connection:
            return await connection.fetch(query, *arguments)

    async def fetchrow(self, query: str, *arguments: object) -> asyncpg.Record | None:
        """The first row of one statement, or None. Raises as `connection`."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: object) -> Any:
        """The first column of the first row, or None. Raises as `connection`."""
        async with self.connection() as connection:
            return await connection.fetchval(query, *arguments)

    async def execute(self, query: str, *arguments: object) -> str:
        """Runs one statement; its command tag, such as `UPDATE 1`. Raises as `connection`."""
        async with self.connection() as connection:
            return await connection.execute(query, *arguments)

    async def _watch(self, connections_min: int) -> None:
        """Opens the first connections once the database is there and watches whether it answers, for ever."""
        backoff = Backoff(initial_seconds=0.1, cap_seconds=_PROBE_SECONDS, floor_seconds=0.05)
        while True:
            try:
                await self._open(connections_min)
                self._tell("")
                backoff.reset()
                delay_seconds = _PROBE_SECONDS
            except (ServiceError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                self._tell(f"{error} ({error.__cause__ or type(error).__name__})")
                delay_seconds = backoff.next_delay()
            self._count()
            await asyncio.sleep(delay_seconds)

    async def _open(self, connections_min: int) -> None:
        missing = min(max(1, connections_min - self._raw.get_size()), self._raw.get_max_size())
        results = await asyncio.gather(
            *(self.fetchval("select 1") for _ in range(missing)), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _tell(self, trouble: str) -> None:
        """Keeps and, when it changes, logs what is wrong with the database; empty when nothing is."""
        self.is_up = not trouble
        POOL_UP.labels(self._name).set(self.is_up)
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble:
            _log.warning("database %s is not available: %s", self._name, trouble)
        else:
            _log.info("database %s answers", self._name)

    def _count(self) -> None:
        idle = self._raw.get_idle_size()
        POOL_CONNECTIONS.labels(self._name, "idle").set(idle)
        POOL_CONNECTIONS.labels(self._name, "busy").set(self._raw.get_size() - idle)


@asynccontextmanager
async def pool(
    source: ServiceSettings | str,
    *,
    role: str | None = None,
    name: str = "database",
    size_min: int = 1,
    size_max: int = 10,
    acquire_timeout_seconds: float = 5.0,
    command_timeout_seconds: float = 30.0,
    statement_cache_size: int = 256,
) -> AsyncIterator[Pool]:
    """A pool on `settings.database_url` (its sizes and time-outs come from the settings then) or on a URL.

    Returns at once, also while the database is down: until it answers, calls raise UnavailableError. `role`
    is what every connection acts as, also after resets; default `settings.database_role`.

    Raises:
        ConfigurationError: DATABASE_URL is not set or is no such URL.
    """
    url = source if isinstance(source, str) else require_secret(source.database_url, "DATABASE_URL")
    require_url(url, "DATABASE_URL")
    if not isinstance(source, str):
        role = role or source.database_role
        size_min, size_max = source.database_pool_size_min, source.database_pool_size_max
        acquire_timeout_seconds = source.database_acquire_timeout_seconds
        command_timeout_seconds = source.database_command_timeout_seconds
    server_settings = _SESSION | {"application_name": name} | ({"role": role} if role else {})
    raw = await asyncpg.create_pool(
        url,
        # Zero, because asyncpg refuses to make a pool that cannot connect; _watch opens the first ones.
        min_size=0,
        max_size=size_max,
        max_inactive_connection_lifetime=0,
        timeout=acquire_timeout_seconds,
        command_timeout=command_timeout_seconds,
        statement_cache_size=statement_cache_size,
        server_settings=server_settings,
    )
    made = Pool(raw, name=name, acquire_timeout_seconds=acquire_timeout_seconds)
    watch = asyncio.create_task(made._watch(size_min), name=f"watch {name}")
    try:
        yield made
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await _close(raw)


def require_url(url: str, variable: str) -> None:
    """Checks that `url` looks like one of PostgreSQL.

    Raises:
        ConfigurationError: it does not; the message does not hold it, since it may hold a password.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("postgres", "postgresql") and (parts.port or 1) > 0
    except ValueError:
        fine = False
    if not fine:
        example = "postgresql://user@127.0.0.1:5432/execution_control"
        raise ConfigurationError("is not a postgresql:// URL", where=variable, do=f"for example {example}")


async def _close(raw: asyncpg.Pool[asyncpg.Record]) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await raw.close()
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        _log.warning("database connections terminated: %s", error)
        raw.terminate()


@contextmanager
def translating() -> Iterator[None]:
    """Turns what asyncpg and the network raise inside into service errors; also usable as a decorator's body.

    Raises:
        ServiceError: see `classify`. What it does not know passes through unchanged.
    """
    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
        TimeoutError,
    ) as error:
        classified = classify(error)
        if classified is None:
            raise
        if tasks.is_being_cancelled():
            raise asyncio.CancelledError from error
        FAILURES.labels(classified.reason).inc()
        raise classified from error


def classify(error: BaseException) -> ServiceError | None:
    """The service error that a failure of asyncpg or the network stands for; None when it is a mistake of
    ours.

    Unique violation: AlreadyExistsError; foreign key, check and exclusion: FailedPreconditionError, both with
    the constraint's name in `metadata["constraint"]`. Serialization failure, deadlock, lock not available:
    AbortedError. Everything that says that the database is away, starting, stopping, full, too slow or not
    migrated yet: UnavailableError.
    """
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        return _constraint(error)
    if isinstance(error, asyncpg.PostgresError):
        return _from_state(error)
    if isinstance(error, asyncpg.InterfaceError):
        if isinstance(error, asyncpg.DataError | ValueError | TypeError) or "the server expects" in str(
            error
        ):
            return None
        return _unavailable("DATABASE_CONNECTION_LOST", "the connection to the database was lost", error)
    if isinstance(error, asyncpg.InternalClientError):
        return _unavailable("DATABASE_CONNECTION_LOST", "the connection to the database was lost", error)
    if isinstance(error, TimeoutError):
        return _unavailable("DATABASE_TIMEOUT", "the database did not answer in time", error)
    if isinstance(error, OSError):
        return _unavailable("DATABASE_UNREACHABLE", "the database cannot be reached", error)
    return None


_CLASS_UNAVAILABLE: Final = {
    "08": "DATABASE_CONNECTION_LOST",
    "28": "DATABASE_REFUSED",
    "3D": "DATABASE_MISSING",
    "53": "DATABASE_OUT_OF_RESOURCES",
    "57": "DATABASE_RESTARTING",
    "58": "DATABASE_SYSTEM_ERROR",
}
_STATE_UNAVAILABLE: Final = {
    "57014": "DATABASE_TIMEOUT",  # query_canceled: statement_timeout or our own cancel
    "25006": "DATABASE_READ_ONLY",  # a standby: the primary is failing over
    "25P03": "DATABASE_TIMEOUT",  # idle_in_transaction_session_timeout
    "40003": "DATABASE_CONNECTION_LOST",  # statement_completion_unknown
    "3F000": "DATABASE_NOT_MIGRATED",
    "42P01": "DATABASE_NOT_MIGRATED",
    "42883": "DATABASE_NOT_MIGRATED",
}


def _from_state(error: asyncpg.PostgresError) -> ServiceError | None:
    state = error.sqlstate or ""
    if state.startswith("40") and state != "40003":
        return AbortedError("a concurrent change got in the way", reason="CONCURRENT_CHANGE")
    if state == "55P03":
        return AbortedError("another transaction holds the lock", reason="LOCKED")
    if state == "22023" and 'role "' in str(error):
        # The role that the pool acts as is made by the migrations.
        return _unavailable("DATABASE_NOT_MIGRATED", "the database is not migrated yet", error)
    if state == "42501" and "set role" in str(error):
        return _unavailable("DATABASE_REFUSED", "the database's login may not act as DATABASE_ROLE", error)
    if state == "42501" and error.server_source_function == "aclcheck_error":
        # As after a restore without the grants; a breach of row level security comes from elsewhere.
        _log.warning("the database refuses the role that the service acts as: %s", error)
        return _unavailable("DATABASE_REFUSED", "the database refuses the service's role", error)
    reason = _STATE_UNAVAILABLE.get(state) or _CLASS_UNAVAILABLE.get(state[:2])
    return (
        None
        if reason is None
        else _unavailable(reason, _TEXTS.get(reason, "the database is not available"), error)
    )


_TEXTS: Final = {
    "DATABASE_TIMEOUT": "the database did not answer in time",
    "DATABASE_NOT_MIGRATED": "the database is not migrated yet",
    "DATABASE_RESTARTING": "the database is restarting",
}


def _constraint(error: asyncpg.IntegrityConstraintViolationError) -> ServiceError | None:
    if isinstance(error, asyncpg.NotNullViolationError):
        return None
    name = error.constraint_name or ""
    metadata = {"constraint": name}
    if isinstance(error, asyncpg.UniqueViolationError):
        return AlreadyExistsError("it exists already", metadata=metadata)
    return FailedPreconditionError("it conflicts with what is stored", reason="CONSTRAINT", metadata=metadata)


def _unavailable(reason: str, message: str, error: BaseException) -> UnavailableError:
    _log.debug("%s: %s: %s", reason, type(error).__name__, error)
    return UnavailableError(message, reason=reason, retry_after_seconds=_RETRY_AFTER_SECONDS)
