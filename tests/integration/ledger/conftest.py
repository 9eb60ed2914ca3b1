"""The real ledger on a database and a Redis database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.common import stream
from services.ledger.settings import LedgerSettings
from tests.integration.ledger.followed import Followed
from tests.integration.ledger.ledger_service import LedgerClient, ledger_running, ledger_settings


@pytest.fixture
def ledger_config(fresh_database: str, redis_url: str) -> LedgerSettings:
    return ledger_settings(fresh_database, redis_url)


@pytest.fixture
async def ledger(ledger_config: LedgerSettings) -> AsyncIterator[LedgerClient]:
    async with ledger_running(ledger_config) as client:
        yield client


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[stream.Redis]:
    async with stream.connect(redis_url) as client:
        yield client


@pytest.fixture
async def followed(ledger: LedgerClient) -> Followed:
    follower = await ledger.user()
    master = (await ledger.master(await ledger.user())).master
    return Followed(ledger, follower, await ledger.subscription(follower, master.master_id))
