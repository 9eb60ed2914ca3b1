"""No position is given twice: where the log forgot, an epoch begins above all that the ledger has archived."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2
from execution.ingest.v1 import log_pb2
from services.common import stream
from services.common.stream import Redis
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running, read_log
from tests.integration.ingest.raw_master import logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger

FRESH = {"authorisation_seconds": 0}
"""Every login asks the ledger."""

Place = tuple[int, int]


async def welcome(ingest: Running, acknowledged: Place = (0, 0), **fields: bool) -> Place:
    async with logged_in(ingest.port, acknowledged=acknowledged, **fields) as master:
        assert master.welcome is not None
        return master.welcome.position.epoch, master.welcome.position.sequence


async def put_head(client: Redis, epoch: int, sequence: int) -> None:
    """The log as it is after it was restored from an older file."""
    await client.hset(stream.meta_name(), mapping={"log_id": "restored", "shards": 1})
    await client.hset(stream.heads_name(), "1", f"{epoch} {sequence} 1 - 0 0")


async def last_run(client: Redis) -> log_pb2.LogRun:
    return (await read_log(client))[-1]


async def test_a_log_and_an_outbox_that_lost_everything_begin_above_the_archive(
    redis_url: str, ledger: StandInLedger, log_client: Redis
) -> None:
    ledger.archived[1] = (3, 900)
    async with ingest_running(redis_url, ledger.port) as ingest:
        assert await welcome(ingest) == (4, 900)
        start = await last_run(log_client)
        assert start.epoch_start.reason == position_pb2.GAP_REASON_LOG_LOST
        assert (start.epoch_start.previous.epoch, start.epoch_start.previous.sequence) == (0, 0)
        # It goes on there, and begins no further one.
        assert await welcome(ingest) == (4, 900)


async def test_a_new_master_begins_at_the_first_epoch(redis_url: str, ledger: StandInLedger) -> None:
    async with ingest_running(redis_url, ledger.port) as ingest:
        assert await welcome(ingest) == (1, 0)


@pytest.mark.parametrize("says_so", [True, False], ids=["says that it lost its outbox", "knows of nothing"])
async def test_a_restored_log_and_a_lost_outbox_begin_above_the_archive(
    redis_url: str, ledger: StandInLedger, log_client: Redis, says_so: bool
) -> None:
    await put_head(log_client, 1, 100)
    ledger.archived[1] = (2, 500)
    async with ingest_running(redis_url, ledger.port) as ingest:
        assert await welcome(ingest, begin_epoch=says_so) == (3, 500)


async def test_a_restored_log_and_a_restored_outbox_begin_above_the_archive(
    redis_url: str, ledger: StandInLedger, log_client: Redis
) -> None:
    await put_head(log_client, 1, 100)
    ledger.archived[1] = (5, 900)
    async with ingest_running(redis_url, ledger.port) as ingest:
        # The outbox goes on behind what it remembers: its signals come again, and in an epoch that is nobody else's.
        assert await welcome(ingest, (1, 300)) == (6, 300)


async def test_an_archive_that_is_ahead_of_the_log_is_no_loss_to_a_master_with_its_outbox(
    redis_url: str, ledger: StandInLedger, log_client: Redis
) -> None:
    """A failover loses what was archived and not yet acknowledged; the outbox has it and sends it again."""
    await put_head(log_client, 1, 100)
    ledger.archived[1] = (1, 105)
    async with ingest_running(redis_url, ledger.port) as ingest:
        assert await welcome(ingest, (1, 100)) == (1, 100)


async def test_an_archive_that_is_behind_changes_nothing(
    redis_url: str, ledger: StandInLedger, log_client: Redis
) -> None:
    await put_head(log_client, 2, 100)
    ledger.archived[1] = (2, 80)
    async with ingest_running(redis_url, ledger.port, **FRESH) as ingest:
        assert await welcome(ingest) == (2, 100)
        assert await welcome(ingest, begin_epoch=True) == (3, 100)
