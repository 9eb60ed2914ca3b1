"""Log and outbox lose everything: what comes then collides with nothing that was archived, and everybody is told."""

from __future__ import annotations

from execution.common.v1 import position_pb2
from services.common import stream
from tests.integration.ingest.raw_master import logged_in
from tests.integration.ingest.waiting import until
from tests.integration.ledger.ledger_service import eventually, superuser
from tests.integration.log.log_world import log_world


async def test_a_total_loss_begins_an_epoch_above_the_archive(fresh_database: str, redis_url: str) -> None:
    async with log_world(fresh_database, redis_url, masters=1, shards=1, authorisation_seconds=0) as world:
        (who,) = world.masters
        async with logged_in(world.ingest.port, who) as master:
            master.send_signals(1, 5)
            await master.acknowledged_up_to(5)
            await world.ledger.archived(5)
            async with stream.connect(redis_url) as client:
                await client.flushall()
            master.send_signals(6)
            await master.ended()
        await until(lambda: world.ingest.publisher.is_ready)
        async with logged_in(world.ingest.port, who) as master:
            assert (master.welcome.position.epoch, master.welcome.position.sequence) == (2, 5)
            master.send_signals(6, 3)
            await master.acknowledged_up_to(8)
        await world.ledger.archived(8)
        records = await world.ledger.read(who.master_id)
        assert [
            (record.signal.epoch, record.signal.sequence) for record in records if record.HasField("signal")
        ] == [*((1, n) for n in range(1, 6)), *((2, n) for n in range(6, 9))]
        async with superuser(fresh_database) as connection:
            assert await connection.fetchval("select count(*) from ledger.archive_refusals") == 0

        async def told() -> bool:
            subscriber = world.subscribe()
            async with subscriber:
                one = subscriber.of(who.master_id)
                await subscriber.until(lambda: one.held == (2, 8))
                return {gap.reason for gap in one.gaps} == {position_pb2.GAP_REASON_LOG_LOST}

        await eventually(told)
