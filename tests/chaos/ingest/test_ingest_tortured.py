"""Short versions of the long runs: kills under load, mutated bytes at a real front door, thousands who only connect."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from bench.authority import answering
from bench.front_door import FrontDoorProcess, front_door
from bench.fuzz.ingest import FuzzOptions, fuzz
from bench.torture import ingest as torturing
from bench.torture.ingest import Durability, TortureOptions, torture
from bench.torture.log_reading import read_masters
from bench.torture.masters import trading
from bench.torture.promises import judge
from execution.common.v1.position_pb2 import DURABILITY_APPENDED
from mesh.embedded import RedisServer, redis
from services.common import stream

SILENT = 5_000
FILES_NEEDED = SILENT + 1_000


@pytest.mark.parametrize("durability", ["APPENDED", "FSYNCED"])
async def test_kills_under_load_lose_nothing_unseen(durability: Durability):
    report = await torture(
        TortureOptions(
            kills=3, redis_kills=4, masters=8, signals_per_second=400, durability=durability, seed=11
        ),
        print,
    )
    assert report.is_sound, report.problems
    assert (report.kills, report.redis_kills, report.redis_cuts) == (3, 4, 2)
    assert report.acknowledged >= 8 * 8


async def test_a_log_that_forgets_without_a_cut_is_called_unsound(monkeypatch: pytest.MonkeyPatch):
    def without_a_file(appendfsync: str) -> AbstractAsyncContextManager[RedisServer]:
        return redis(settings={"appendonly": "no"})

    monkeypatch.setattr(torturing, "redis", without_a_file)
    report = await torture(TortureOptions(kills=0, redis_kills=1, masters=4, signals_per_second=200), print)
    assert not report.is_sound
    assert any("no file was cut" in problem for problem in report.problems)
    # It was seen by the masters, too, and named in the log.
    assert report.lost_visibly > 0


async def test_mutated_frames_do_a_real_front_door_no_harm():
    report = await fuzz(FuzzOptions(frames=40_000, seconds=40, seed=12), os.getpid(), print)
    assert report.is_sound, report.failure
    assert report.live_connections > 10
    assert report.signed_frames_taken > 100


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


async def test_a_master_works_beside_thousands_of_silent_connections(
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
        silent_connections(door, SILENT) as silent,
        trading(
            f"127.0.0.1:{door.port}",
            tmp_path,
            masters=1,
            signals_per_second=1_000,
            durability=DURABILITY_APPENDED,
        ) as (worker,),
    ):
        async with asyncio.timeout(60):
            while worker.promises.sequence < 3_000:  # noqa: ASYNC110  (the client sets no event)
                await asyncio.sleep(0.02)
        # They were there all the time, and were not sent away.
        for one in silent[:: SILENT // 50]:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)
    async with stream.connect(redis_url) as client:
        logs = await read_masters(client)
    assert judge(worker.promises, logs[worker.master_id]).problems == []
    assert worker.problems == []


async def test_thousands_of_silent_connections_are_few_with_the_usual_limits(
    redis_url: str, tmp_path: Path, many_files: None
):
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
            before = worker.promises.sequence
            async with asyncio.timeout(60):
                while worker.promises.sequence < before + 500:  # noqa: ASYNC110  (the client sets no event)
                    await asyncio.sleep(0.02)
            told = [await asyncio.to_thread(_was_told_to_go, one) for one in silent[-100:]]
    assert all(told)
    assert worker.problems == []


def _was_told_to_go(one: socket.socket) -> bool:
    """Whether a Reject came, and then the end."""
    one.settimeout(20)
    received = b""
    while data := one.recv(4_096):
        received += data
    return b"too many connections" in received
