"""The benchmark of the front door measures what it says, from the real processes; its figures are not judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.authority import answering
from bench.front_door import front_door
from bench.load import Load, as_json, seen_of
from bench.process import worker
from mesh.cli import app
from mesh.errors import MeshError

NAMES = {
    "ingest.signals_per_second",
    "ingest.single_frames_per_second",
    "ingest.ack_p99_ms_at_10000",
    "ingest.memory_growth_mib",
    "ingest.fsynced_signals_per_second",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are pinned to cores, as on Linux")
def test_every_figure_has_its_yardstick_from_the_same_run(tmp_path: Path):
    file = tmp_path / "result.json"
    words = ["bench", "ingest", "--json", str(file), "--runs", "1", "--seconds", "0.5", "--attempts", "1"]
    done = CliRunner().invoke(app, [*words, "--connections", "8"])
    assert done.exit_code == 0, done.output
    document = json.loads(file.read_text())
    results = {result["name"]: result for result in document["results"]}
    assert set(results) == NAMES
    assert document["machine"]["cores"] >= 2
    for name in NAMES - {"ingest.memory_growth_mib"}:
        assert results[name]["value"] > 0
        assert results[name]["yardstick"] > 0
        assert results[name]["ratio"] > 0


async def test_a_load_counts_every_signal_once(redis_url: str, tmp_path: Path):
    async with (
        answering() as authority_port,
        front_door(redis_url, authority_port, tmp_path, environment={"SIGNAL_AGE_MS_MAX": "600000"}) as door,
    ):
        load = Load(
            door.port,
            connections=4,
            seconds=0.5,
            warmup_seconds=0.25,
            signals_per_second=400,
            paced=True,
            watched_pids=(door.pid,),
        )
        async with worker(0, "bench.load", as_json(load)) as sender:
            seen = seen_of(await sender.line(60))
    assert seen.signals == 200
    assert set(seen.latency_ms) == {"p50", "p90", "p99", "p99.9", "p100"}
    assert seen.resident_end_bytes > 0


async def test_a_load_that_is_refused_says_why(redis_url: str, tmp_path: Path):
    async with (
        answering() as authority_port,
        front_door(redis_url, authority_port, tmp_path, environment={"SIGNALS_PER_SECOND_MAX": "1"}) as door,
    ):
        load = Load(door.port, connections=1, batch=16, seconds=0.5, warmup_seconds=0, signals_per_second=400)
        async with worker(0, "bench.load", as_json(load)) as sender:
            with pytest.raises(MeshError, match="RATE_LIMITED"):
                seen_of(await sender.line(60))
