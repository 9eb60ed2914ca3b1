"""The real front door and fan-out on a Redis database of their own, with stand-ins for the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.ingest.app import Running
from tests.integration.fanout import stand_in_ledger as fanout_ledger
from tests.integration.fanout.fanout_service import Fanout, fanout_running, fanout_settings
from tests.integration.fanout.written_log import WrittenLog
from tests.integration.ingest import stand_in_ledger as ingest_ledger
from tests.integration.ingest.front_door import ingest_running
from tests.unit.ingest.signing import Credentials


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def masters_ledger() -> AsyncIterator[ingest_ledger.StandInLedger]:
    async with ingest_ledger.standing_in() as ledger:
        ledger.add(Credentials())
        yield ledger


@pytest.fixture
async def ingest(redis_url: str, masters_ledger: ingest_ledger.StandInLedger) -> AsyncIterator[Running]:
    async with ingest_running(redis_url, masters_ledger.port) as service:
        yield service


@pytest.fixture
async def log(redis_client: Redis) -> WrittenLog:
    written = WrittenLog(redis_client)
    await written.begin()
    return written


@pytest.fixture
async def subscribers_ledger(redis_client: Redis) -> AsyncIterator[fanout_ledger.StandInLedger]:
    async with fanout_ledger.standing_in(redis_client) as ledger:
        yield ledger


@pytest.fixture
async def fanout(
    redis_url: str, log: WrittenLog, subscribers_ledger: fanout_ledger.StandInLedger
) -> AsyncIterator[Fanout]:
    async with fanout_running(fanout_settings(redis_url, subscribers_ledger)) as fanout:
        yield fanout
