"""Redis for the services: names, connections, failures classified once; it knows no payloads."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio
import redis.exceptions
from prometheus_client import Counter
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.common import tasks
from services.common.errors import ServiceError, UnavailableError
from services.common.redis_location import LocatedConnection, LocatedSslConnection, Location
from services.common.settings import ServiceSettings, require_secret

_log = logging.getLogger(__name__)

Redis = redis.asyncio.Redis

FIELD: Final = b"b"
"""The one field of every entry that we write."""
LEDGER_EVENTS: Final = "ledger:events"
ARCHIVER_GROUP: Final = "archiver"
_RETRY_AFTER_SECONDS: Final = 0.5
_HEALTH_CHECK_SECONDS: Final = 15
# Redis ends blocking reads up to a tick (100 ms) late.
_BLOCK_SHARE: Final = 0.6

FAILURES = Counter("redis_failures_total", "Redis calls that failed, by the error they became.", ("reason",))


def log_name(shard: int = 0) -> str:
    """The stream of a shard of the log."""
    return "signals:ingest" if shard == 0 else f"signals:ingest:{shard}"


def heads_name(shard: int = 0) -> str:
    """The hash of masters' heads; in the same cluster slot as the shard's stream, as the other two are."""
    return f"{{{log_name(shard)}}}:heads"


def snapshots_name(shard: int = 0) -> str:
    """The hash of masters' latest snapshots."""
    return f"{{{log_name(shard)}}}:snapshots"


def meta_name(shard: int = 0) -> str:
    """The hash that says which life of the log this is."""
    return f"{{{log_name(shard)}}}:meta"


@dataclass(frozen=True, slots=True, order=True)
class EntryId:
    """The id of a stream entry; ordered as Redis orders them."""

    ms: int
    number: int = 0

    @classmethod
    def parse(cls, text: str | bytes) -> EntryId:
        """Reads `ms-number` or `ms`.

        Raises:
            ValueError: neither.
        """
        if isinstance(text, bytes):
            text = text.decode("ascii")
        ms, _, number = text.partition("-")
        return cls(int(ms), int(number or 0))

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}"


