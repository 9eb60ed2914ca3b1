"""What goes on beside an attack: the streams of somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.fanout_edge.counting_service import Edge, count

OTHERS_MESSAGES = 300


@pytest.fixture
async def others(edge: Edge) -> AsyncIterator[None]:
    """Streams of somebody else, open before the attack; they must read everything."""
    async with edge.channel() as channel:
        reading = [asyncio.create_task(count(channel, OTHERS_MESSAGES, slowly=True)) for _ in range(3)]
        yield
        assert await asyncio.gather(*reading) == [OTHERS_MESSAGES] * 3
