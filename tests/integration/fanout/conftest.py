"""The fan-out on a real Valkey, with a stand-in for the ledger's calls and a writer of the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from redis.asyncio import Redis

from tests.integration.fanout.fanout_service import Fanout, fanout_running, fanout_settings
from tests.integration.fanout.real_peers import World, world_running
from tests.integration.fanout.stand_in_ledger import StandInLedger, standing_in
from tests.integration.fanout.written_log import WrittenLog


@pytest.fixture(params=["aio", "h2"], autouse=True)
def edge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every promise holds whichever server carries the streams."""
    monkeypatch.setenv("EDGE", request.param)
    return str(request.param)


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def log(redis_client: Redis) -> WrittenLog:
    written = WrittenLog(redis_client)
    await written.begin()
    return written


@pytest.fixture
async def ledger(redis_client: Redis) -> AsyncIterator[StandInLedger]:
    async with standing_in(redis_client) as ledger:
        yield ledger


@pytest.fixture
async def fanout(redis_url: str, log: WrittenLog, ledger: StandInLedger) -> AsyncIterator[Fanout]:
    async with fanout_running(fanout_settings(redis_url, ledger)) as fanout:
        yield fanout


@pytest.fixture
async def world(fresh_database: str, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world_running(fresh_database, redis_url, tmp_path) as world:
        yield world


def pytest_asyncio_loop_factories(config, item):
    # As in production.
    return {"uvloop": uvloop.new_event_loop}
