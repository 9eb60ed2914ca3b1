"""Servers of the test's own, which it may kill."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from mesh.embedded import RedisServer
from mesh.embedded import redis as embedded_redis
from tests.integration.fanout.stand_in_ledger import StandInLedger, standing_in


@pytest.fixture
async def own_redis() -> AsyncIterator[RedisServer]:
    async with embedded_redis(appendfsync="always") as server:
        yield server


@pytest.fixture
async def own_client(own_redis: RedisServer) -> AsyncIterator[Redis]:
    retry = Retry(ConstantBackoff(0.02), 500)
    async with Redis.from_url(own_redis.url, retry=retry, retry_on_error=[RedisConnectionError]) as client:
        yield client


@pytest.fixture
async def own_ledger(own_client: Redis) -> AsyncIterator[StandInLedger]:
    async with standing_in(own_client) as ledger:
        yield ledger
