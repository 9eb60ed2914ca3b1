"""Restarts, stalls, outages and other logs: nothing is lost, doubled or kept silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from redis.asyncio import Redis

from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from mesh.embedded import RedisServer
from mesh.embedded import redis as embedded_redis
from services.common import stream
from tests.integration.fanout.fanout_service import (
    WAIT_SECONDS,
    Fanout,
    after,
    fanout_running,
    fanout_settings,
    from_now,
    metadata,
    until_serving,
)
from tests.integration.fanout.stand_in_ledger import StandInLedger, standing_in
from tests.integration.fanout.written_log import WrittenLog


@asynccontextmanager
async def writing(log: WrittenLog, *masters: int) -> AsyncIterator[None]:
    """Signals of these masters keep coming."""

    stopping = asyncio.Event()

    async def write() -> None:
        while not stopping.is_set():
            for master in masters:
                await log.signals(master, 5, per_entry=3)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        stopping.set()
        await task


async def test_restarts_under_load_lose_and_double_nothing(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    ledger.add_user("token", 1, 2)
    seen: dict[int, list[int]] = {1: [], 2: []}
    starts = [after(1, 0, 0), after(2, 0, 0)]
    async with writing(log, 1, 2):
        for _ in range(4):
            async with fanout_running(fanout_settings(redis_url, ledger)) as fanout:
                subscriber = fanout.subscribe("token", *starts)
                count = len(subscriber.of(1).signals)
                await subscriber.until(lambda s=subscriber, c=count: len(s.of(1).signals) > c + 50)
                await subscriber.until(lambda s=subscriber: len(s.of(2).signals) > 50)
            error = await subscriber.ended()
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert subscriber.drain is not None
            for master in seen:
                seen[master] += subscriber.of(master).sequences
                assert subscriber.of(master).gaps == []
            starts = [after(master, *subscriber.of(master).held) for master in seen]
            drained = {one.master_id: one.position.sequence for one in subscriber.drain.positions}
            assert drained == {master: subscriber.of(master).held[1] for master in seen}
    for sequences in seen.values():
        assert sequences == list(range(1, len(sequences) + 1))


async def test_a_drain_names_a_moment_to_come_back(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    ledger.add_user("token", 1)
    async with fanout_running(fanout_settings(redis_url, ledger, drain_jitter_seconds=5)) as fanout:
        subscribers = [fanout.subscribe("token", from_now(1)) for _ in range(10)]
        for one in subscribers:
            await one.begun()
    delays = set()
    for one in subscribers:
        error = await one.ended()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert one.drain is not None
        delays.add(one.drain.reconnect_after.ToMicroseconds())
    assert len(delays) > 5
    assert max(delays) <= 5_000_000


async def stalled(
    fanout: Fanout, token: str, master: int
) -> tuple[grpc.aio.Channel, grpc.aio.UnaryStreamCall]:
    """A reader that opens a stream and never takes anything from it."""
    channel = grpc.aio.insecure_channel(
        fanout.target,
        [
            ("grpc.http2.lookahead_bytes", 65_536),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
    call = fanout_service_pb2_grpc.FanoutServiceStub(channel).Subscribe(
        pb.SubscribeRequest(masters=[from_now(master)]), metadata=metadata(token)
    )
    await call.wait_for_connection()
    return channel, call


async def test_a_stalled_reader_is_ended_and_hurts_nobody(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    ledger.add_user("token", 1)
    ledger.add_user("slow", 1)
    loaded = fanout_settings(
        redis_url,
        ledger,
        lag_seconds_max=1.0,
        ring_records_per_master_max=2_000,
        ring_memory_bytes_max=1_000_000,
    )
    async with fanout_running(loaded) as fanout:
        channel, call = await stalled(fanout, "slow", 1)
        async with fanout.subscribe("token", from_now(1)) as subscriber:
            await subscriber.begun()
            streams = len(fanout.running.hub)
            assert streams == 2
            # Far more than what buffers and windows swallow.
            for _ in range(40):
                await log.signals(1, 500, per_entry=500, comment="x" * 60)
            await subscriber.until(lambda: len(subscriber.of(1).signals) == 20_000)
            async with asyncio.timeout(WAIT_SECONDS):
                while len(fanout.running.hub) > 1:
                    await subscriber.until(lambda n=subscriber.progress: subscriber.progress > n)
            assert fanout.running.hub.ring.memory_bytes <= 1_000_000
            await log.signals(1, 1)
            await subscriber.until(lambda: len(subscriber.of(1).signals) == 20_001)
        call.cancel()
        await channel.close()


async def test_a_reader_that_wakes_up_in_time_gets_everything(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    """It fell behind the ring meanwhile, and is served from the log."""
    ledger.add_user("slow", 1)
    loaded = fanout_settings(redis_url, ledger, ring_records_per_master_max=100)
    async with fanout_running(loaded) as fanout:
        channel, call = await stalled(fanout, "slow", 1)
        for _ in range(20):
            await log.signals(1, 500, per_entry=100, comment="x" * 60)
        sequences: list[int] = []
        async with asyncio.timeout(WAIT_SECONDS):
            async for response in call:
                assert not response.HasField("gap")
                sequences += [one.sequence for one in response.signals.signals]
                if len(sequences) == 10_000:
                    break
        assert sequences == list(range(1, 10_001))
        call.cancel()
        await channel.close()


async def test_readers_that_fall_out_of_the_ring_are_served_from_behind_it(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    ledger.add_user("token", 1)
    loaded = fanout_settings(redis_url, ledger, ring_records_per_master_max=16, page_records_max=50)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await log.signals(1, 4_000, per_entry=200)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 4_000)
        assert subscriber.of(1).gaps == []


async def test_streams_live_through_an_outage_of_redis() -> None:
    async with (
        embedded_redis(appendfsync="always") as server,
        Redis.from_url(server.url) as client,
        standing_in(client) as ledger,
    ):
        ledger.add_user("token", 1)
        log = WrittenLog(client)
        await log.begin()
        loaded = fanout_settings(server.url, ledger, tail_block_ms=200)
        async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1)) as subscriber:
            await subscriber.begun()
            await log.signals(1, 5)
            await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
            for _ in range(3):
                await killed(server)
                await subscriber.until(lambda n=subscriber.progress: subscriber.progress > n)
                await server.start()
                await log.signals(1, 5)
            await subscriber.until(lambda: subscriber.of(1).sequences == list(range(1, 21)))


async def test_a_log_that_comes_back_as_another_one_ends_the_streams(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog, redis_client: Redis
) -> None:
    ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await log.signals(1, 5)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
        await redis_client.flushdb()
        again = WrittenLog(redis_client)
        await again.begin("log-2")
        await again.signals(1, 3)
        error = await subscriber.ended()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    async with fanout.subscribe("token", after(1, 1, 5)) as subscriber:
        error = await subscriber.ended()
        assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    async with fanout.subscribe("token", after(1, 0, 0)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).sequences == [1, 2, 3])


async def test_a_log_that_comes_back_with_less_is_told_as_a_new_epoch(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog, redis_client: Redis
) -> None:
    """Ten were read, four of them are lost again; the master saw eight acknowledged and sends the rest again."""
    ledger.add_user("token", 1)
    ids = [await log.write(log.run(1, 1)) for _ in range(10)]
    async with fanout.subscribe("token", after(1, 0, 0)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 10)
        await cut_back(redis_client, ids[5])
        log.heads[1] = (1, 6)
        await log.epoch_start(1, 8)
        await log.signals(1, 4)
        await subscriber.until(lambda: subscriber.of(1).held == (2, 12))
        (gap,) = subscriber.of(1).gaps
        assert gap.reason == position_pb2.GAP_REASON_LOG_LOST
        # 9 and 10 were received in the first epoch and are not given again.
        assert subscriber.of(1).sequences == [*range(1, 11), 11, 12]
    async with fanout.subscribe("token", after(1, 1, 6)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).held == (2, 12))


async def test_a_log_that_comes_back_with_less_and_gets_the_same_again_doubles_nothing(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog, redis_client: Redis
) -> None:
    ledger.add_user("token", 1)
    ids = [await log.write(log.run(1, 1)) for _ in range(10)]
    async with fanout.subscribe("token", after(1, 0, 0)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 10)
        await cut_back(redis_client, ids[5])
        log.heads[1] = (1, 6)
        await log.signals(1, 8)
        await subscriber.until(lambda: subscriber.of(1).sequences == list(range(1, 15)))
        assert subscriber.of(1).gaps == []


async def cut_back(client: Redis, last: bytes) -> None:
    """Lets the log look as an older copy of it: it ends at `last`, also for XINFO."""
    name = stream.log_name()
    entries = await client.xrange(name, max=last)
    await client.delete(name)
    for entry_id, fields in entries:
        await client.xadd(name, fields, id=entry_id)


async def test_entries_that_cannot_be_parsed_are_passed_over(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog, redis_client: Redis
) -> None:
    ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await redis_client.xadd(stream.log_name(), {stream.FIELD: b"\xff\xff\xff"})
        await redis_client.xadd(stream.log_name(), {b"other": b"1"})
        await log.signals(1, 2)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 2)


async def test_a_master_nobody_has_heard_of_begins_when_it_comes(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 9)
    async with fanout.subscribe("token") as subscriber:
        await subscriber.begun()
        await log.signals(9, 3)
        await subscriber.until(lambda: subscriber.of(9).sequences == [1, 2, 3])


async def test_what_the_log_let_go_of_before_it_was_read_is_told_without_a_further_signal(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, redis_client: Redis
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 2)
    loaded = fanout_settings(redis_url, ledger, audit_interval_seconds=0.2)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        async with redis_client.pipeline(transaction=True) as pipeline:
            pipeline.xadd(stream.log_name(), {stream.FIELD: log.next_signals(1, 3)})
            pipeline.xtrim(stream.log_name(), maxlen=0, approximate=False)
            pipeline.hset(stream.heads_name(), "1", "1 5 1 - 0 0")
            await pipeline.execute()
        await subscriber.until(lambda: subscriber.of(1).held == (1, 5))
        (gap,) = subscriber.of(1).gaps
        assert gap.reason == position_pb2.GAP_REASON_TRIMMED


async def test_a_stock_blocking_client_reads_a_stream(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 200, per_entry=10)

    def read() -> list[int]:
        found: list[int] = []
        with grpc.insecure_channel(fanout.target) as channel:
            call = fanout_service_pb2_grpc.FanoutServiceStub(channel).Subscribe(
                pb.SubscribeRequest(masters=[after(1, 0, 0)]),
                metadata=metadata("token"),
                timeout=WAIT_SECONDS,
            )
            for response in call:
                found += [one.sequence for one in response.signals.signals]
                if len(found) >= 200:
                    call.cancel()
                    return found
        return found

    assert await asyncio.to_thread(read) == list(range(1, 201))


async def test_streams_are_refused_while_the_ledger_is_away(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    loaded = fanout_settings(redis_url, ledger, ledger_address="127.0.0.1:1", peer_call_timeout_seconds=0.5)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1)) as subscriber:
        error = await subscriber.ended()
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_fanout_that_starts_before_redis_serves_when_it_is_there(ledger: StandInLedger) -> None:
    ledger.add_user("token", 1)
    async with embedded_redis() as server:
        await killed(server)
        loaded = fanout_settings(server.url, ledger, redis_timeout_seconds=2, tail_block_ms=200)
        async with fanout_running(loaded, ready=False) as fanout:
            async with fanout.subscribe("token", from_now(1)) as subscriber:
                error = await subscriber.ended()
                assert error.code() is grpc.StatusCode.UNAVAILABLE
            await server.start()
            await until_serving(fanout.channel)
            async with fanout.subscribe("token", from_now(1)) as subscriber:
                await subscriber.begun()


async def killed(server: RedisServer) -> None:
    server.kill()
    await server.wait()
