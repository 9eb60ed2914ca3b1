"""How the signal log lies in Redis, and how to read heads and snapshots; only the front door writes them.

A shard of the log is four keys in one cluster slot (names in `services.common.stream`):

- the stream: each entry's single field `b` is a serialized `execution.ingest.v1.LogBatch`;
- the hash of heads: field = master_id in decimal, value = six words separated by single spaces, `epoch
  sequence session_epoch digest snapshot_epoch snapshot_sequence`, all decimal but the digest, which is
  32 hex digits or `-`;
- the hash of snapshots: field = master_id in decimal, value = a serialized `execution.common.v1.Snapshot`
  whose as_of.epoch is filled in;
- the hash of meta data: field `log_id`, a random name of this life of the log, lost when the log is; field
  `shards`, of how many shards the log is, in decimal (a log that does not say is of one).

A master's stream is in the shard that `services.common.stream.shard_of` tells.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from execution.common.v1 import snapshot_pb2
from services.common import stream
from services.common.errors import UnavailableError
from services.common.settings import ServiceSettings
from services.common.stream import Redis

LOG_ID: Final = b"log_id"
SHARDS: Final = b"shards"
SHARDS_DIFFER: Final = "LOG_SHARDS_DIFFER"
_SCAN_COUNT: Final = 500


@dataclass(frozen=True, slots=True)
class Head:
    """Where one master's stream stands in the log."""

    master_id: int
    epoch: int
    sequence: int
    session_epoch: int
    digest: str
    """First 16 bytes of the SHA-256 of the last signal, in hex; `-` when the last position is no signal."""
    snapshot_epoch: int
    snapshot_sequence: int

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, sequence) of the last position."""
        return self.epoch, self.sequence

    @property
    def snapshot(self) -> tuple[int, int] | None:
        """(epoch, sequence) that the latest snapshot is as of, or None when there is none."""
        return (self.snapshot_epoch, self.snapshot_sequence) if self.snapshot_epoch else None


def parse_head(master_id: int | str | bytes, value: bytes | str) -> Head:
    """One field of the hash of heads.

    Raises:
        ValueError: it is not a head.
    """
    words = (value.decode("ascii") if isinstance(value, bytes) else value).split(" ")
    if len(words) != 6:
        raise ValueError(f"a head has 6 words, not {len(words)}")
    epoch, sequence, session_epoch, digest, snapshot_epoch, snapshot_sequence = words
    return Head(
        int(master_id),
        int(epoch),
        int(sequence),
        int(session_epoch),
        digest,
        int(snapshot_epoch),
        int(snapshot_sequence),
    )


async def read_head(client: Redis, master_id: int, *, shard: int = 0) -> Head | None:
    """The head of one master, or None when the log has nothing of it.

    Raises:
        UnavailableError: Redis does not answer.
    """
    return (await read_heads(client, [master_id], shard=shard)).get(master_id)


async def read_heads(client: Redis, master_ids: Iterable[int], *, shard: int = 0) -> dict[int, Head]:
    """The heads of those of the masters that the log knows, by master_id.

    Raises:
        UnavailableError: Redis does not answer.
    """
    wanted = list(master_ids)
    if not wanted:
        return {}
    with stream.translating():
        values = await cast(Any, client.hmget(stream.heads_name(shard), [str(one) for one in wanted]))
    return {
        master_id: parse_head(master_id, value)
        for master_id, value in zip(wanted, values, strict=True)
        if value is not None
    }


async def scan_heads(client: Redis, *, shard: int = 0) -> AsyncIterator[Head]:
    """All heads, in no order, read in pieces; one that is written meanwhile may be missed or come twice.

    Raises:
        UnavailableError: Redis does not answer.
    """
    cursor = 0
    while True:
        with stream.translating():
            cursor, page = await cast(Any, client.hscan(stream.heads_name(shard), cursor, count=_SCAN_COUNT))
        for master_id, value in page.items():
            yield parse_head(master_id, value)
        if not cursor:
            return


async def read_snapshot(client: Redis, master_id: int, *, shard: int = 0) -> snapshot_pb2.Snapshot | None:
    """The latest snapshot of a master, or None when there is none.

    Raises:
        UnavailableError: Redis does not answer.
    """
    with stream.translating():
        value = await cast(Any, client.hget(stream.snapshots_name(shard), str(master_id)))
    return None if value is None else snapshot_pb2.Snapshot.FromString(value)


@dataclass(frozen=True, slots=True)
class Meta:
    """Which log this is."""

    log_id: str | None
    """None: nothing was ever written to it."""
    shards: int | None
    """Of how many shards it is; None while nobody has said."""

    def check_shards(self, shards: int) -> None:
        """Sees that the log is of so many shards: with another number, masters would be looked for in the wrong one.

        Raises:
            UnavailableError: it is not (reason LOG_SHARDS_DIFFER).
        """
        if self.shards is not None and self.shards != shards:
            raise UnavailableError(
                f"the log is of {self.shards} shards and LOG_SHARDS is {shards}", reason=SHARDS_DIFFER
            )


def parse_meta(log_id: bytes | None, shards: bytes | None) -> Meta:
    """The fields `log_id` and `shards` of the hash of meta data."""
    if shards is None:
        # Logs of one shard need not say so.
        return Meta(None, None) if log_id is None else Meta(log_id.decode("ascii"), 1)
    return Meta(None if log_id is None else log_id.decode("ascii"), int(shards))


async def read_meta(client: Redis, *, shard: int = 0) -> Meta:
    """Which log this is.

    Raises:
        UnavailableError: Redis does not answer.
    """
    with stream.translating():
        values = await cast(Any, client.hmget(stream.meta_name(shard), [LOG_ID, SHARDS]))
    return parse_meta(*values)


class SignalLog:
    """All shards of the log, each with a client that reaches it. Calls raise UnavailableError while Redis is away."""

    def __init__(self, clients: Sequence[Redis]) -> None:
        self._clients = tuple(clients)

    @property
    def shards(self) -> range:
        """The numbers of the shards."""
        return range(len(self._clients))

    def client(self, shard: int) -> Redis:
        """The client of a shard."""
        return self._clients[shard]

    def shard_of(self, master_id: int) -> int:
        """The shard of a master."""
        return stream.shard_of(master_id, len(self._clients))

    async def read_head(self, master_id: int) -> Head | None:
        """See `read_head`."""
        shard = self.shard_of(master_id)
        return await read_head(self._clients[shard], master_id, shard=shard)

    async def read_heads(self, master_ids: Iterable[int]) -> dict[int, Head]:
        """See `read_heads`; one shard after the other."""
        by_shard: dict[int, list[int]] = {}
        for master_id in master_ids:
            by_shard.setdefault(self.shard_of(master_id), []).append(master_id)
        found: dict[int, Head] = {}
        for shard, ids in by_shard.items():
            found |= await read_heads(self._clients[shard], ids, shard=shard)
        return found

    async def scan_heads(self) -> AsyncIterator[Head]:
        """See `scan_heads`."""
        for shard, client in enumerate(self._clients):
            async for head in scan_heads(client, shard=shard):
                yield head

    async def read_snapshot(self, master_id: int) -> snapshot_pb2.Snapshot | None:
        """See `read_snapshot`."""
        shard = self.shard_of(master_id)
        return await read_snapshot(self._clients[shard], master_id, shard=shard)


@asynccontextmanager
async def connect(settings: ServiceSettings) -> AsyncIterator[SignalLog]:
    """The log that `settings.redis_url` and `settings.log_shards` name; opens nothing yet.

    Raises:
        ConfigurationError: REDIS_URL is not set or is no such URL.
    """
    async with AsyncExitStack() as stack:
        yield SignalLog(
            [
                await stack.enter_async_context(stream.connect(settings, key=stream.log_name(shard)))
                for shard in range(settings.log_shards)
            ]
        )
