"""The benchmark of the fan-out measures what it says, from the real processes; its figures are not judged."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from hpack import Encoder
from hyperframe.frame import GoAwayFrame, HeadersFrame, RstStreamFrame
from typer.testing import CliRunner

from bench.reader import Reader, ReaderError
from mesh.cli import app

NAMES = {
    "fanout.deliveries_per_second",
    "fanout.deliveries_per_cpu_second",
    "fanout.p99_ms_at_half",
    "fanout.coalesced_signals_per_second",
    "fanout.tls_deliveries_per_second",
    "fanout.tls_p99_ms_at_half",
    "fanout.p99_ms_beside_stalled_readers",
    "fanout.memory_growth_mib_beside_stalled_readers",
    "fanout.idle_bytes_per_subscriber",
    "fanout.idle_reach_ms",
}
MEMORY = {"fanout.memory_growth_mib_beside_stalled_readers", "fanout.idle_bytes_per_subscriber"}
WITH_YARDSTICK = {
    "fanout.deliveries_per_second",
    "fanout.deliveries_per_cpu_second",
    "fanout.p99_ms_at_half",
    "fanout.p99_ms_beside_stalled_readers",
}


@pytest.mark.timeout(300)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are pinned to cores, as on Linux")
def test_every_figure_is_there_and_the_bare_writer_sends_the_same_bytes(tmp_path: Path):
    file = tmp_path / "result.json"
    words = "bench fanout --runs 1 --seconds 0.5 --repeat-seconds 0 --subscribers 20 --idle 300 --json"
    done = CliRunner().invoke(app, [*words.split(), str(file)])
    assert done.exit_code == 0, done.output
    document = json.loads(file.read_text())
    results = {result["name"]: result for result in document["results"]}
    assert set(results) == NAMES
    # Of so few streams the memory may not show.
    assert all(results[name]["value"] > 0 for name in NAMES - MEMORY)
    assert all(results[name]["ratio"] > 0 for name in WITH_YARDSTICK)
    details = results["fanout.deliveries_per_second"]["details"]
    ours, bare = details["runs"][0], details["yardstick_runs"][0]
    assert ours["signals_per_message"] == bare["signals_per_message"] == 1
    assert abs(ours["bytes_per_message"] - bare["bytes_per_message"]) < 4
    assert results["fanout.idle_bytes_per_subscriber"]["details"]["subscribers"] == 300


@pytest.mark.parametrize(
    ("last", "named"),
    [
        (
            HeadersFrame(
                1,
                data=Encoder().encode(
                    [(":status", "200"), ("grpc-status", "14"), ("grpc-message", "not%20yet")]
                ),
                flags=["END_HEADERS", "END_STREAM"],
            ),
            "UNAVAILABLE: not yet",
        ),
        (RstStreamFrame(1, error_code=8), "CANCEL"),
        (GoAwayFrame(0, error_code=11, additional_data=b"ping"), "ENHANCE_YOUR_CALM ping"),
    ],
)
def test_a_reader_that_is_ended_says_how(last: HeadersFrame | RstStreamFrame | GoAwayFrame, named: str):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        reader = Reader(listening.getsockname()[1], "license", 1, None)
        connection, _ = listening.accept()
        with connection, reader.socket:
            connection.sendall(last.serialize())
            reader.socket.setblocking(True)
            with pytest.raises(ReaderError, match=named):
                reader.receive(lambda _: None)
