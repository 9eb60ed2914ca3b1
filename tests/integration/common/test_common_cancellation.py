"""A task that waits for Redis ends when it is asked to, at whatever moment."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from services.common import stream, tail


async def test_a_tail_ends_when_it_is_cancelled_while_it_connects(redis_url: str):
    """redis-py alone swallows about one in ten of these cancellations on Python 3.11."""
    for step in range(60):
        async with stream.connect(redis_url) as client:
            task = asyncio.create_task(follow(client))
            await asyncio.sleep(step * 0.0001)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=30)
            assert done, "the cancellation was swallowed"
            assert task.cancelled()


async def follow(client: stream.Redis) -> None:
    async with aclosing(tail.tail(client, "events", stream.BEGINNING)) as events:
        async for _ in events:
            pass
