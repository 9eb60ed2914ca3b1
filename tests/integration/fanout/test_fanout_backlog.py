"""Resuming from behind the ring: from the log, from the archive, and where nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import status_pb2
from redis.asyncio import Redis

from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common import stream
from tests.integration.fanout.fanout_service import (
    Fanout,
    after,
    fanout_running,
    fanout_settings,
    from_now,
    from_snapshot,
    place,
)
from tests.integration.fanout.stand_in_ledger import StandInLedger
from tests.integration.fanout.written_log import WrittenLog

SMALL = {
    "fill_entries_max": 4,
    "ring_records_per_master_max": 16,
    "page_records_max": 7,
    "index_block_entries": 3,
}


@pytest.fixture
async def small(redis_url: str, log: WrittenLog, ledger: StandInLedger) -> AsyncIterator[Fanout]:
    """A fan-out that began behind 100 signals of master 1 and 10 of master 2, and holds few of them."""
    ledger.add_user("token", 1, 2)
    for _ in range(10):
        await log.signals(1, 10, per_entry=10)
        await log.signals(2, 1)
    async with fanout_running(fanout_settings(redis_url, ledger, **SMALL)) as fanout:
        yield fanout


async def test_what_the_ring_never_had_comes_from_the_log(small: Fanout, log: WrittenLog) -> None:
    async with small.subscribe("token", after(1, 1, 3), after(2, 0, 0)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 97)
        await subscriber.until(lambda: len(subscriber.of(2).signals) == 10)
        await log.signals(1, 5)
        await subscriber.until(lambda: subscriber.of(1).sequences == list(range(4, 106)))
        assert subscriber.of(1).gaps == []


async def test_what_the_log_let_go_of_comes_from_the_archive(
    small: Fanout, log: WrittenLog, ledger: StandInLedger, redis_client: Redis
) -> None:
    ledger.archive_signals(1, 1, 90)
    await redis_client.xtrim(stream.log_name(), maxlen=10, approximate=False)
    async with small.subscribe("token", after(1, 1, 3)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 97)
        assert subscriber.of(1).sequences == list(range(4, 101))
        assert subscriber.of(1).gaps == []
        await log.signals(1, 1)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 98)


async def test_holes_and_epochs_come_from_the_archive_as_from_the_log(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, redis_client: Redis
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 5)
    await log.gap(1, 2)
    await log.epoch_start(1, 9)
    await log.signals(1, 3)
    ledger.archive_signals(1, 1, 5)
    ledger.archive_gap(1, (1, 6), (1, 7), (1, 7))
    ledger.archive_gap(1, (1, 8), (1, 9), (2, 9))
    ledger.archive_signals(1, 10, 12, epoch=2)
    tolds = []
    for _ in range(2):
        async with (
            fanout_running(fanout_settings(redis_url, ledger, **SMALL)) as fanout,
            fanout.subscribe("token", after(1, 0, 0)) as subscriber,
        ):
            await subscriber.until(lambda s=subscriber: s.of(1).held == (2, 12))
            told = subscriber.of(1)
            gaps = [
                (place(getattr(gap, "from")), place(gap.to), place(gap.resume_after)) for gap in told.gaps
            ]
            tolds.append((told.places, gaps))
        await redis_client.xtrim(stream.log_name(), maxlen=0, approximate=False)
    assert tolds[0] == tolds[1]


def unavailable_of(error: grpc.aio.AioRpcError) -> list[pb.PositionUnavailable]:
    details: list[pb.PositionUnavailable] = []
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for one in status_pb2.Status.FromString(value).details:
                unpacked = pb.PositionUnavailable()
                if one.Unpack(unpacked):
                    details.append(unpacked)
    return details


async def test_a_position_that_is_too_old_is_out_of_range_and_says_what_is_there(
    small: Fanout, log: WrittenLog, ledger: StandInLedger, redis_client: Redis
) -> None:
    await log.snapshot(1)
    ledger.archive_signals(1, 51, 100)
    ledger.oldest[1] = (1, 50)
    await redis_client.xtrim(stream.log_name(), maxlen=5, approximate=False)
    async with small.subscribe("token", after(1, 1, 20), after(2, 1, 10)) as subscriber:
        error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    (one,) = unavailable_of(error)
    assert one.master_id == 1
    assert place(one.requested) == (1, 20)
    assert place(one.oldest) == (1, 50)
    assert place(one.head) == (1, 100)
    assert place(one.snapshot) == (1, 100)
    async with small.subscribe("token", after(1, *place(one.oldest))) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).sequences == list(range(51, 101)))


@pytest.mark.parametrize("requested", [(1, 101), (2, 5), (7, 0)])
async def test_a_position_that_never_was_is_out_of_range(small: Fanout, requested: tuple[int, int]) -> None:
    async with small.subscribe("token", after(1, *requested)) as subscriber:
        error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    (one,) = unavailable_of(error)
    assert place(one.head) == (1, 100)
    assert not one.HasField("snapshot")


async def test_a_master_whose_log_was_trimmed_whole_stands_at_its_head(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, redis_client: Redis
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 30)
    await redis_client.xtrim(stream.log_name(), maxlen=0, approximate=False)
    async with fanout_running(fanout_settings(redis_url, ledger)) as fanout:
        async with fanout.subscribe("token", from_now(1)) as subscriber:
            await subscriber.begun()
            assert subscriber.of(1).held == (1, 30)
            await log.signals(1, 2)
            await subscriber.until(lambda: subscriber.of(1).sequences == [31, 32])
        async with fanout.subscribe("token", after(1, 1, 30)) as subscriber:
            await subscriber.until(lambda: subscriber.of(1).sequences == [31, 32])


async def test_a_snapshot_far_back_is_followed_by_everything_since(small: Fanout, log: WrittenLog) -> None:
    await log.snapshot(1)
    await log.signals(1, 60)
    async with small.subscribe("token", from_snapshot(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).sequences == list(range(101, 161)))
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_SYNCED in subscriber.of(1).states)


async def test_many_who_resume_at_one_place_read_it_once(small: Fanout, ledger: StandInLedger) -> None:
    for number in range(15):
        ledger.add_user(f"token-{number}", 1)
    subscribers = [small.subscribe(f"token-{number}", after(1, 1, 2)) for number in range(15)]
    try:
        await asyncio.gather(*(one.until(lambda s=one: len(s.of(1).signals) == 98) for one in subscribers))
    finally:
        for one in subscribers:
            await one.__aexit__()


async def test_a_live_reader_whose_place_is_gone_is_told_so(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, redis_client: Redis
) -> None:
    """A fan-out that was away for longer than the log holds: what it missed is named, and the stream goes on."""
    ledger.add_user("token", 1)
    await log.signals(1, 5)
    async with (
        fanout_running(fanout_settings(redis_url, ledger)) as fanout,
        fanout.subscribe("token", after(1, 1, 5)) as subscriber,
    ):
        await subscriber.begun()
        async with redis_client.pipeline(transaction=True) as pipeline:
            for run in (log.next_signals(1, 10), log.next_signals(1, 5)):
                pipeline.xadd(stream.log_name(), {stream.FIELD: run})
                pipeline.xtrim(stream.log_name(), maxlen=1, approximate=False)
            await pipeline.execute()
        await subscriber.until(lambda: subscriber.of(1).sequences == list(range(16, 21)))
        (gap,) = subscriber.of(1).gaps
        assert gap.reason == position_pb2.GAP_REASON_TRIMMED
        assert (place(getattr(gap, "from")), place(gap.to)) == ((1, 6), (1, 15))
        assert pb.SUBSCRIPTION_STATE_DEGRADED_GAP in subscriber.of(1).states
