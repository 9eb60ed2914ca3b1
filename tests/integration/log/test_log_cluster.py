"""The log on a real cluster of three nodes, a shard on each: found, followed when it moves, and whole after a loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded.redis_cluster import RedisCluster, redis_cluster
from services.common import stream
from tests.integration.fanout.fanout_service import Subscriber
from tests.integration.ingest.steady_master import SteadyMaster, steady
from tests.integration.ingest.waiting import until
from tests.integration.log.log_world import LogWorld, check_everything, log_world


@asynccontextmanager
async def at_work(
    database_url: str, cluster: RedisCluster, **overrides: object
) -> AsyncIterator[tuple[LogWorld, Subscriber, list[SteadyMaster]]]:
    """A master in each shard that sends without end, and somebody who follows them all; checked at the end."""
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(log_world(database_url, cluster.url, **overrides))
        subscriber = await stack.enter_async_context(world.subscribe())
        async with AsyncExitStack() as sending:
            masters = [
                await sending.enter_async_context(steady(lambda: world.ingest.port, who, pause_seconds=0.01))
                for who in world.masters
            ]
            masters.sort(key=lambda master: world.shard_of(master.who))
            yield world, subscriber, masters
        await check_everything(world, subscriber, masters)


async def test_a_shard_on_each_node_and_a_slot_that_moves_under_load(fresh_database: str) -> None:
    async with redis_cluster() as cluster, at_work(fresh_database, cluster) as (_, _, masters):
        owners = [await cluster.owner_of(stream.log_name(shard)) for shard in range(3)]
        assert len({owner.tcp_port for owner in owners}) == 3
        await acknowledge(masters, 50)
        for target in (owners[1], owners[2], owners[0]):
            await cluster.migrate(stream.log_name(0), target)
            assert await cluster.owner_of(stream.log_name(0)) is target
            await acknowledge(masters, 50)


async def test_a_slot_that_is_being_moved_makes_masters_wait(fresh_database: str) -> None:
    """Between two nodes a slot takes nothing; what was acknowledged before and after is all there."""
    async with redis_cluster() as cluster, at_work(fresh_database, cluster) as (world, _, masters):
        await acknowledge(masters, 20)
        name = stream.log_name(0)
        source, target = await cluster.owner_of(name), await cluster.owner_of(stream.log_name(1))
        slot = await cluster.command(source, "CLUSTER", "KEYSLOT", name)
        source_id, target_id = [
            (await cluster.command(node, "CLUSTER", "MYID")).decode() for node in (source, target)
        ]
        await cluster.command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await cluster.command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        await cluster.move_keys(slot, source, target)
        await until(lambda: not world.ingest.publisher.shards[0].is_ready)
        await until(lambda: pb.REJECT_CODE_UNAVAILABLE in masters[0].rejects)
        stood = masters[0].acknowledged
        await acknowledge(masters[1:], 50)
        assert masters[0].acknowledged == stood
        for node in cluster.nodes:
            await cluster.command(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
        await acknowledge(masters, 50)
        assert masters[0].logins == 1


@pytest.mark.parametrize("full_coverage", ["yes", "no"])
async def test_a_node_that_is_killed_makes_its_masters_wait(fresh_database: str, full_coverage: str) -> None:
    """The other shards go on, unless the cluster was told to refuse everything then (CLUSTERDOWN)."""
    settings = {"cluster-require-full-coverage": full_coverage}
    async with (
        redis_cluster(appendfsync="always", settings=settings) as cluster,
        at_work(fresh_database, cluster) as (world, _, masters),
    ):
        await acknowledge(masters, 50)
        owner = await cluster.owner_of(stream.log_name(1))
        owner.kill()
        await owner.wait()
        shards = world.ingest.publisher.shards
        await until(lambda: not shards[1].is_ready)
        await until(lambda: pb.REJECT_CODE_UNAVAILABLE in masters[1].rejects)
        if full_coverage == "yes":
            await until(lambda: not any(shard.is_ready for shard in shards))
        else:
            await acknowledge([masters[0], masters[2]], 100)
        await owner.restart()
        await cluster.until_ok()
        await acknowledge(masters, 50)
        assert [master.epochs_seen for master in masters] == [[1], [1], [1]]


async def test_a_replica_takes_over_a_shard(fresh_database: str) -> None:
    """As in an upgrade, node by node: the former owner hands over and goes on as the replica."""
    async with (
        redis_cluster(replicas=1) as cluster,
        at_work(fresh_database, cluster) as (_, _, masters),
    ):
        await acknowledge(masters, 50)
        owner = await cluster.owner_of(stream.log_name(0))
        replica = cluster.nodes[3 + cluster.nodes.index(owner)]
        await cluster.until_replica(replica)
        await cluster.command(replica, "CLUSTER", "FAILOVER")
        async with asyncio.timeout(60):
            while await cluster.owner_of(stream.log_name(0)) is owner:  # noqa: ASYNC110  (it sets no event)
                await asyncio.sleep(0.05)
        await acknowledge(masters, 50)
        assert [master.epochs_seen for master in masters] == [[1], [1], [1]]


async def test_what_was_acknowledged_as_replicated_outlives_a_node(fresh_database: str) -> None:
    """Nobody brings the node back: one of its replicas takes over, the other confirms."""
    replicated = {"durability": "REPLICATED", "durability_timeout_seconds": 0.5}
    async with (
        redis_cluster(replicas=2) as cluster,
        at_work(fresh_database, cluster, **replicated) as (_, _, masters),
    ):
        await acknowledge(masters, 50)
        owner = await cluster.owner_of(stream.log_name(0))
        owner.kill()
        await owner.wait()
        await until(lambda: pb.REJECT_CODE_UNAVAILABLE in masters[0].rejects)
        await acknowledge(masters, 50)
        assert [master.epochs_seen for master in masters] == [[1], [1], [1]]


async def acknowledge(masters: list[SteadyMaster], more: int) -> None:
    await asyncio.gather(*(master.acknowledges(more) for master in masters))
