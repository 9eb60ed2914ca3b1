"""The signal log as the archiver sees it: one consumer of one group, shared by whichever process leads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import redis.exceptions

from services.common import log, stream
from services.common.consumer_group import ConsumerGroup
from services.common.stream import EntryId, Redis

CONSUMER: Final = "archiver"
"""All processes read under this one name, so that what a dead one had taken is pending for the next at once."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the archive is."""

    archived_before: EntryId
    """Every entry before this one is archived."""
    entries_read: int | None
    """How many entries the group was given since the stream began; None when Redis lost count."""


class Log:
    """One shard of the log. All calls may be repeated and raise UnavailableError while Redis is away."""

    def __init__(self, client: Redis, *, shard: int = 0) -> None:
        self.shard = shard
        self.name = stream.log_name(shard)
        self.group = ConsumerGroup(client, self.name, stream.ARCHIVER_GROUP, CONSUMER)
        self._client = client

    async def check_shards(self, shards: int) -> None:
        """Sees that the log is of so many shards; raises UnavailableError (reason LOG_SHARDS_DIFFER) if it is not."""
        (await log.read_meta(self._client, shard=self.shard)).check_shards(shards)

    async def state(self) -> stream.StreamState | None:
        """The state of the stream; None when there is none."""
        return await stream.read_state(self._client, self.name)

    async def now_ms(self) -> int:
        """Redis's clock, in milliseconds since 1970."""
        with stream.translating():
            seconds, microseconds = await self._client.time()
        return int(seconds) * 1_000 + int(microseconds) // 1_000

    async def progress(self) -> Progress | None:
        """How far the archive is; None when there is no group.

        What is given to the group after the first question has higher ids than its answer, so what that answer
        covers and is not pending by the second question was acknowledged, which means committed.
        """
        group = await self.group.state()
        if group is None:
            return None
        oldest = await self.group.oldest_pending()
        delivered = EntryId(group.last_delivered.ms, group.last_delivered.number + 1)
        before = delivered if oldest is None else min(oldest, delivered)
        return Progress(before, group.entries_read)

    async def trim(self, before: EntryId, *, entries_max: int) -> int:
        """Removes entries before `before`, at most about so many, whole nodes of the stream only; how many it was."""
        with stream.translating():
            answer: Any = await self._client.xtrim(
                self.name, minid=str(before), approximate=True, limit=entries_max
            )
        return int(answer)

    async def pending(self) -> int:
        """How many entries were read and not acknowledged; 0 when there is no group."""
        with stream.translating():
            try:
                answer: Any = await self._client.xpending(self.name, stream.ARCHIVER_GROUP)
            except redis.exceptions.ResponseError as error:
                if str(error).startswith("NOGROUP"):
                    return 0
                raise
        return int(answer["pending"])

    async def rewind(self) -> EntryId:
        """Lets the group read the whole log again from its oldest entry; the newest id that there is now."""
        await self.group.ensure()
        last = await stream.last_id(self._client, self.name)
        with stream.translating():
            await self._client.xgroup_setid(self.name, stream.ARCHIVER_GROUP, id="0")
        return last