BEGINNING: Final = EntryId(0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its id and its field `b`; `payload` is None when it was trimmed while pending."""

    id: EntryId
    payload: bytes | None


def shard_of(master_id: int, shards: int) -> int:
    """The shard that holds a master's stream, of a log of so many shards: the remainder of the division.

    The number of shards is fixed for the life of a log, so a master never moves (see docs/log.md).
    """
    return master_id % shards


@asynccontextmanager
async def connect(
    source: ServiceSettings | str,
    *,
    key: str = LEDGER_EVENTS,
    timeout_seconds: float = 5.0,
    connections_max: int = 32,
) -> AsyncIterator[Redis]:
    """A client on `settings.redis_url` (its limits come from the settings then) or on a URL, whose forms
    `services.common.redis_location` tells. In a cluster it reaches the node that holds `key`, and no other.

    Opens nothing yet. Answers are bytes. Commands are never retried here, because a write that lost its
    answer may have happened; wrap calls in `translating`. A command that waits for one of the
    `connections_max` connections, connects or waits for its answer for longer than `timeout_seconds` fails.

    Raises:
        ConfigurationError: REDIS_URL is not set or is no such URL.
    """
    url = source if isinstance(source, str) else require_secret(source.redis_url, "REDIS_URL")
    if not isinstance(source, str):
        timeout_seconds, connections_max = source.redis_timeout_seconds, source.redis_connections_max
    client = Redis.from_pool(_pool(url, key, timeout_seconds, connections_max))
    try:
        yield client
    finally:
        await client.aclose()


def _pool(url: str, key: str, timeout_seconds: float, connections_max: int) -> BlockingConnectionPool:
    location = Location.parse(url)
    options: dict[str, Any] = {
        "max_connections": connections_max,
        "timeout": timeout_seconds,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "health_check_interval": _HEALTH_CHECK_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": False,
        **location.options,
    }
    if (locator := location.locator(key)) is not None:
        options["connection_class"] = LocatedSslConnection if location.is_tls else LocatedConnection
        options["locator"] = locator
    return BlockingConnectionPool(**options)


@contextmanager
def translating() -> Iterator[None]:
    """Turns what Redis and the network raise inside into service errors.

    Raises:
        UnavailableError: Redis is away, loading, failing over, read-only, full, or slower than its time-out.
        What else it
            answers (a wrong command, a wrong type, an error of our own function) passes through as
            ResponseError.
    """
    cancellations = tasks.cancellations()
    try:
        yield
    except (redis.exceptions.RedisError, OSError, TimeoutError, RuntimeError) as error:
        classified = classify(error)
        if classified is None:
            raise
        if tasks.is_being_cancelled():
            raise asyncio.CancelledError from error
        FAILURES.labels(classified.reason).inc()
        raise classified from error
    if tasks.cancellations() > cancellations:
        # redis-py sends through asyncio.wait_for, and before Python 3.12 that swallows a cancellation which
        # comes in the moment of success: the task would never end.
        raise asyncio.CancelledError


_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (redis.exceptions.AuthenticationError, "REDIS_REFUSED"),
    (redis.exceptions.AuthorizationError, "REDIS_REFUSED"),
    (redis.exceptions.NoPermissionError, "REDIS_REFUSED"),
    (redis.exceptions.BusyLoadingError, "REDIS_LOADING"),
    (redis.exceptions.OutOfMemoryError, "REDIS_OUT_OF_MEMORY"),
    (redis.exceptions.ReadOnlyError, "REDIS_READ_ONLY"),
    (redis.exceptions.ClusterError, "REDIS_FAILING_OVER"),
    (redis.exceptions.TryAgainError, "REDIS_FAILING_OVER"),
    (redis.exceptions.AskError, "REDIS_FAILING_OVER"),
    (redis.exceptions.TimeoutError, "REDIS_TIMEOUT"),
    (TimeoutError, "REDIS_TIMEOUT"),
    (redis.exceptions.ConnectionError, "REDIS_UNREACHABLE"),
    (redis.exceptions.InvalidResponse, "REDIS_UNREACHABLE"),
    (OSError, "REDIS_UNREACHABLE"),
)
# Answers that redis-py has no class for.
_PREFIXES: Final = {
    "OOM": "REDIS_OUT_OF_MEMORY",
    "MISCONF": "REDIS_READ_ONLY",
    "NOREPLICAS": "REDIS_FAILING_OVER",
    "MASTERDOWN": "REDIS_FAILING_OVER",
    "CLUSTERDOWN": "REDIS_FAILING_OVER",
    "LOADING": "REDIS_LOADING",
    "READONLY": "REDIS_READ_ONLY",
    "UNBLOCKED": "REDIS_FAILING_OVER",
    "BUSY": "REDIS_TIMEOUT",
}
# As it was answered, or with what redis-py writes before an answer within a pipeline.
_PREFIX: Final = re.compile(r"(?:Command # .* of pipeline caused error: (?:\(['\"])?)?([A-Z]+)\b", re.DOTALL)

_CLOSED: Final = "handler is closed"


def classify(error: BaseException) -> ServiceError | None:
    """The service error that a failure of Redis stands for; None when it is a mistake of ours."""
    if isinstance(error, RuntimeError):
        # uvloop's word for a write to a connection that was reset since; redis-py lets it through.
        return _unavailable("REDIS_UNREACHABLE") if _CLOSED in str(error) else None
    if isinstance(error, redis.exceptions.ConnectionError) and isinstance(error.__cause__, TimeoutError):
        # redis-py has no class for this: BlockingConnectionPool had no free connection in time.
        return _unavailable("REDIS_POOL_EXHAUSTED")
    for error_class, reason in _REASONS:
        if isinstance(error, error_class):
            return _unavailable(reason)
    if isinstance(error, redis.exceptions.ResponseError):
        prefix = _PREFIX.match(str(error))
        if prefix is not None and prefix[1] in _PREFIXES:
            return _unavailable(_PREFIXES[prefix[1]])
    return None


def _unavailable(reason: str) -> UnavailableError:
    message = f"the signal log is not available ({reason.lower().removeprefix('redis_').replace('_', ' ')})"
    return UnavailableError(message, reason=reason, retry_after_seconds=_RETRY_AFTER_SECONDS)


async def last_id(client: Redis, name: str) -> EntryId:
    """The id of the newest entry that the stream ever had, 0-0 for a stream that does not exist.

    Raises:
        UnavailableError: Redis does not answer.
    """
    state = await read_state(client, name)
    return BEGINNING if state is None else state.last


@dataclass(frozen=True, slots=True)
class StreamState:
    """What XINFO says: newest id ever given, oldest entry still there, how many were added and are left."""

    last: EntryId
    first: EntryId | None
    added: int
    length: int

    @property
    def trimmed(self) -> int:
        """How many entries were removed so far."""
        return self.added - self.length


async def read_state(client: Redis, name: str) -> StreamState | None:
    """The state of a stream, or None if it does not exist.

    Raises:
        UnavailableError: Redis does not answer.
    """
    with translating():
        try:
            info: dict[str, Any] = await client.xinfo_stream(name)
        except redis.exceptions.ResponseError as error:
            if "no such key" in str(error):
                return None
            raise
    first = info["first-entry"]
    return StreamState(
        last=EntryId.parse(info["last-generated-id"]),
        first=None if first is None or first[0] is None else EntryId.parse(first[0]),
        added=int(info["entries-added"]),
        length=int(info["length"]),
    )


def block_ms_of(client: Redis, block_ms: int) -> int:
    """`block_ms`, cut so that the answer to a blocking read comes before the client's time-out."""
    timeout_seconds: float = client.connection_pool.connection_kwargs["socket_timeout"]
    return min(block_ms, max(1, int(timeout_seconds * 1_000 * _BLOCK_SHARE)))


def entries_of(raw: Iterable[Sequence[Any]]) -> tuple[Entry, ...]:
    """Entries from redis-py's shape of them: (id, {field: value})."""
    return tuple(Entry(EntryId.parse(item[0]), (item[1] or {}).get(FIELD)) for item in raw)
