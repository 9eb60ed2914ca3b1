"""The signal log as the archiver sees it: one consumer of one group, shared by whichever process leads."""

from __future__ import annotations

from typing import Any, Final

import redis.exceptions

from services.common import stream
from services.common.consumer_group import ConsumerGroup
from services.common.stream import Redis

CONSUMER: Final = "archiver"
"""All processes read under this one name, so that what a dead one had taken is pending for the next at once."""


class Log:
    """One shard of the log. All calls may be repeated and raise UnavailableError while Redis is away."""

    def __init__(self, client: Redis, *, shard: int = 0) -> None:
        self.name = stream.log_name(shard)
        self.group = ConsumerGroup(client, self.name, stream.ARCHIVER_GROUP, CONSUMER)
        self._client = client

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

    async def rewind(self) -> stream.EntryId:
        """Lets the group read the whole log again from its oldest entry; the newest id that there is now."""
        await self.group.ensure()
        last = await stream.last_id(self._client, self.name)
        with stream.translating():
            await self._client.xgroup_setid(self.name, stream.ARCHIVER_GROUP, id="0")
        return last
