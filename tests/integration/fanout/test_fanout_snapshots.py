"""Beginning with a snapshot: the stored one, a new one, or none."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from redis.asyncio import Redis

from execution.common.v1 import snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common import stream
from tests.integration.fanout.fanout_service import (
    Fanout,
    fanout_running,
    fanout_settings,
    from_now,
    from_snapshot,
    place,
)
from tests.integration.fanout.stand_in_ingest import StandInIngest, ingest_standing_in
from tests.integration.fanout.stand_in_ledger import StandInLedger
from tests.integration.fanout.written_log import WrittenLog


@pytest.fixture
async def ingest() -> AsyncIterator[StandInIngest]:
    async with ingest_standing_in() as ingest:
        yield ingest


@pytest.fixture
async def asking(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, ingest: StandInIngest
) -> AsyncIterator[Fanout]:
    """A fan-out that may ask masters for snapshots."""
    ledger.add_user("token", 1, 2)
    loaded = fanout_settings(redis_url, ledger, ingest_address=f"127.0.0.1:{ingest.port}", page_records_max=5)
    async with fanout_running(loaded) as fanout:
        yield fanout


async def test_a_stored_snapshot_is_used_and_nobody_is_asked(
    asking: Fanout, log: WrittenLog, ingest: StandInIngest
) -> None:
    await log.signals(1, 5)
    await log.snapshot(1)
    await log.signals(1, 3)
    async with asking.subscribe("token", from_snapshot(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).sequences == [6, 7, 8])
    assert ingest.asked == []


async def test_the_master_is_asked_where_none_is_stored(
    asking: Fanout, log: WrittenLog, ingest: StandInIngest
) -> None:
    await log.signals(1, 5)
    ingest.on_request = log.snapshot
    async with asking.subscribe("token", from_snapshot(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).snapshots)
        assert subscriber.of(1).held == (1, 5)
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_SYNCED in subscriber.of(1).states)
    assert ingest.asked == [1]


async def test_many_who_wait_ask_once(
    asking: Fanout, log: WrittenLog, ingest: StandInIngest, ledger: StandInLedger
) -> None:
    await log.signals(1, 5)
    subscribers = [asking.subscribe("token", from_snapshot(1)) for _ in range(8)]
    try:
        for one in subscribers:
            await one.begun()
        await log.snapshot(1)
        for one in subscribers:
            await one.until(lambda s=one: s.of(1).snapshots)
    finally:
        for one in subscribers:
            await one.__aexit__()
    assert ingest.asked == [1]


@pytest.mark.parametrize("trouble", ["a hole", "a new epoch"])
async def test_a_snapshot_from_before_a_hole_is_replaced_by_a_new_one(
    asking: Fanout, log: WrittenLog, ingest: StandInIngest, trouble: str
) -> None:
    await log.signals(1, 5)
    await log.snapshot(1)
    if trouble == "a hole":
        await log.gap(1, 2)
    else:
        await log.epoch_start(1, 8)
    await log.signals(1, 2)
    async with asking.subscribe("token", from_now(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).held == log.heads[1])
    ingest.on_request = log.snapshot
    async with asking.subscribe("token", from_snapshot(1)) as subscriber:
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_SYNCED in subscriber.of(1).states)
        (snapshot,) = subscriber.of(1).snapshots
        assert place(snapshot.snapshot.as_of) == log.heads[1]
        assert subscriber.of(1).gaps == []


async def test_an_older_snapshot_is_better_than_none(
    asking: Fanout, log: WrittenLog, ingest: StandInIngest
) -> None:
    ingest.away.add(1)
    await log.signals(1, 5)
    await log.snapshot(1)
    await log.gap(1, 2)
    await log.signals(1, 2)
    async with asking.subscribe("token", from_now(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).held == (1, 9))
    async with asking.subscribe("token", from_snapshot(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).held == (1, 9))
        assert len(subscriber.of(1).gaps) == 1
        await subscriber.until(lambda: subscriber.of(1).states[-1] == pb.SUBSCRIPTION_STATE_DEGRADED_GAP)
    assert ingest.asked


async def test_a_snapshot_that_cannot_be_continued_from_is_replaced(
    asking: Fanout,
    log: WrittenLog,
    ingest: StandInIngest,
    redis_client: Redis,
    redis_url: str,
    ledger: StandInLedger,
) -> None:
    """What follows it is neither in the log nor in the archive any more."""
    await log.signals(1, 5)
    await log.snapshot(1)
    await log.signals(1, 20)
    ledger.oldest[1] = (1, 25)
    await redis_client.xtrim(stream.log_name(), maxlen=1, approximate=False)
    ingest.on_request = log.snapshot
    loaded = fanout_settings(redis_url, ledger, ingest_address=f"127.0.0.1:{ingest.port}")
    async with (
        fanout_running(loaded) as another,
        another.subscribe("token", from_snapshot(1)) as subscriber,
    ):
        await subscriber.until(lambda: subscriber.of(1).snapshots)
        assert subscriber.of(1).held == (1, 25)
    assert ingest.asked == [1]


async def test_masters_without_snapshot_hold_up_no_others_until_the_wait_is_over(
    asking: Fanout, log: WrittenLog, ingest: StandInIngest
) -> None:
    ingest.away.add(1)
    await log.signals(1, 1)
    subscriber = asking.subscribe("token", from_snapshot(1), from_now(2))
    await subscriber.begun()
    await log.signals(2, 3)
    await subscriber.until(lambda: subscriber.of(2).sequences == [1, 2, 3])
    error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert 1 in ingest.asked


async def test_a_snapshot_that_cannot_be_looked_for_ends_the_stream(
    asking: Fanout, log: WrittenLog, redis_client: Redis
) -> None:
    """A reader that waited for it without a word would be behind and not know it."""
    await log.signals(1, 3)
    await redis_client.set(stream.snapshots_name(0), "no hash")
    async with asking.subscribe("token", from_snapshot(1)) as subscriber:
        error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("master_id", "epoch", "sequence"), [(2, 1, 2), (1, 1, 9), (1, 2, 0)])
async def test_a_snapshot_that_cannot_be_is_replaced_by_a_new_one(
    asking: Fanout,
    log: WrittenLog,
    ingest: StandInIngest,
    redis_client: Redis,
    master_id: int,
    epoch: int,
    sequence: int,
) -> None:
    """Of another master, or from beyond the log: one who began there would wait for what never comes."""
    await log.signals(1, 3)
    stored = snapshot_pb2.Snapshot(master_id=master_id)
    stored.as_of.epoch, stored.as_of.sequence = epoch, sequence
    await redis_client.hset(stream.snapshots_name(0), "1", stored.SerializeToString())
    ingest.on_request = log.snapshot
    async with asking.subscribe("token", from_snapshot(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).snapshots)
        await log.signals(1, 2)
        await subscriber.until(lambda: subscriber.of(1).sequences == [4, 5])
        assert [place(one.snapshot.as_of) for one in subscriber.of(1).snapshots] == [(1, 3)]
