"""What ended connections leave behind."""

from __future__ import annotations

import asyncio
import gc

import pytest

from services.ingest.connection import Connection
from services.ingest.lanes import Lane
from services.ingest.peer import Peer
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger

WAIT_SECONDS = 30.0
CONNECTIONS = 10


def alive() -> int:
    return sum(isinstance(one, (Connection, Peer, Lane)) for one in gc.get_objects())


async def a_connection(port: int, how: str) -> None:
    if how == "stranger":
        async with connected(port):
            return
    async with logged_in(port) as master:
        master.send_signals(master.welcome.position.sequence + 1, 3)
        if how == "acknowledged":
            await master.acknowledged_up_to(master.welcome.position.sequence + 3)


@pytest.mark.parametrize("how", ["stranger", "acknowledged", "in the middle"])
async def test_an_ended_connection_leaves_nothing_to_the_garbage_collector(
    redis_url: str, ledger: StandInLedger, how: str
):
    """What it leaves has buffers, and would wait for long."""
    async with ingest_running(redis_url, ledger.port) as ingest:
        await a_connection(ingest.port, how)
        gc.collect()
        before = alive()
        gc.disable()
        try:
            for _ in range(CONNECTIONS):
                await a_connection(ingest.port, how)
            async with asyncio.timeout(WAIT_SECONDS):
                while alive() > before:  # noqa: ASYNC110 - nothing tells when an object is gone
                    await asyncio.sleep(0.02)
        finally:
            gc.enable()
