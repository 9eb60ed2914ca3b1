"""Redis dies, stalls, forgets or comes back with less, while masters are sending."""

from __future__ import annotations

import asyncio
import os
import signal as os_signals
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from execution.common.v1 import position_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded import RedisServer, redis
from services.common import log, stream
from tests.integration.ingest.front_door import ingest_running, read_log, signals_in
from tests.integration.ingest.raw_master import RawMaster, connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.steady_master import check_log, steady
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, login_body, signal

MASTERS = 5


@pytest.fixture
async def own_redis() -> AsyncIterator[RedisServer]:
    async with redis(appendfsync="always") as server:
        yield server


async def test_nothing_acknowledged_is_lost_when_redis_is_killed_under_load(
    own_redis: RedisServer, ledger: StandInLedger
):
    masters = [ledger.add(Credentials(master_id=n)) for n in range(1, MASTERS + 1)]
    async with (
        ingest_running(own_redis.url, ledger.port) as ingest,
        steady(lambda: ingest.port, masters[0]) as first,
        steady(lambda: ingest.port, masters[1], batch=1) as second,
        steady(lambda: ingest.port, masters[2], batch=16) as third,
    ):
        for _ in range(3):
            await asyncio.gather(*(one.acknowledges(100) for one in (first, second, third)))
            own_redis.kill()
            await own_redis.wait()
            await own_redis.restart()
        await asyncio.gather(*(one.acknowledges(100) for one in (first, second, third)))
    async with stream.connect(own_redis.url) as client:
        runs = await read_log(client)
    for one in (first, second, third):
        assert check_log(runs, one) == []
        assert one.epochs_seen == [1]
        # The sessions outlived the log's absence.
        assert one.logins == 1
    assert pb.REJECT_CODE_UNAVAILABLE in first.rejects + second.rejects + third.rejects


async def test_a_session_outlives_a_log_that_stalls(own_redis: RedisServer, ledger: StandInLedger):
    async with (
        ingest_running(own_redis.url, ledger.port, redis_timeout_seconds=0.3) as ingest,
        logged_in(ingest.port) as master,
    ):
        master.send_signals(1)
        await master.acknowledged_up_to(1)
        os.kill(own_redis.pid, os_signals.SIGSTOP)
        try:
            master.send_signals(2, 3)
            reject = await master.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
            assert (reject.sequence, reject.expected_sequence, reject.retryable) == (2, 2, True)
        finally:
            os.kill(own_redis.pid, os_signals.SIGCONT)
        # What was on its way when the connection was cut may have got in; then it is acknowledged as it is.
        await retried(master, 2, 3)
        async with stream.connect(own_redis.url) as client:
            assert list(signals_in(await read_log(client))) == [1, 2, 3, 4]


async def test_a_login_while_the_log_stalls_is_unavailable_and_may_be_repeated(
    own_redis: RedisServer, ledger: StandInLedger
):
    """Nothing is being appended: the login alone waits for the log."""
    limits = {"redis_timeout_seconds": 0.3, "durability_timeout_seconds": 0.2}
    async with (
        ingest_running(own_redis.url, ledger.port, **limits) as ingest,
        connected(ingest.port) as master,
    ):
        await master.greet()
        login = master.keys.login(login_body(master.who).SerializeToString())
        os.kill(own_redis.pid, os_signals.SIGSTOP)
        try:
            master.send(login)
            assert (await master.rejected_with(pb.REJECT_CODE_UNAVAILABLE)).retryable
            assert not ingest.publisher.is_ready
        finally:
            os.kill(own_redis.pid, os_signals.SIGCONT)
        await until(lambda: ingest.publisher.is_ready)
        master.send(login)
        await master.expect("welcome")


async def test_a_snapshot_while_the_log_stalls_is_unavailable_and_may_be_repeated(
    own_redis: RedisServer, ledger: StandInLedger
):
    limits = {"redis_timeout_seconds": 0.3, "durability_timeout_seconds": 0.2}
    async with (
        ingest_running(own_redis.url, ledger.port, **limits) as ingest,
        logged_in(ingest.port) as master,
    ):
        snapshot = master.keys.snapshot_frame(
            snapshot_pb2.Snapshot(master_id=1, taken_at_us=1, account_mode=1)
        )
        os.kill(own_redis.pid, os_signals.SIGSTOP)
        try:
            master.send(snapshot)
            reject = await master.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
            assert (reject.sequence, reject.retryable) == (0, True)
        finally:
            os.kill(own_redis.pid, os_signals.SIGCONT)
        await until(lambda: ingest.publisher.is_ready)
        master.send(snapshot)
        assert (await master.expect("ack")).ack.durability == position_pb2.DURABILITY_APPENDED


async def retried(master: RawMaster, first: int, count: int) -> None:
    """Sends the same signals until they are acknowledged, as a client does."""
    frame = master.keys.signals(first, [signal(first + n) for n in range(count)])
    while master.acknowledged < first + count - 1:
        master.send(frame)
        answer = await master.receive()
        assert answer is not None
        if answer.HasField("ack"):
            master.acknowledged = answer.ack.sequence
        else:
            assert answer.reject.code in (pb.REJECT_CODE_UNAVAILABLE, pb.REJECT_CODE_GAP)
            await asyncio.sleep(0.05)


