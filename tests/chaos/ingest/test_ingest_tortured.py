"""Short versions of the long runs: kills under load, and mutated bytes at a real front door."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager

import pytest

from bench.fuzz.ingest import FuzzOptions, fuzz
from bench.torture import ingest as torturing
from bench.torture.ingest import Durability, TortureOptions, torture
from mesh.embedded import RedisServer, redis


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
