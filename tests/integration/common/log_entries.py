"""The stream that the tests of this folder write to, and how."""

from __future__ import annotations

from services.common import stream
from services.common.stream import EntryId, Redis

NAME = stream.log_name()


async def append(client: Redis, *payloads: bytes) -> list[EntryId]:
    return [EntryId.parse(await client.xadd(NAME, {stream.FIELD: payload})) for payload in payloads]
