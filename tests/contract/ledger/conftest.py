"""The real ledger for the contract tests, on a database and a Redis database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.common import stream
from tests.contract.ledger.ledger_contract import World
from tests.integration.ledger.ledger_service import LedgerClient, ledger_running, ledger_settings


@pytest.fixture
async def ledger(fresh_database: str, redis_url: str) -> AsyncIterator[LedgerClient]:
    async with ledger_running(ledger_settings(fresh_database, redis_url)) as client:
        yield client


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[stream.Redis]:
    async with stream.connect(redis_url) as client:
        yield client


@pytest.fixture
async def world(ledger: LedgerClient, fresh_database: str) -> World:
    owner, follower = await ledger.user(), await ledger.user()
    master = await ledger.master(owner)
    return World(
        ledger,
        fresh_database,
        owner,
        follower,
        master,
        await ledger.license(owner),
        await ledger.license(follower),
        await ledger.subscription(follower, master.master.master_id),
    )
