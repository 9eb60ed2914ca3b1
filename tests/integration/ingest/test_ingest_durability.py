"""What an Ack promises: appended, synced to disk, or on replicas; and that nothing less is ever acknowledged."""

from __future__ import annotations

import asyncio
import os
import signal as os_signals
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import ResponseError

from execution.common.v1 import position_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb
from mesh import ports
from mesh.embedded import RedisServer, redis
from mesh.embedded.redis import AppendFsync
from services.common import stream
from services.common.errors import ConfigurationError
from tests.integration.ingest.front_door import ingest_running, read_log, signals_in
from tests.integration.ingest.raw_master import connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.steady_master import check_log, steady
from tests.unit.ingest.signing import Credentials, login_body, now_us


async def has_waitaof(server: RedisServer) -> bool:
    async with stream.connect(server.url) as client:
        try:
            await client.execute_command("WAITAOF", 0, 0, 0)
        except ResponseError:
            return False
        return True


async def test_synced_with_appendfsync_always(ledger: StandInLedger):
    async with (
        redis(appendfsync="always") as server,
        ingest_running(server.url, ledger.port, durability="FSYNCED") as ingest,
        logged_in(ingest.port) as master,
    ):
        assert master.welcome.durability == position_pb2.DURABILITY_FSYNCED
        master.send_signals(1, 5)
        ack = await master.acknowledged_up_to(5)
        assert ack.durability == position_pb2.DURABILITY_FSYNCED


@pytest.mark.parametrize(
    ("appendfsync", "on_rewrite"),
    [
        ("everysec", "no"),
        # The server then does not sync while a child rewrites the file, and answers all the same.
        ("always", "yes"),
    ],
)
async def test_synced_with_waitaof_where_the_server_has_it(
    ledger: StandInLedger, appendfsync: AppendFsync, on_rewrite: str
):
    async with redis(appendfsync=appendfsync, settings={"no-appendfsync-on-rewrite": on_rewrite}) as server:
        if not await has_waitaof(server):
            with pytest.raises(ConfigurationError, match="DURABILITY: FSYNCED needs"):
                async with ingest_running(server.url, ledger.port, durability="FSYNCED"):
                    pass
            return
        async with (
            ingest_running(server.url, ledger.port, durability="FSYNCED") as ingest,
            logged_in(ingest.port) as master,
            stream.connect(server.url) as client,
        ):
            await client.config_resetstat()
            master.send_signals(1, 5)
            ack = await master.acknowledged_up_to(5)
            assert ack.durability == position_pb2.DURABILITY_FSYNCED
            snapshot = snapshot_pb2.Snapshot(master_id=1, taken_at_us=now_us(), account_mode=1)
            snapshot.as_of.sequence = 5
            master.send(master.keys.snapshot_frame(snapshot))
            assert (await master.expect("ack")).ack.snapshot_sequence == 5
            assert (await client.info("commandstats"))["cmdstat_waitaof"]["calls"] == 2


async def test_a_server_without_an_append_only_file_cannot_sync(ledger: StandInLedger):
    async with redis(settings={"appendonly": "no"}) as server:
        with pytest.raises(ConfigurationError, match="DURABILITY: FSYNCED needs 'appendonly yes'"):
            async with ingest_running(server.url, ledger.port, durability="FSYNCED"):
                pass


@asynccontextmanager
async def replicated() -> AsyncIterator[tuple[RedisServer, RedisServer]]:
    """A server and its replica, in step."""
    with ports.port_block() as block:
        port = block.take()
        async with redis(tcp_port=port, settings={"repl-diskless-sync-delay": "0"}) as primary:
            settings = {"replicaof": f"127.0.0.1 {port}", "masterauth": primary.password or ""}
            async with redis(settings=settings) as replica:
                async with stream.connect(primary.url) as client:
                    await client.set("x", "y")
                    while await client.wait(1, 1_000) < 1:
                        pass
                yield primary, replica


async def test_replicated_is_acknowledged_only_with_the_replica(ledger: StandInLedger):
    async with (
        replicated() as (primary, replica),
        ingest_running(
            primary.url, ledger.port, durability="REPLICATED", durability_timeout_seconds=0.3
        ) as ingest,
        logged_in(ingest.port) as master,
    ):
        master.send_signals(1, 2)
        ack = await master.acknowledged_up_to(2)
        assert ack.durability == position_pb2.DURABILITY_REPLICATED
        async with stream.connect(replica.url) as client:
            assert list(signals_in(await read_log(client))) == [1, 2]

        os.kill(replica.pid, os_signals.SIGSTOP)
        try:
            master.send_signals(3)
            reject = await master.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
            assert (reject.sequence, reject.expected_sequence) == (3, 3)
            # It is in the log, but that is not enough, also not for a new login.
            async with stream.connect(primary.url) as client:
                assert list(signals_in(await read_log(client))) == [1, 2, 3]
            async with connected(ingest.port) as second:
                await second.greet()
                second.send(second.keys.login(login_body(second.who).SerializeToString()))
                await second.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
        finally:
            os.kill(replica.pid, os_signals.SIGCONT)
        # Once the replica has it, it is acknowledged without being sent again.
        await master.acknowledged_up_to(3)


async def test_replicated_under_load_with_a_replica_that_comes_and_goes(ledger: StandInLedger):
    async with (
        replicated() as (primary, replica),
        ingest_running(
            primary.url, ledger.port, durability="REPLICATED", durability_timeout_seconds=0.2
        ) as ingest,
    ):
        async with steady(lambda: ingest.port, Credentials()) as master:
            for _ in range(2):
                await master.acknowledges(50)
                os.kill(replica.pid, os_signals.SIGSTOP)
                await asyncio.sleep(0.5)
                os.kill(replica.pid, os_signals.SIGCONT)
            await master.acknowledges(50)
        async with stream.connect(replica.url) as client:
            assert check_log(await read_log(client), master) == []
