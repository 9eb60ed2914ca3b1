"""Full syncs that were asked for at the ledger: live streams go on and get them, others with their next stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from services.common import stream
from tests.integration.fanout.fanout_service import (
    WAIT_SECONDS,
    Fanout,
    after,
    fanout_running,
    fanout_settings,
    from_now,
    from_snapshot,
)
from tests.integration.fanout.stand_in_ingest import StandInIngest, ingest_standing_in
from tests.integration.fanout.stand_in_ledger import StandInLedger, User
from tests.integration.fanout.written_log import WrittenLog

SYNCED, RESYNCING = pb.SUBSCRIPTION_STATE_SYNCED, pb.SUBSCRIPTION_STATE_RESYNCING
QUICK = {"snapshot_wait_seconds": 0.3, "full_sync_retry_seconds_max": 0.2, "standing_retry_seconds_max": 0.2}


@pytest.fixture
async def ingest() -> AsyncIterator[StandInIngest]:
    async with ingest_standing_in() as ingest:
        yield ingest


@pytest.fixture
def user(ledger: StandInLedger) -> User:
    return ledger.add_user("token", 1)


@pytest.fixture
async def asking(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, ingest: StandInIngest
) -> AsyncIterator[Fanout]:
    loaded = fanout_settings(redis_url, ledger, ingest_address=f"127.0.0.1:{ingest.port}", **QUICK)
    async with fanout_running(loaded) as fanout:
        yield fanout


async def until(ledger: StandInLedger, condition: Callable[[], object]) -> None:
    """Waits for something to be recorded."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await ledger.next_record()


async def test_a_live_stream_goes_on_until_the_snapshot_comes_and_is_in_step_after_it(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, ingest: StandInIngest, user: User
) -> None:
    ingest.away.add(1)
    async with asking.subscribe("token", from_now(1)) as subscriber:
        told = subscriber.of(1)
        await subscriber.until(lambda: told.states == [SYNCED])
        await ledger.ask_for_full_sync(user, 1)
        await subscriber.until(lambda: told.states == [SYNCED, RESYNCING])
        await log.signals(1, 3)
        await subscriber.until(lambda: told.sequences == [1, 2, 3])
        # Longer than one search.
        asked = len(ingest.asked)
        await subscriber.until(lambda: len(ingest.asked) >= asked + 2)
        assert (told.snapshots, told.states) == ([], [SYNCED, RESYNCING])

        await log.snapshot(1)
        await log.signals(1, 2)
        await subscriber.until(lambda: told.states == [SYNCED, RESYNCING, SYNCED])
        assert [one.snapshot.as_of.sequence for one in told.snapshots] == [3]
        await subscriber.until(lambda: told.held == (1, 5))
        assert sorted(set(told.sequences)) == [1, 2, 3, 4, 5]
        assert told.gaps == []
        await until(ledger, lambda: user.subscriptions[1].full_sync_done == 1)
    assert ledger.transitions(user, 1) == [
        ledger_pb.SYNC_STATE_SYNCED,
        ledger_pb.SYNC_STATE_RESYNCING,
        ledger_pb.SYNC_STATE_SYNCED,
    ]


