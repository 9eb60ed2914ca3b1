"""The edge, a peer of its, and what goes on beside an attack: the streams of somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.fanout_edge.attacker import Attacker, attacking
from tests.integration.fanout_edge.counting_service import Edge, count, counting_edge

OTHERS_MESSAGES = 300


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with counting_edge() as edge:
        yield edge


@pytest.fixture
async def peer(edge: Edge) -> AsyncIterator[Attacker]:
    async with attacking(edge.port) as peer:
        yield peer


@pytest.fixture
async def others(edge: Edge) -> AsyncIterator[None]:
    """Streams of somebody else, open before the attack; they must read everything."""
    async with edge.channel() as channel:
        reading = [asyncio.create_task(count(channel, OTHERS_MESSAGES, slowly=True)) for _ in range(3)]
        yield
        assert await asyncio.gather(*reading) == [OTHERS_MESSAGES] * 3
