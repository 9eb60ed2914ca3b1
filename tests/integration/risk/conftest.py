"""The real risk service on a database of its own, with a stand-in for ledger's rpcs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.risk.risk_service import RiskClient, risk_running, risk_settings
from tests.integration.risk.stand_in_ledger import StandInLedger, standing_in


@pytest.fixture
async def ledger() -> AsyncIterator[StandInLedger]:
    async with standing_in() as ledger:
        yield ledger


@pytest.fixture
async def risk(fresh_database: str, ledger: StandInLedger) -> AsyncIterator[RiskClient]:
    async with risk_running(risk_settings(fresh_database, ledger.port)) as client:
        # A new leader checks at once; after that only when it is told.
        await client.until_first_check()
        yield client
