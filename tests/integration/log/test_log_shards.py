"""A log of several shards on one server: every master in its own, found by all, and refused under another number."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from execution.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from services.common import log as signal_log
from services.common import stream
from services.common.errors import ConfigurationError
from tests.integration.fanout.fanout_service import SERVICE, fanout_running, fanout_settings
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import logged_in
from tests.integration.ingest.stand_in_ledger import OPERATOR_TOKEN, standing_in
from tests.integration.ingest.steady_master import steady
from tests.integration.ledger.ledger_service import LedgerClient, ledger_running, ledger_settings
from tests.integration.log.log_world import check_everything, log_world
from tests.unit.ingest.signing import Credentials

METADATA = (("authorization", f"Bearer {OPERATOR_TOKEN}"),)


async def test_masters_of_all_shards_reach_log_subscriber_and_archive(
    fresh_database: str, redis_url: str
) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(log_world(fresh_database, redis_url, masters=5))
        subscriber = await stack.enter_async_context(world.subscribe())
        async with AsyncExitStack() as at_work:
            masters = [
                await at_work.enter_async_context(steady(lambda: world.ingest.port, who, pause_seconds=0.01))
                for who in world.masters
            ]
            await asyncio.gather(*(master.acknowledges(50) for master in masters))
        await check_everything(world, subscriber, masters)
        for shard in world.log.shards:
            found = {run.master_id for run in await world.read(shard)}
            assert found == {who.master_id for who in world.masters if who.master_id % 3 == shard}
        async with stream.connect(redis_url) as client:
            assert {name async for name in client.scan_iter("*signals:ingest*:meta")} == {
                b"{signals:ingest}:meta",
                b"{signals:ingest:1}:meta",
                b"{signals:ingest:2}:meta",
            }


async def test_heads_of_all_shards_are_found_by_the_rpcs(redis_url: str) -> None:
    async with standing_in() as ledger:
        masters = [ledger.add(Credentials(master_id=number)) for number in range(1, 5)]
        async with (
            ingest_running(redis_url, ledger.port, log_shards=3) as ingest,
            grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel,
        ):
            for who in masters:
                async with logged_in(ingest.port, who) as master:
                    master.send_signals(1, who.master_id)
                    await master.acknowledged_up_to(who.master_id)
            stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
            listed = await stub.ListHeads(ingest_service_pb2.ListHeadsRequest(), metadata=METADATA)
            assert [(one.master_id, one.position.sequence) for one in listed.heads] == [
                (number, number) for number in range(1, 5)
            ]
            for who in masters:
                request = ingest_service_pb2.GetHeadRequest(master_id=who.master_id)
                answer = await stub.GetHead(request, metadata=METADATA)
                assert answer.head.position.sequence == who.master_id


async def test_a_log_of_another_number_of_shards_is_refused_by_the_front_door(redis_url: str) -> None:
    async with standing_in() as ledger:
        ledger.add(Credentials())
        async with (
            ingest_running(redis_url, ledger.port, log_shards=2) as ingest,
            logged_in(ingest.port) as master,
        ):
            master.send_signals(1)
            await master.acknowledged_up_to(1)
        for shards in (1, 3):
            if shards == 1:
                # The master's shard is the second, of which a log of one shard knows nothing: what tells is the first.
                async with stream.connect(redis_url) as client:
                    await client.hset(stream.meta_name(), mapping={"log_id": "x", "shards": 2})
            with pytest.raises(
                ConfigurationError, match=f"LOG_SHARDS: the log is of 2 shards and LOG_SHARDS is {shards}"
            ):
                async with ingest_running(redis_url, ledger.port, log_shards=shards):
                    pass


async def test_a_log_without_a_number_is_of_one_shard(redis_url: str) -> None:
    async with stream.connect(redis_url) as client, standing_in() as ledger:
        await client.hset(stream.meta_name(), "log_id", "written before there were shards")
        with pytest.raises(ConfigurationError, match="the log is of 1 shards and LOG_SHARDS is 2"):
            async with ingest_running(redis_url, ledger.port, log_shards=2):
                pass
        async with ingest_running(redis_url, ledger.port) as ingest:
            assert ingest.publisher.is_ready


async def test_a_log_that_changed_its_number_while_the_front_door_ran_is_refused(redis_url: str) -> None:
    async with standing_in() as ledger, stream.connect(redis_url) as client:
        ledger.add(Credentials())
        async with ingest_running(redis_url, ledger.port) as ingest:
            await client.hset(stream.meta_name(), mapping={"log_id": "another", "shards": 4})
            with pytest.raises(AssertionError, match="cannot be reached"):
                async with logged_in(ingest.port):
                    pass
            assert await signal_log.read_head(client, 1) is None


async def test_readers_of_another_number_of_shards_do_not_read(fresh_database: str, redis_url: str) -> None:
    """They would miss masters without a word."""
    async with stream.connect(redis_url) as client:
        await client.hset(stream.meta_name(), mapping={"log_id": "x", "shards": 2})
        await client.xadd(stream.log_name(), {stream.FIELD: b""})
        async with ledger_running(ledger_settings(fresh_database, redis_url)) as ledger:
            await not_archived(ledger, client)
            loaded = fanout_settings(redis_url, ledger.running)
            async with fanout_running(loaded, ready=False) as fanout:
                await asyncio.sleep(0.5)
                health = health_pb2_grpc.HealthStub(fanout.channel)
                answer = await health.Check(
                    health_pb2.HealthCheckRequest(service=SERVICE), wait_for_ready=True
                )
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def not_archived(ledger: LedgerClient, client: stream.Redis) -> None:
    """It leads, and yet takes nothing."""
    await asyncio.sleep(0.5)
    assert await client.xinfo_groups(stream.log_name()) == []
