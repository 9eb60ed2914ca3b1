"""SIGKILL of the fan-out and of Redis under load: readers that come back have everything once and in order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from redis.asyncio import Redis

from execution.fanout.v1 import fanout_service_pb2_grpc
from mesh.embedded import RedisServer
from tests.integration.fanout.fanout_service import WAIT_SECONDS, Subscriber, after
from tests.integration.fanout.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger
from tests.integration.fanout.written_log import WrittenLog

ROOT = Path(__file__).resolve().parents[3]
MASTERS = (1, 2)
POLL_SECONDS = 0.02


class FanoutProcess:
    """`python -m services.fanout`, killed and started again on the same port."""

    def __init__(self, redis_url: str, ledger_port: int, edge: str) -> None:
        self.port = free_port()
        self._environment = {
            **os.environ,
            "EDGE": edge,
            "REDIS_URL": redis_url,
            "LEDGER_ADDRESS": f"127.0.0.1:{ledger_port}",
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "OPERATOR_TOKEN": OPERATOR_TOKEN,
            "GRPC_BIND_ADDRESS": f"127.0.0.1:{self.port}",
            "ADMIN_BIND_ADDRESS": f"127.0.0.1:{free_port()}",
            "TAIL_BLOCK_MS": "200",
            "PROGRESS_INTERVAL_SECONDS": "0.2",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "services.fanout",
            cwd=ROOT,
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(params=["aio", "h2"])
async def process(
    request: pytest.FixtureRequest, own_redis: RedisServer, own_ledger: StandInLedger
) -> AsyncIterator[FanoutProcess]:
    process = FanoutProcess(own_redis.url, own_ledger.port, request.param)
    await process.start()
    yield process
    assert await process.end(signal.SIGTERM) == 0


class ComingBack:
    """A reader that opens a stream again whenever one ends, after what it holds."""

    def __init__(self, port: int, token: str) -> None:
        self.sequences: dict[int, list[int]] = {master: [] for master in MASTERS}
        self.streams = 0
        self._port = port
        self._token = token
        self._stopping = False
        self._current: Subscriber | None = None
        self._task = asyncio.create_task(self._run())

    def count(self) -> int:
        """How many signals came so far."""
        current = self._current
        return sum(
            len(self.sequences[master]) + (len(current.of(master).signals) if current else 0)
            for master in MASTERS
        )

    async def stop(self) -> None:
        self._stopping = True
        if self._current is not None:
            self._current.call.cancel()
        await self._task

    async def _run(self) -> None:
        while not self._stopping:
            starts = [after(master, 1, len(self.sequences[master])) for master in MASTERS]
            async with AsyncExitStack() as stack:
                channel = await stack.enter_async_context(
                    grpc.aio.insecure_channel(
                        f"127.0.0.1:{self._port}",
                        [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)],
                    )
                )
                stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
                current = self._current = Subscriber(stub, self._token, starts)
                await current.over()
                self.streams += current.messages > 0
            for master in MASTERS:
                self.sequences[master] += current.of(master).sequences
                assert current.of(master).gaps == []
            self._current = None
            await asyncio.sleep(0.05)


@asynccontextmanager
async def load(client: Redis, ledger: StandInLedger) -> AsyncIterator[WrittenLog]:
    log = WrittenLog(client)
    await log.begin()
    stopping = asyncio.Event()

    async def write() -> None:
        while not stopping.is_set():
            for master in MASTERS:
                await log.signals(master, 3, per_entry=3)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(write())
    try:
        yield log
    finally:
        stopping.set()
        await task


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_SECONDS / POLL_SECONDS)):
        if condition():
            return
        await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError


async def until_count(readers: list[ComingBack], more: int) -> None:
    """Waits until every reader got that many more signals."""
    wanted = [(reader, reader.count() + more) for reader in readers]
    await until(lambda: all(reader.count() >= count for reader, count in wanted))


async def finish(readers: list[ComingBack], log: WrittenLog) -> None:
    """Everybody has everything that was written, once and in order."""
    total = sum(log.heads[master][1] for master in MASTERS)
    await until(lambda: all(reader.count() >= total for reader in readers))
    for reader in readers:
        await reader.stop()
        for master in MASTERS:
            assert reader.sequences[master] == list(range(1, log.heads[master][1] + 1))


async def test_killing_the_fanout_loses_and_doubles_nothing(
    process: FanoutProcess, own_client: Redis, own_ledger: StandInLedger
) -> None:
    for number in range(5):
        own_ledger.add_user(f"token-{number}", *MASTERS)
    readers = [ComingBack(process.port, f"token-{number}") for number in range(5)]
    async with load(own_client, own_ledger) as log:
        for _ in range(3):
            await until_count(readers, 60)
            await process.end(signal.SIGKILL)
            await process.start()
        await until_count(readers, 60)
    await finish(readers, log)
    assert all(reader.streams >= 4 for reader in readers)


async def test_killing_redis_loses_and_doubles_nothing(
    process: FanoutProcess, own_redis: RedisServer, own_client: Redis, own_ledger: StandInLedger
) -> None:
    """Everything that was appended was synced: what comes back is what was there."""
    own_ledger.add_user("token", *MASTERS)
    readers = [ComingBack(process.port, "token")]
    async with load(own_client, own_ledger) as log:
        for _ in range(3):
            await until_count(readers, 60)
            own_redis.kill()
            await own_redis.wait()
            await own_redis.start()
        await until_count(readers, 60)
    await finish(readers, log)
    assert readers[0].streams == 1
