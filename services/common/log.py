"""How the signal log lies in Redis, and how to read heads and snapshots; only the front door writes them.

A shard of the log is four keys in one cluster slot (names in `services.common.stream`):

- the stream: each entry's single field `b` is a serialized `execution.ingest.v1.LogBatch`;
- the hash of heads: field = master_id in decimal, value = six words separated by single spaces, `epoch
  sequence session_epoch digest snapshot_epoch snapshot_sequence`, all decimal but the digest, which is
  32 hex digits or `-`;
- the hash of snapshots: field = master_id in decimal, value = a serialized `execution.common.v1.Snapshot`
  whose as_of.epoch is filled in;
- the hash of meta data: field `log_id`, a random name of this life of the log, lost when the log is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from execution.common.v1 import snapshot_pb2
from services.common import stream
from services.common.stream import Redis

NO_DIGEST: Final = "-"
LOG_ID: Final = b"log_id"
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


async def read_log_id(client: Redis, *, shard: int = 0) -> str | None:
    """The name of this life of the log: another one, or None, means that everything before is lost.

    Raises:
        UnavailableError: Redis does not answer.
    """
    with stream.translating():
        value = await cast(Any, client.hget(stream.meta_name(shard), LOG_ID.decode()))
    return None if value is None else value.decode("ascii")
