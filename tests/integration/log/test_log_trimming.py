"""What is archived leaves the log, and nobody misses it."""

from __future__ import annotations

import asyncio

from execution.common.v1 import position_pb2
from execution.ledger.v1 import archive_service_pb2
from services.common import stream
from tests.integration.fanout.fanout_service import after, fanout_running, fanout_settings
from tests.integration.ingest.steady_master import steady
from tests.integration.ledger.ledger_service import eventually, superuser
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


async def test_what_the_valve_took_before_it_was_archived_is_told(
    fresh_database: str, redis_url: str
) -> None:
    async with (
        log_world(fresh_database, redis_url, masters=1, shards=1, log_entries_max=100) as world,
        superuser(fresh_database) as connection,
    ):
        (who,) = world.masters
        holding = connection.transaction()
        await holding.start()
        await connection.execute("lock table ledger.archive_heads in exclusive mode")
        async with steady(lambda: world.ingest.port, who, batch=16) as master:
            await master.acknowledges(10_000)
        state = await stream.read_state(world.log.client(0), stream.log_name())
        assert state is not None
        assert state.trimmed > 0
        await holding.rollback()

        async def archived_to_the_end() -> bool:
            request = archive_service_pb2.GetArchiveStatusRequest()
            status = await world.ledger.call("ArchiveService/GetArchiveStatus", request)
            return bool(status.positions) and status.positions[0].position.sequence >= master.acknowledged

        await eventually(archived_to_the_end)
        loaded = fanout_settings(redis_url, world.ledger.running)
        async with (
            fanout_running(loaded) as fresh,
            fresh.subscribe(world.token, after(who.master_id, 0, 0)) as late,
        ):
            told = late.of(who.master_id)
            await late.until(lambda: (told.held or (0, 0))[1] >= master.acknowledged)
        trimmed = [gap for gap in told.gaps if gap.reason == position_pb2.GAP_REASON_TRIMMED]
        assert trimmed
        missing = {
            sequence
            for gap in told.gaps
            for sequence in range(getattr(gap, "from").sequence, gap.to.sequence + 1)
        }
        assert sorted({*told.sequences, *missing}) == list(range(1, told.sequences[-1] + 1))
        assert missing.isdisjoint(told.sequences)


async def until_trimmed(world: LogWorld) -> None:
    """Waits until nothing is left but the last node of the stream, which is not taken apart."""
    async with asyncio.timeout(30):
        while True:
            state = await stream.read_state(world.log.client(0), stream.log_name())
            if state is not None and state.trimmed and state.length <= 100:
                return
            await asyncio.sleep(0.05)
