"""One usable connection to the log: functions loaded, durability found out, heads of open sessions read; no appends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

import hiredis

from services.common import log, stream
from services.common.errors import UnavailableError
from services.ingest import durability
from services.ingest.domain.values import LogHead
from services.ingest.durability import Barrier
from services.ingest.lanes import Lane
from services.ingest.resp import Endpoint, RespConnection
from services.ingest.settings import IngestSettings

OPEN: Final = "ecp_ingest_v2_open"
APPEND: Final = b"ecp_ingest_v2_append"
SNAPSHOT: Final = "ecp_ingest_v2_snapshot"
_LIBRARY: Final = resources.files(__package__).joinpath("functions.lua").read_bytes()
_LANES_AT_ONCE: Final = 1_000
# The first barrier of a connection may wait for replicas that are just catching up.
_FIRST_BARRIER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of a shard's keys."""

    stream: str
    heads: str
    snapshots: str
    meta: str

    @classmethod
    def of_shard(cls, shard: int) -> Keys:
        """The names that `services.common.stream` gives."""
        return cls(
            stream.log_name(shard),
            stream.heads_name(shard),
            stream.snapshots_name(shard),
            stream.meta_name(shard),
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A connection that takes appends, and the heads as they were when it was made."""

    connection: RespConnection
    barrier: Barrier
    heads: dict[Lane, LogHead] = field(default_factory=dict)


async def establish(
    endpoint: Endpoint,
    settings: IngestSettings,
    keys: Keys,
    lanes: Callable[[], Sequence[Lane]],
    on_lost: Callable[[Exception], None],
) -> Link:
    """Connects and prepares; `on_lost` is called when the connection ends, also while it is being prepared.

    Raises:
        UnavailableError: any of it failed.
    """
    connection = await endpoint.connect(on_lost, settings.redis_timeout_seconds)
    try:
        return await _prepare(connection, settings, keys, lanes)
    except hiredis.ReplyError as error:
        connection.abort(error)
        raise UnavailableError(f"the log refuses: {error}", reason="REDIS_REFUSED") from error
    except BaseException:
        connection.abort(ConnectionError("not usable"))
        raise


async def _prepare(
    connection: RespConnection, settings: IngestSettings, keys: Keys, lanes: Callable[[], Sequence[Lane]]
) -> Link:
    timeout_seconds = settings.redis_timeout_seconds
    # First what belongs to the slot: another node of a cluster refuses it, and is left alone.
    await _claim(connection, settings, keys)
    await connection.call("FUNCTION", "LOAD", "REPLACE", _LIBRARY, timeout_seconds=timeout_seconds)
    barrier = await durability.barrier(connection, settings)
    heads = await _read_heads(connection, keys, lanes(), timeout_seconds)
    if barrier.command:
        # A write, so that the barrier has something to wait for: it then covers all that the heads tell.
        now_ns = time.time_ns()
        await connection.call("HSET", keys.meta, "connected", now_ns, timeout_seconds=timeout_seconds)
        wait_seconds = timeout_seconds + _FIRST_BARRIER_SECONDS
        if not barrier.holds(await connection.call(*barrier.command, timeout_seconds=wait_seconds)):
            raise UnavailableError("the log does not confirm durability", reason="NOT_DURABLE")
    return Link(connection, barrier, heads)


async def _claim(connection: RespConnection, settings: IngestSettings, keys: Keys) -> None:
    """Sees that the log is of as many shards as we write; one that has nothing yet is told by the first login."""
    fields = (keys.meta, log.LOG_ID, log.SHARDS)
    values = await connection.call("HMGET", *fields, timeout_seconds=settings.redis_timeout_seconds)
    log.parse_meta(*values).check_shards(settings.log_shards)


async def _read_heads(
    connection: RespConnection, keys: Keys, lanes: Sequence[Lane], timeout_seconds: float
) -> dict[Lane, LogHead]:
    heads: dict[Lane, LogHead] = {}
    for start in range(0, len(lanes), _LANES_AT_ONCE):
        part = lanes[start : start + _LANES_AT_ONCE]
        ids = [lane.master_id for lane in part]
        values = await connection.call("HMGET", keys.heads, *ids, timeout_seconds=timeout_seconds)
        for lane, value in zip(part, values, strict=True):
            if value is not None:
                heads[lane] = head_of(value)
    return heads


def head_of(value: bytes) -> LogHead:
    """A head as a session needs it, from its text in the log."""
    head = log.parse_head(0, value)
    return LogHead(
        head.epoch,
        head.sequence,
        head.session_epoch,
        head.digest,
        head.snapshot_epoch,
        head.snapshot_sequence,
    )
