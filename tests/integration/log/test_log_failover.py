"""The log behind Sentinel: the primary is killed, a replica takes over, and what each level promised holds."""

from __future__ import annotations

import asyncio
import os
import signal as os_signals
from contextlib import AsyncExitStack

from execution.common.v1 import position_pb2
from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded.redis_sentinel import RedisUnderSentinel, redis_under_sentinel
from services.common import stream
from tests.integration.ingest.raw_master import logged_in
from tests.integration.ingest.steady_master import steady
from tests.integration.ingest.waiting import until
from tests.integration.log.log_world import check_everything, log_world

REPLICATED = {"durability": "REPLICATED", "durability_timeout_seconds": 0.5}


async def fail_over(redis: RedisUnderSentinel) -> None:
    """Kills the primary; returns when another server is it."""
    former = await redis.primary()
    former.kill()
    await former.wait()
    async with asyncio.timeout(60):
        while await redis.primary() is former:  # noqa: ASYNC110  (what is waited for sets no event)
            await asyncio.sleep(0.05)


async def test_what_was_acknowledged_as_replicated_outlives_the_primary(fresh_database: str) -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_under_sentinel())
        world = await stack.enter_async_context(
            log_world(fresh_database, redis.url, masters=2, shards=2, **REPLICATED)
        )
        subscriber = await stack.enter_async_context(world.subscribe())
        async with AsyncExitStack() as sending:
            masters = [
                await sending.enter_async_context(steady(lambda: world.ingest.port, who, pause_seconds=0.01))
                for who in world.masters
            ]
            await asyncio.gather(*(master.acknowledges(100) for master in masters))
            former = redis.servers[0]
            await fail_over(redis)
            await asyncio.gather(*(master.acknowledges(100) for master in masters))
            # The former primary comes back, and follows.
            await former.restart()
            await redis.until_replicated(2)
            await fail_over(redis)
            await asyncio.gather(*(master.acknowledges(100) for master in masters))
        for master in masters:
            assert master.epochs_seen == [1]
            assert pb.REJECT_CODE_UNAVAILABLE in master.rejects
        await check_everything(world, subscriber, masters)


async def test_what_appended_lost_with_the_primary_is_a_new_epoch_and_a_gap(fresh_database: str) -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_under_sentinel(settings={"repl-timeout": "600"}))
        world = await stack.enter_async_context(log_world(fresh_database, redis.url, masters=1, shards=1))
        (who,) = world.masters
        subscriber = await stack.enter_async_context(world.subscribe())
        told = subscriber.of(who.master_id)
        primary, *replicas = redis.servers
        async with logged_in(world.ingest.port, who) as master:
            master.send_signals(1, 5)
            await master.acknowledged_up_to(5)
            async with stream.connect(redis.url) as client:
                assert await client.wait(2, 10_000) == 2
            for replica in replicas:
                os.kill(replica.pid, os_signals.SIGSTOP)
            # What is on the wire to a stopped process waits for it in the kernel: from here on nothing is.
            await redis.command(primary, "CLIENT", "KILL", "TYPE", "replica")
            master.send_signals(6, 5)
            await master.acknowledged_up_to(10)
            await subscriber.until(lambda: told.held == (1, 10))
            primary.kill()
            await primary.wait()
            for replica in replicas:
                os.kill(replica.pid, os_signals.SIGCONT)
            # The log came back with less than it had acknowledged: the session is told to begin again.
            async with asyncio.timeout(60):
                assert [frame.WhichOneof("frame") for frame in await master.ended()] == ["bye"]
        await until(lambda: world.ingest.publisher.is_ready)
        async with logged_in(world.ingest.port, who, acknowledged=(1, 10)) as master:
            assert (master.welcome.position.epoch, master.welcome.position.sequence) == (2, 10)
            master.send_signals(11, 5)
            await master.acknowledged_up_to(15)
        await subscriber.until(lambda: told.held == (2, 15))
        # It had received what the log lost.
        assert told.places == [*((1, n) for n in range(1, 11)), *((2, n) for n in range(11, 16))]
        async with world.subscribe() as late:
            later = late.of(who.master_id)
            await late.until(lambda: later.held == (2, 15))
            lost = [gap for gap in later.gaps if gap.reason == position_pb2.GAP_REASON_LOG_LOST]
        received = {place[1] for place in later.places}
        assert lost
        assert received | set(range(6, 11)) == set(range(1, 16))
