"""A shard that hangs holds up its own masters, within bounds, and no others."""

from __future__ import annotations

import asyncio
import os
import signal as os_signals

from mesh.embedded.redis_cluster import redis_cluster
from services.common import stream
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.stand_in_ledger import standing_in
from tests.integration.ingest.steady_master import steady
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials

NOT_SOON = {"node_timeout_ms": 60_000}
"""The cluster itself does not notice."""


async def test_masters_of_other_shards_go_on_while_one_hangs() -> None:
    async with redis_cluster(**NOT_SOON) as cluster, standing_in() as ledger:
        masters = [ledger.add(Credentials(master_id=number)) for number in (3, 4)]
        async with (
            ingest_running(
                cluster.url, ledger.port, log_shards=3, redis_timeout_seconds=30, signal_age_ms_max=600_000
            ) as ingest,
            steady(lambda: ingest.port, masters[0], pause_seconds=0.01) as first,
            steady(lambda: ingest.port, masters[1], pause_seconds=0.01) as second,
        ):
            await asyncio.gather(first.acknowledges(20), second.acknowledges(20))
            owner = await cluster.owner_of(stream.log_name(0))
            os.kill(owner.pid, os_signals.SIGSTOP)
            try:
                await until(lambda: ingest.publisher.shards[0].outstanding_bytes > 0)
                stood = first.acknowledged
                await second.acknowledges(200)
                assert first.acknowledged - stood <= first.window
                assert ingest.publisher.shards[0].outstanding_bytes < 1_000_000
                assert ingest.publisher.is_ready
            finally:
                os.kill(owner.pid, os_signals.SIGCONT)
            await asyncio.gather(first.acknowledges(50), second.acknowledges(50))
            assert [one.rejects for one in (first, second)] == [[], []]
