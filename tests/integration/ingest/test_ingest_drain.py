"""Stopping: nobody new, what is under way is finished, everybody is sent elsewhere."""

from __future__ import annotations

import asyncio

from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded import redis
from services.common import stream
from tests.integration.ingest.front_door import ingest_running, read_log
from tests.integration.ingest.raw_master import connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.steady_master import check_log, steady
from tests.unit.ingest.signing import Credentials


async def test_a_stopping_server_says_so_and_goodbye(redis_url: str, ledger: StandInLedger):
    async with ingest_running(redis_url, ledger.port) as ingest:
        opened = logged_in(ingest.port)
        master = await opened.__aenter__()
        greeted = connected(ingest.port)
        half_way = await greeted.__aenter__()
        await half_way.greet()
        master.send_signals(1, 3)
        await master.acknowledged_up_to(3)
        ending = [asyncio.create_task(one.ended()) for one in (master, half_way)]
    for frames in await asyncio.gather(*ending):
        assert [frame.WhichOneof("frame") for frame in frames] == ["drain", "bye"]
    await opened.__aexit__(None, None, None)
    await greeted.__aexit__(None, None, None)


async def test_a_rolling_restart_under_load_loses_and_doubles_nothing(
    redis_url: str, ledger: StandInLedger, log_client: stream.Redis
):
    running = ingest_running(redis_url, ledger.port)
    ports = [(await running.__aenter__()).port]
    async with steady(lambda: ports[-1], Credentials(), batch=3) as master:
        for _ in range(3):
            await master.acknowledges(60)
            following = ingest_running(redis_url, ledger.port)
            ports.append((await following.__aenter__()).port)
            await running.__aexit__(None, None, None)
            running = following
        await master.acknowledges(60)
    await running.__aexit__(None, None, None)
    assert check_log(await read_log(log_client), master) == []
    assert master.logins == 4


async def test_what_is_under_way_is_acknowledged_before_the_goodbye(ledger: StandInLedger):
    async with redis() as server:
        async with ingest_running(server.url, ledger.port) as ingest:
            opened = logged_in(ingest.port)
            master = await opened.__aenter__()
            for first in range(1, 2_000, 20):
                master.send_signals(first, 20)
            await master.writer.drain()
            await master.expect("ack")
            listening = asyncio.create_task(master.ended())
        frames = await listening
        await opened.__aexit__(None, None, None)
        async with stream.connect(server.url) as client:
            last = (await read_log(client))[-1].last_sequence
    acks = [frame.ack.sequence for frame in frames if frame.HasField("ack")]
    assert frames[-1].HasField("bye")
    assert max(acks, default=last) == last


async def test_a_bye_is_answered_with_the_last_ack(redis_url: str, ledger: StandInLedger):
    async with ingest_running(redis_url, ledger.port) as ingest, logged_in(ingest.port) as master:
        master.send_signals(1, 2)
        master.send(pb.ClientFrame(bye=pb.Bye(reason="done")))
        frames = await master.ended()
        assert [frame.WhichOneof("frame") for frame in frames] == ["ack", "bye"]
        assert frames[0].ack.sequence == 2


async def test_a_client_that_says_bye_and_sends_no_more_still_gets_its_last_ack(
    redis_url: str, ledger: StandInLedger
):
    async with ingest_running(redis_url, ledger.port) as ingest, logged_in(ingest.port) as master:
        master.send_signals(1, 2)
        master.send(pb.ClientFrame(bye=pb.Bye()))
        master.writer.write_eof()
        frames = await master.ended()
        assert [frame.WhichOneof("frame") for frame in frames] == ["ack", "bye"]