async def test_an_older_snapshot_brings_back_what_followed_it(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    await log.signals(1, 3)
    async with asking.subscribe("token", after(1, 0, 0)) as subscriber:
        told = subscriber.of(1)
        await subscriber.until(lambda: told.sequences == [1, 2, 3, 4, 5])
        await ledger.ask_for_full_sync(user, 1)
        await subscriber.until(lambda: told.states[-2:] == [RESYNCING, SYNCED])
        assert told.sequences == [1, 2, 3, 4, 5, 3, 4, 5]
        await log.signals(1, 1)
        await subscriber.until(lambda: told.sequences[-1] == 6)


async def test_every_stream_of_the_subscription_is_brought_in_step_and_no_other(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    ledger.add_user("another", 1)
    await log.signals(1, 1)
    await log.snapshot(1)
    async with (
        asking.subscribe("token", from_now(1)) as first,
        asking.subscribe("token", after(1, 1, 1)) as second,
        asking.subscribe("another", from_now(1)) as other,
    ):
        # One who resumes is told nothing when the ledger knows it as in step.
        await second.until(lambda: ledger.subscription_calls >= 1)
        for one in (first, other):
            await one.until(lambda one=one: one.of(1).states == [SYNCED])
        await ledger.ask_for_full_sync(user, 1)
        for one in (first, second):
            await one.until(lambda one=one: one.of(1).states[-2:] == [RESYNCING, SYNCED])
            assert len(one.of(1).snapshots) == 1
        await log.signals(1, 1)
        await other.until(lambda: other.of(1).sequences == [2])
        assert other.of(1).states == [SYNCED]


@pytest.mark.parametrize("begin", ["after", "now"])
async def test_who_was_away_gets_it_with_the_next_stream_and_once(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, user: User, begin: str
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    await ledger.ask_for_full_sync(user, 1)
    start = after(1, 1, 2) if begin == "after" else from_now(1)
    async with asking.subscribe("token", start) as subscriber:
        told = subscriber.of(1)
        await subscriber.until(lambda: told.states[-2:] == [RESYNCING, SYNCED])
        assert len(told.snapshots) == 1
        await until(ledger, lambda: user.subscriptions[1].full_sync_done == 1)
    async with asking.subscribe("token", after(1, 1, 2)) as subscriber:
        looked_up = ledger.subscription_calls
        await subscriber.until(
            lambda: ledger.subscription_calls == looked_up + 1 and subscriber.progress >= 3
        )
        assert subscriber.of(1).snapshots == []


async def test_one_who_was_looked_up_before_it_was_asked_for_gets_it_too(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    ledger.add_user("another", 1)
    async with asking.subscribe("token", from_now(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).states == [SYNCED])
    # Nothing was due: nobody had to be asked.
    assert (ledger.authenticate_calls, ledger.subscription_calls) == (1, 0)
    await ledger.ask_for_full_sync(user, 1)
    async with asking.subscribe("another", from_now(1)) as witness:
        # Announcements come in order: once this one has come, so has the one before.
        another = ledger.users["another"]
        await ledger.pause(another, 1, license_pb.PAUSE_SCOPE_ALL)
        await witness.until(lambda: pb.SUBSCRIPTION_STATE_PAUSED_ALL in witness.of(1).states)
    await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_UNSPECIFIED)
    async with asking.subscribe("token", from_now(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).states[-2:] == [RESYNCING, SYNCED])
        await until(ledger, lambda: user.subscriptions[1].full_sync_done == 1)
    assert ledger.authenticate_calls == 2


async def test_a_stream_that_begins_with_a_snapshot_is_one(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    await ledger.ask_for_full_sync(user, 1)
    async with asking.subscribe("token", from_snapshot(1)) as subscriber:
        await until(ledger, lambda: user.subscriptions[1].full_sync_done == 1)
        await subscriber.until(lambda: subscriber.of(1).states == [RESYNCING, SYNCED])
        assert len(subscriber.of(1).snapshots) == 1


async def test_a_paused_subscription_has_its_turn_when_the_pause_ends(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    async with asking.subscribe("token", from_now(1)) as subscriber:
        told = subscriber.of(1)
        await subscriber.until(lambda: told.states == [SYNCED])
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await ledger.ask_for_full_sync(user, 1)
        await log.signals(1, 2)
        await subscriber.until(lambda: told.held == (1, 4))
        assert told.snapshots == []
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_UNSPECIFIED)
        await subscriber.until(lambda: told.states[-2:] == [RESYNCING, SYNCED])
        assert len(told.snapshots) == 1
        assert told.sequences == [3, 4]
        await until(ledger, lambda: user.subscriptions[1].full_sync_done == 1)


async def test_a_snapshot_before_a_hole_does_not_do(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, ingest: StandInIngest, user: User
) -> None:
    ingest.away.add(1)
    await log.signals(1, 2)
    await log.snapshot(1)
    async with asking.subscribe("token", from_now(1)) as subscriber:
        told = subscriber.of(1)
        await subscriber.until(lambda: told.states == [SYNCED])
        await log.gap(1, 2)
        await subscriber.until(lambda: told.states[-1] == pb.SUBSCRIPTION_STATE_DEGRADED_GAP)
        await ledger.ask_for_full_sync(user, 1)
        asked = len(ingest.asked)
        await subscriber.until(lambda: len(ingest.asked) >= asked + 2)
        assert told.snapshots == []
        await log.snapshot(1)
        await subscriber.until(lambda: told.states[-1] == SYNCED)
        assert [one.snapshot.as_of.sequence for one in told.snapshots] == [4]


async def test_a_snapshot_behind_the_ring_is_followed_from_the_log(
    redis_url: str, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    await log.signals(1, 200)
    loaded = fanout_settings(redis_url, ledger, ring_records_per_master_max=16, page_records_max=20)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", after(1, 1, 20)) as subscriber:
        told = subscriber.of(1)
        # Asked for while it reads pages further on.
        await ledger.ask_for_full_sync(user, 1)
        await subscriber.until(lambda: told.snapshots and told.held == (1, 202))
        (snapshot,) = told.snapshots
        assert snapshot.snapshot.as_of.sequence == 2
        assert told.sequences[-200:] == list(range(3, 203))
        await subscriber.until(lambda: told.states[-1] == SYNCED)
        assert told.gaps == []


async def test_what_was_announced_and_missed_is_found_when_entitlements_are_read_again(
    redis_url: str, redis_client: Redis, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    async with (
        fanout_running(fanout_settings(redis_url, ledger, refresh_interval_seconds=0.3)) as fanout,
        fanout.subscribe("token", from_now(1)) as subscriber,
    ):
        await subscriber.until(lambda: subscriber.of(1).states == [SYNCED])
        await ledger.ask_for_full_sync(user, 1, announced=False)
        await subscriber.until(lambda: subscriber.of(1).states == [SYNCED, RESYNCING, SYNCED])
        assert await redis_client.xlen(stream.LEDGER_EVENTS) == 0


async def test_a_ledger_that_is_away_is_asked_again(
    asking: Fanout, ledger: StandInLedger, log: WrittenLog, user: User
) -> None:
    await log.signals(1, 2)
    await log.snapshot(1)
    await ledger.ask_for_full_sync(user, 1)
    ledger.subscriptions_away = 4
    async with asking.subscribe("token", after(1, 1, 2)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).states[-2:] == [RESYNCING, SYNCED])
    assert ledger.subscription_calls >= 5
