"""One member of a consumer group: reads, takes over, acknowledges; it does not decide when to do which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis.exceptions

from services.common import stream
from services.common.stream import BEGINNING, Entry, EntryId, Redis


@dataclass(frozen=True, slots=True)
class GroupState:
    """The newest entry that was given to a consumer, and how many were given since the stream began, if known."""

    last_delivered: EntryId
    entries_read: int | None


class ConsumerGroup:
    """Reads a stream as `consumer` of `group`. Every failure of Redis is UnavailableError; all calls may be
    repeated.

    Order of work: `ensure`; `read_pending` until it gives nothing (what this consumer had taken before it
    crashed); then `read_new`, and now and then `claim_stale` (what others had taken before they crashed);
    `acknowledge` when done.
    """

    def __init__(self, client: Redis, name: str, group: str, consumer: str) -> None:
        self._client = client
        self._name = name
        self._group = group
        self._consumer = consumer

    async def ensure(self, *, after: EntryId = BEGINNING) -> bool:
        """Makes the group (and the stream) if it is not there; True if it made it."""
        with stream.translating():
            try:
                await self._client.xgroup_create(self._name, self._group, id=str(after), mkstream=True)
            except redis.exceptions.ResponseError as error:
                if str(error).startswith("BUSYGROUP"):
                    return False
                raise
        return True

    async def read_new(self, *, count: int, block_ms: int | None = None) -> tuple[Entry, ...]:
        """Entries that no consumer had yet; waits up to `block_ms` for the first (None: not at all)."""
        block_ms = None if block_ms is None else stream.block_ms_of(self._client, block_ms)
        return await self._read(">", count, block_ms)

    async def read_pending(self, *, count: int, after: EntryId = BEGINNING) -> tuple[Entry, ...]:
        """Entries that this consumer took and did not acknowledge yet; trimmed ones have no payload."""
        return await self._read(str(after), count, None)

    async def claim_stale(self, *, min_idle_ms: int, count: int) -> tuple[Entry, ...]:
        """Takes over entries that some consumer took more than `min_idle_ms` ago and did not acknowledge."""
        with stream.translating():
            answer: Any = await self._with_group(
                lambda: self._client.xautoclaim(
                    self._name,
                    self._group,
                    self._consumer,
                    min_idle_time=min_idle_ms,
                    start_id="0-0",
                    count=count,
                )
            )
        return stream.entries_of(answer[1])

    async def acknowledge(self, ids: Iterable[EntryId]) -> int:
        """Tells that these are done; how many had been pending. Call it only after the work is durable."""
        texts = [str(one) for one in ids]
        if not texts:
            return 0
        with stream.translating():
            return int(await self._client.xack(self._name, self._group, *texts))

    async def state(self) -> GroupState | None:
        """How far the group is, or None if it is not there."""
        with stream.translating():
            try:
                groups: Any = await self._client.xinfo_groups(self._name)
            except redis.exceptions.ResponseError as error:
                if "no such key" in str(error):
                    return None
                raise
        for group in groups:
            if group["name"] == self._group.encode():
                read = group.get("entries-read")
                return GroupState(
                    EntryId.parse(group["last-delivered-id"]), None if read is None else int(read)
                )
        return None

    async def oldest_pending(self) -> EntryId | None:
        """The oldest entry that was taken and not acknowledged, or None."""
        with stream.translating():
            try:
                answer: Any = await self._client.xpending(self._name, self._group)
            except redis.exceptions.ResponseError as error:
                if str(error).startswith("NOGROUP"):
                    return None
                raise
        return EntryId.parse(answer["min"]) if answer["pending"] else None

    async def _read(self, start: str, count: int, block_ms: int | None) -> tuple[Entry, ...]:
        with stream.translating():
            answer: Any = await self._with_group(
                lambda: self._client.xreadgroup(
                    self._group, self._consumer, {self._name: start}, count=count, block=block_ms
                )
            )
        return stream.entries_of(answer[0][1]) if answer else ()

    async def _with_group(self, command: Any) -> Any:
        """Runs the command; makes the group first when Redis came back without it."""
        try:
            return await command()
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
        await self.ensure()
        return await command()
