"""Every open stream is looked at once in each progress interval, however many there are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.common.clock import SystemClock
from services.fanout.delivery import Delivery
from services.fanout.domain.ring import Ring
from services.fanout.domain.stream import StreamLimits
from services.fanout.hub import Hub, HubLimits


class Watched:
    """A stream that counts how often it is looked at."""

    def __init__(self, number: int) -> None:
        self.stream = SimpleNamespace(
            stream_id=number, reader=SimpleNamespace(user_id=f"user-{number}"), cursors={}, opened_at_us=0
        )
        self.looks = 0

    def tick(self, _: Any) -> None:
        self.looks += 1


def hub_of(interval_seconds: float) -> Hub:
    ring = Ring(records_per_master_max=10, memory_bytes_max=10_000)
    limits = HubLimits(
        streams_max=10_000,
        streams_per_user_max=1,
        stream_age_seconds_max=None,
        progress_interval_seconds=interval_seconds,
        drain_jitter_seconds=0,
        messages=StreamLimits(16_000, 100, interval_seconds),
    )
    return Hub(ring, SystemClock(), limits)


def add(hub: Hub, count: int, first: int = 0) -> list[Watched]:
    added = [Watched(number) for number in range(first, first + count)]
    for one in added:
        hub.add(cast(Delivery, one))
    return added


async def until_looked_at(watched: Watched, times: int) -> None:
    async with asyncio.timeout(30):
        while watched.looks < times:  # noqa: ASYNC110 - nothing tells that it was looked at
            await asyncio.sleep(0)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 63, 500, 2_000])
async def test_each_stream_has_its_turn_once_in_each_interval(count: int) -> None:
    hub = hub_of(0.064)
    streams = add(hub, count)
    ticking = asyncio.create_task(hub.tick_forever())
    await until_looked_at(streams[-1], 3)
    ticking.cancel()
    assert {one.looks for one in streams} <= {2, 3, 4}


async def test_thousands_that_come_at_once_are_not_looked_at_in_one_go() -> None:
    hub = hub_of(0.064)
    (first,) = add(hub, 1)
    ticking = asyncio.create_task(hub.tick_forever())
    await until_looked_at(first, 1)
    late = add(hub, 2_000, first=1)
    looks: set[int] = set()
    async with asyncio.timeout(30):
        while not all(one.looks for one in late):
            looks.add(sum(one.looks > 0 for one in late))
            await asyncio.sleep(0)
    ticking.cancel()
    assert len(looks) > 32
