"""The real front door on a Redis database of its own, with a stand-in for ledger's rpc."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.common import stream
from services.common.stream import Redis
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import Credentials
from tests.integration.ingest.stand_in_ledger import StandInLedger, standing_in


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
