"""Thousands who only connect, beside a master that works as fast as it can."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench.authority import answering
from bench.front_door import FrontDoorProcess, front_door
from bench.machine import resident_bytes
from bench.torture.log_reading import read_masters
from bench.torture.masters import WatchedMaster, trading
from bench.torture.promises import judge
from execution.common.v1.position_pb2 import DURABILITY_APPENDED
from services.common import stream

SILENT = 5_000
FILES_NEEDED = SILENT + 1_000
# More than any client can put in: it goes as fast as acknowledgements come.
FULL_SPEED = 1_000_000.0
SIGNALS = 30_000
MIB = 1_048_576
SILENT_BYTES_MAX = 48 * 1_024
WORK_BYTES_MAX = 64 * MIB


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allows this process, and those that it starts, so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_NEEDED:
        pytest.skip(f"needs {FILES_NEEDED} open files, the limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES_NEEDED), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def silent_connections(door: FrontDoorProcess, count: int) -> AsyncIterator[list[socket.socket]]:
    """Clients that connect and never say anything."""
    opened: list[socket.socket] = []
    try:
        for number in range(count):
            opened.append(socket.create_connection(("127.0.0.1", door.port), timeout=20))
            if number % 50 == 0:
                await asyncio.sleep(0)
        yield opened
    finally:
        for one in opened:
            one.close()


async def acknowledges(worker: WatchedMaster, count: int) -> float:
    """Waits until so many more signals are acknowledged; returns how many a second those were."""
    goal, began = worker.promises.sequence + count, time.monotonic()
    async with asyncio.timeout(60):
        while worker.promises.sequence < goal:  # noqa: ASYNC110  (the client sets no event)
            await asyncio.sleep(0.005)
    return count / (time.monotonic() - began)


async def test_a_master_works_at_full_speed_beside_thousands_of_silent_connections(
    redis_url: str, tmp_path: Path, many_files: None
):
    environment = {
        "UNAUTHENTICATED_CONNECTIONS_MAX": "10000",
        "CONNECTIONS_MAX": "10000",
        "UNAUTHENTICATED_SECONDS_MAX": "300",
    }
    async with (
        answering() as authority_port,
        front_door(redis_url, authority_port, tmp_path, environment=environment) as door,
        trading(
            f"127.0.0.1:{door.port}",
            tmp_path,
            masters=1,
            signals_per_second=FULL_SPEED,
            durability=DURABILITY_APPENDED,
        ) as (worker,),
    ):
        alone_per_second = await acknowledges(worker, SIGNALS)
        alone_bytes = resident_bytes(door.pid)
        async with silent_connections(door, SILENT) as silent:
            beside_bytes = resident_bytes(door.pid)
            beside_per_second = await acknowledges(worker, SIGNALS)
            worked_bytes = resident_bytes(door.pid)
            # They were there all the time, and were not sent away.
            for one in silent[:: SILENT // 50]:
                one.setblocking(False)
                with pytest.raises(BlockingIOError):
                    one.recv(1)
        print(
            f"acknowledged: {alone_per_second:,.0f}/s alone, {beside_per_second:,.0f}/s beside {SILENT:,} silent"
            f" connections; memory: {alone_bytes / MIB:.1f} MiB alone, {beside_bytes / MIB:.1f} with them,"
            f" {worked_bytes / MIB:.1f} after the work"
        )
        assert beside_bytes - alone_bytes < SILENT * SILENT_BYTES_MAX + WORK_BYTES_MAX
        assert worked_bytes - beside_bytes < WORK_BYTES_MAX
    async with stream.connect(redis_url) as client:
        logs = await read_masters(client)
    assert judge(worker.promises, logs[worker.master_id]).problems == []
    assert worker.problems == []


async def test_thousands_of_silent_connections_are_few_with_the_usual_limits(
    redis_url: str, tmp_path: Path, many_files: None
):
    """Those who are one too many are told so, as far as that costs little, and are gone."""
    async with (
        answering() as authority_port,
        front_door(
            redis_url, authority_port, tmp_path, environment={"CONNECTIONS_PER_ADDRESS_MAX": "256"}
        ) as door,
        trading(
            f"127.0.0.1:{door.port}",
            tmp_path,
            masters=1,
            signals_per_second=500,
            durability=DURABILITY_APPENDED,
        ) as (worker,),
    ):
        await worker.master.wait_open(20)
        async with silent_connections(door, SILENT) as silent:
            await acknowledges(worker, 500)
            ends = [await asyncio.to_thread(_end, one) for one in silent[256:]]
    told = [end for end in ends if b"too many connections" in end]
    assert all(end == b"" or end in told for end in ends)
    assert told
    assert worker.problems == []


def _end(one: socket.socket) -> bytes:
    """Everything up to the end of the connection, which must come."""
    one.settimeout(20)
    received = b""
    try:
        while data := one.recv(4_096):
            received += data
    except ConnectionError:
        pass
    return received
