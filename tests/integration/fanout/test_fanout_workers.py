"""Streams in one process and calls that come to another: replicas, and `python -m services.fanout --workers N`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from redis.asyncio import Redis

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from execution.ledger.v1 import license_service_pb2 as license_pb
from mesh import ports
from services.fanout import acknowledgements
from tests.integration.fanout.fanout_service import (
    WAIT_SECONDS,
    Fanout,
    Subscriber,
    after,
    fanout_running,
    fanout_settings,
    from_now,
    metadata,
    place,
    until_serving,
)
from tests.integration.fanout.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger
from tests.integration.fanout.test_fanout_positions import acknowledge
from tests.integration.fanout.written_log import WrittenLog

LOOPBACK = "127.0.0.1"
SUBSCRIBERS = 12
Stub = "fanout_service_pb2_grpc.FanoutServiceAsyncStub"


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Stub]:
    """A stub on a connection of its own."""
    async with grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield fanout_service_pb2_grpc.FanoutServiceStub(channel)


async def listed(stub: Stub, *, page_size: int = 0) -> list[pb.StreamInfo]:
    found: list[pb.StreamInfo] = []
    token = ""
    while True:
        page = await stub.ListStreams(
            pb.ListStreamsRequest(page_size=page_size, page_token=token), metadata=metadata(OPERATOR_TOKEN)
        )
        found += page.streams
        token = page.next_page_token
        if not token:
            return found
        assert len(page.streams) == page_size


async def until_acknowledged(stub: Stub, users: int, sequence: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            streams = await listed(stub)
            cursors = [cursor for one in streams for cursor in one.cursors]
            if [place(cursor.acknowledged) for cursor in cursors] == [(1, sequence)] * users:
                return
            await asyncio.sleep(0.02)


async def test_an_acknowledgement_finds_the_stream_in_another_process(
    redis_url: str, fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1)
    await log.signals(1, 5)
    async with (
        fanout_running(fanout_settings(redis_url, ledger)) as other,
        fanout.subscribe("token", after(1, 1, 0)) as subscriber,
    ):
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
        await other.stub.Acknowledge(acknowledge((1, 1, 4)), metadata=metadata("token"))
        await until_acknowledged(fanout.stub, 1, 4)
        await other.stub.Acknowledge(acknowledge((1, 1, 2)), metadata=metadata("token"))
        await other.stub.Acknowledge(acknowledge((1, 1, 5)), metadata=metadata("token"))
        await until_acknowledged(fanout.stub, 1, 5)
        assert user.user_id in {one.user_id for one in await listed(fanout.stub)}


async def test_an_acknowledgement_over_the_streams_connection_concerns_nobody_else(
    redis_client: Redis, fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1, 2)
    await log.signals(1, 5)
    await log.signals(2, 5)
    async with fanout.subscribe("token", after(1, 1, 0)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
        await fanout.stub.Acknowledge(acknowledge((1, 1, 4)), metadata=metadata("token"))
        await until_acknowledged(fanout.stub, 1, 4)
        # The other master's stream is somewhere else, so this is told, and the first would have been before it.
        await fanout.stub.Acknowledge(acknowledge((2, 1, 3)), metadata=metadata("token"))
        async with asyncio.timeout(WAIT_SECONDS):
            while not (entries := await redis_client.xrange(acknowledgements.NAME)):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
    told = [acknowledgements.ledger_pb.RecordPositionsRequest.FromString(one[b"b"]) for _, one in entries]
    assert [(one.master_id, place(one.acknowledged)) for batch in told for one in batch.positions] == [
        (2, (1, 3))
    ]


@dataclass
class Workers:
    """The parent of two workers."""

    process: Process
    target: str

    def children(self) -> list[int]:
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [int(pid) for pid in file.read().split()]


@pytest.fixture
async def workers(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, edge: str
) -> AsyncIterator[Workers]:
    base = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
    with ports.port_block() as block:
        port, admin_port = block.take(), block.take()
        environment = base | {
            "EDGE": edge,
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "OPERATOR_TOKEN": OPERATOR_TOKEN,
            "GRPC_BIND_ADDRESS": f"{LOOPBACK}:{port}",
            "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:{admin_port}",
            "REDIS_URL": redis_url,
            "LEDGER_ADDRESS": f"{LOOPBACK}:{ledger.port}",
            "DRAIN_GRACE_SECONDS": "5",
            "DRAIN_JITTER_SECONDS": "0.1",
            "PROGRESS_INTERVAL_SECONDS": "0.2",
            "RECORD_INTERVAL_SECONDS": "0.05",
            "LOG_LEVEL": "INFO",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.fanout", "--workers", "2"),
            env=environment,
            stdout=PIPE,
            stderr=PIPE,
            limit=1 << 20,
        )
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    line = await process.stdout.readline()
                    assert line, await process.stderr.read()
                    if b'"parent"' in line and b'"ready"' in line:
                        break
            target = f"{LOOPBACK}:{port}"
            async with grpc.aio.insecure_channel(target) as channel:
                await until_serving(channel)
            yield Workers(process, target)
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
            # grpc.aio complains on stderr when a worker that has just been started again is stopped in its start.
            assert process.returncode == 0, errors
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def subscribed(stack: AsyncExitStack, workers: Workers, token: str) -> Subscriber:
    """On a connection of its own; opened again where that worker has not read the log yet."""
    for _ in range(100):
        stub = await stack.enter_async_context(connected(workers.target))
        subscriber = Subscriber(stub, token, [from_now(1)])
        try:
            await subscriber.begun()
        except AssertionError:
            await asyncio.sleep(0.1)
            continue
        return await stack.enter_async_context(subscriber)
    raise TimeoutError


async def test_subscribers_of_all_workers_are_served_listed_and_told(
    workers: Workers, ledger: StandInLedger, log: WrittenLog
) -> None:
    users = [ledger.add_user(f"token-{number}", 1) for number in range(SUBSCRIBERS)]
    async with AsyncExitStack() as stack:
        subscribers = [await subscribed(stack, workers, f"token-{number}") for number in range(SUBSCRIBERS)]
        await log.signals(1, 10)
        for one in subscribers:
            await one.until(lambda one=one: one.of(1).sequences == list(range(1, 11)))
        others = [await stack.enter_async_context(connected(workers.target)) for _ in range(4)]
        for stub in others:
            streams = await listed(stub, page_size=5)
            ids = [one.stream_id for one in streams]
            assert ids == sorted(set(ids))
            assert {one.user_id for one in streams} == {user.user_id for user in users}
        # Numbers tell the worker; both have some.
        assert len({number >> 46 for number in ids}) == 2
        for number in range(SUBSCRIBERS):
            await others[number % 4].Acknowledge(acknowledge((1, 1, 7)), metadata=metadata(f"token-{number}"))
        await until_acknowledged(others[0], SUBSCRIBERS, 7)
        for user in users:
            await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        for one in subscribers:
            await one.until(lambda one=one: pb.SUBSCRIPTION_STATE_PAUSED_ALL in one.of(1).states)
        for user in users:
            await ledger.revoke(user)
        for one in subscribers:
            assert (await one.ended()).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_killed_worker_takes_only_its_own_streams_and_they_come_back(
    workers: Workers, ledger: StandInLedger, log: WrittenLog
) -> None:
    for number in range(SUBSCRIBERS):
        ledger.add_user(f"token-{number}", 1)
    async with AsyncExitStack() as stack:
        subscribers = [await subscribed(stack, workers, f"token-{number}") for number in range(SUBSCRIBERS)]
        stub = await stack.enter_async_context(connected(workers.target))
        by_user = {one.user_id: one.stream_id >> 46 for one in await listed(stub)}
        assert set(by_user.values()) == {1, 2}
        os.kill(workers.children()[0], signal.SIGKILL)
        ended = [one for one in subscribers if await has_ended(one)]
        assert 0 < len(ended) < SUBSCRIBERS
        await log.signals(1, 5)
        for one in subscribers:
            if one not in ended:
                await one.until(lambda one=one: one.of(1).sequences == [1, 2, 3, 4, 5])
        again = await stack.enter_async_context(connected(workers.target))
        for number, one in enumerate(subscribers):
            if one in ended:
                back = await stack.enter_async_context(Subscriber(again, f"token-{number}", [after(1, 1, 0)]))
                await back.until(lambda back=back: back.of(1).sequences == [1, 2, 3, 4, 5])


async def has_ended(subscriber: Subscriber) -> bool:
    """Whether it has, or else has gone on since."""
    progress = subscriber.progress
    async with asyncio.timeout(WAIT_SECONDS):
        while subscriber.error is None and subscriber.progress < progress + 3:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
    return subscriber.error is not None
