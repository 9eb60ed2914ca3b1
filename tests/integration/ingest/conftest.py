"""The real front door on a Redis database of its own, with a stand-in for ledger's rpc."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import uvloop

from services.common import stream
from services.common.stream import Redis
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.stand_in_ledger import StandInLedger, standing_in
from tests.unit.ingest.signing import Credentials


@pytest.fixture
async def ledger() -> AsyncIterator[StandInLedger]:
    async with standing_in() as ledger:
        ledger.add(Credentials())
        yield ledger


@pytest.fixture
async def ingest(redis_url: str, ledger: StandInLedger) -> AsyncIterator[Running]:
    async with ingest_running(redis_url, ledger.port) as service:
        yield service


@pytest.fixture
async def log_client(redis_url: str) -> AsyncIterator[Redis]:
    async with stream.connect(redis_url) as client:
        yield client


def pytest_asyncio_loop_factories(config, item):
    # As in production.
    return {"uvloop": uvloop.new_event_loop}
