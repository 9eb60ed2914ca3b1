"""What is archived leaves the log, and nobody misses it."""

from __future__ import annotations

import asyncio

from services.common import stream
from tests.integration.ingest.steady_master import steady
from tests.integration.ledger.ledger_service import superuser
from tests.integration.log.log_world import LogWorld, archived, log_world

AT_ONCE = {"log_retention_seconds": 0, "log_trim_interval_seconds": 0.05}


async def test_what_left_the_log_reaches_readers_from_the_archive(
    fresh_database: str, redis_url: str
) -> None:
    async with (
        log_world(fresh_database, redis_url, masters=1, shards=1, of_ledger=AT_ONCE) as world,
        world.subscribe() as live,
    ):
        (who,) = world.masters
        async with steady(lambda: world.ingest.port, who, batch=16) as master:
            await master.acknowledges(2_000)
        await archived(world, master)
        await until_trimmed(world)
        told = live.of(who.master_id)
        await live.until(lambda: (told.held or (0, 0))[1] >= master.acknowledged)
        assert told.sequences == list(range(1, len(told.sequences) + 1))
        async with world.subscribe() as late:
            told = late.of(who.master_id)
            await late.until(lambda: (told.held or (0, 0))[1] >= master.acknowledged)
            assert told.gaps == []
            assert told.sequences == list(range(1, len(told.sequences) + 1))


async def test_what_is_not_archived_stays_in_the_log(fresh_database: str, redis_url: str) -> None:
    async with (
        log_world(fresh_database, redis_url, masters=1, shards=1, of_ledger=AT_ONCE) as world,
        superuser(fresh_database) as connection,
    ):
        (who,) = world.masters
        holding = connection.transaction()
        await holding.start()
        await connection.execute("lock table ledger.archive_heads in exclusive mode")
        async with steady(lambda: world.ingest.port, who, batch=16) as master:
            await master.acknowledges(2_000)
        await asyncio.sleep(0.5)
        state = await stream.read_state(world.log.client(0), stream.log_name())
        assert state is not None
        assert (state.trimmed, state.length) == (0, state.added)
        await holding.rollback()
        await archived(world, master)
        await until_trimmed(world)


async def until_trimmed(world: LogWorld) -> None:
    """Waits until nothing is left but the last node of the stream, which is not taken apart."""
    async with asyncio.timeout(30):
        while True:
            state = await stream.read_state(world.log.client(0), stream.log_name())
            if state is not None and state.trimmed and state.length <= 100:
                return
            await asyncio.sleep(0.05)
