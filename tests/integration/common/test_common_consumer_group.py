"""The consumer group: what was read stays pending until it is acknowledged, whoever dies."""

from __future__ import annotations

import asyncio

import pytest

from services.common import errors, stream
from services.common.consumer_group import ConsumerGroup
from services.common.stream import BEGINNING, Redis
from tests.integration.common.log_entries import NAME, append


@pytest.fixture
def group(client: Redis) -> ConsumerGroup:
    return ConsumerGroup(client, NAME, stream.ARCHIVER_GROUP, "one")


async def test_a_group_is_made_once(group: ConsumerGroup) -> None:
    assert await group.ensure() is True
    assert await group.ensure() is False
    assert await group.read_new(count=10) == ()


async def test_entries_are_read_kept_pending_and_acknowledged(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    ids = await append(client, b"1", b"2", b"3")
    first = await group.read_new(count=2)
    assert [entry.payload for entry in first] == [b"1", b"2"]
    assert await group.read_pending(count=10) == first
    assert await group.read_pending(count=10, after=ids[0]) == first[1:]
    assert await group.acknowledge([ids[0]]) == 1
    assert await group.acknowledge([ids[0]]) == 0
    assert await group.acknowledge([]) == 0
    assert await group.read_pending(count=10) == first[1:]
    assert [entry.payload for entry in await group.read_new(count=10)] == [b"3"]


async def test_reading_waits_for_the_first_entry(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    waiting = asyncio.create_task(group.read_new(count=10, block_ms=2_000))
    await asyncio.sleep(0.05)
    await append(client, b"1")
    assert [entry.payload for entry in await waiting] == [b"1"]


async def test_what_a_dead_consumer_took_is_taken_over(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    await append(client, b"1", b"2")
    taken = await group.read_new(count=10)
    other = ConsumerGroup(client, NAME, stream.ARCHIVER_GROUP, "two")
    assert await other.claim_stale(min_idle_ms=3_600_000, count=10) == ()
    assert await other.claim_stale(min_idle_ms=0, count=10) == taken
    assert await group.read_pending(count=10) == ()


async def test_pending_entries_that_were_trimmed_are_told_without_payload(
    client: Redis, group: ConsumerGroup
) -> None:
    await group.ensure()
    ids = await append(client, b"1", b"2")
    await group.read_new(count=10)
    await client.xtrim(NAME, maxlen=1, approximate=False)
    pending = await group.read_pending(count=10)
    assert [(entry.id, entry.payload) for entry in pending] == [(ids[0], None), (ids[1], b"2")]


async def test_a_group_that_is_gone_is_made_again(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    await client.delete(NAME)
    assert await group.read_new(count=10) == ()
    await append(client, b"1")
    assert [entry.payload for entry in await group.read_new(count=10)] == [b"1"]
    await client.delete(NAME)
    assert await group.claim_stale(min_idle_ms=0, count=10) == ()


async def test_a_group_without_a_server_is_unavailable() -> None:
    async with stream.connect("redis://127.0.0.1:1/0") as client:
        group = ConsumerGroup(client, NAME, "g", "c")
        for attempt in (group.ensure(), group.read_new(count=1), group.acknowledge([BEGINNING])):
            with pytest.raises(errors.UnavailableError):
                await attempt