async def test_functions_that_went_away_are_loaded_again(own_redis: RedisServer, ledger: StandInLedger):
    async with (
        ingest_running(own_redis.url, ledger.port) as ingest,
        logged_in(ingest.port) as master,
        stream.connect(own_redis.url) as client,
    ):
        await client.function_flush()
        master.send_signals(1)
        await master.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
        await retried(master, 1, 1)
        assert list(signals_in(await read_log(client))) == [1]


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (
            ("CONFIG", "SET", "min-replicas-to-write", "1"),
            ("CONFIG", "SET", "min-replicas-to-write", "0"),
        ),
    ],
    ids=["out-of-memory", "read-only", "no-replicas"],
)
async def test_a_log_that_refuses_writes_is_unavailable_until_it_takes_them(
    own_redis: RedisServer, ledger: StandInLedger, broken: tuple[str, ...], mended: tuple[str, ...]
):
    other = ledger.add(Credentials(master_id=2))
    async with (
        ingest_running(own_redis.url, ledger.port) as ingest,
        logged_in(ingest.port) as master,
        stream.connect(own_redis.url) as client,
    ):
        master.send_signals(1)
        await master.acknowledged_up_to(1)
        await client.execute_command(*broken)
        master.send_signals(2, 3)
        reject = await master.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
        assert (reject.sequence, reject.expected_sequence) == (2, 2)
        async with connected(ingest.port, other) as late:
            await late.greet()
            late.send(late.keys.login(login_body(other).SerializeToString()))
            await late.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
        await client.execute_command(*mended)
        await retried(master, 2, 3)
        assert list(signals_in(await read_log(client))) == [1, 2, 3, 4]


async def test_a_log_that_lost_everything_begins_a_new_epoch_behind_what_the_master_saw(
    own_redis: RedisServer, ledger: StandInLedger
):
    async with ingest_running(own_redis.url, ledger.port) as ingest, stream.connect(own_redis.url) as client:
        async with logged_in(ingest.port) as master:
            master.send_signals(1, 5)
            await master.acknowledged_up_to(5)
            await client.flushall()
            master.send_signals(6)
            frames = await master.ended()
            assert [frame.WhichOneof("frame") for frame in frames] == ["bye"]
        async with logged_in(ingest.port, acknowledged=(1, 5)) as master:
            assert (master.welcome.position.epoch, master.welcome.position.sequence) == (2, 5)
            master.send_signals(6)
            await master.acknowledged_up_to(6)
        start, batch = await read_log(client)
        assert (start.epoch, start.first_sequence, start.last_sequence) == (2, 5, 5)
        assert start.epoch_start.reason == position_pb2.GAP_REASON_LOG_LOST
        assert (start.epoch_start.previous.epoch, start.epoch_start.previous.sequence) == (0, 0)
        assert (batch.epoch, batch.first_sequence) == (2, 6)
        assert (await log.read_head(client, 1)).position == (2, 6)


async def test_a_log_restored_from_an_older_file_begins_a_new_epoch(data_folder: Path, ledger: StandInLedger):
    """The tail is cut off the file, as a power cut does with appendfsync everysec."""
    async with redis(data_folder, appendfsync="always") as server:
        async with (
            ingest_running(server.url, ledger.port) as ingest,
            steady(lambda: ingest.port, Credentials()) as master,
        ):
            await master.acknowledges(200)
            server.kill()
            await server.wait()
            cut_off(data_folder)
            await server.restart()
            await master.acknowledges(200)
        async with stream.connect(server.url) as client:
            runs = await read_log(client)
    (start,) = check_log(runs, master)
    assert start.epoch_start.reason == position_pb2.GAP_REASON_LOG_LOST
    assert master.epochs_seen == [1, 2]
    lost = start.last_sequence - start.epoch_start.previous.sequence
    assert lost > 0


def cut_off(data_folder: Path) -> None:
    """Takes the last third off the append-only file, at any byte."""
    (file,) = data_folder.glob("appendonlydir/*.incr.aof")
    os.truncate(file, file.stat().st_size * 2 // 3)


async def test_a_login_that_says_it_lost_its_outbox_begins_a_new_epoch(
    own_redis: RedisServer, ledger: StandInLedger
):
    async with ingest_running(own_redis.url, ledger.port) as ingest, stream.connect(own_redis.url) as client:
        async with logged_in(ingest.port) as master:
            master.send_signals(1, 3)
            await master.acknowledged_up_to(3)
        async with logged_in(ingest.port, begin_epoch=True) as master:
            assert (master.welcome.position.epoch, master.welcome.position.sequence) == (2, 3)
        _, start = await read_log(client)
        assert start.epoch_start.reason == position_pb2.GAP_REASON_MASTER_LOST
        assert (start.epoch_start.previous.epoch, start.epoch_start.previous.sequence) == (1, 3)
        async with logged_in(ingest.port, acknowledged=(2, 3)) as master:
            assert master.welcome.position.epoch == 2


async def test_a_login_while_the_log_is_away_is_unavailable_and_may_be_repeated(
    own_redis: RedisServer, ledger: StandInLedger
):
    async with ingest_running(own_redis.url, ledger.port) as ingest:
        await own_redis.stop()
        await until(lambda: not ingest.publisher.is_ready)
        async with connected(ingest.port) as master:
            await master.greet()
            login = master.keys.login(login_body(master.who).SerializeToString())
            master.send(login)
            reject = await master.rejected_with(pb.REJECT_CODE_UNAVAILABLE)
            assert reject.retryable
            await own_redis.start()
            await until(lambda: ingest.publisher.is_ready)
            master.send(login)
            assert (await master.expect("welcome")).welcome.position.epoch == 1


async def test_the_front_door_may_start_before_the_log(ledger: StandInLedger):
    async with redis() as server:
        await server.stop()
        async with ingest_running(server.url, ledger.port) as ingest:
            assert not ingest.publisher.is_ready
            await server.start()
            await until(lambda: ingest.publisher.is_ready)
            async with logged_in(ingest.port) as master:
                master.send_signals(1)
                await master.acknowledged_up_to(1)
