"""The main job, whole: every service and both stores die by SIGKILL while it runs, and the books still add up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 18
NAMES = (
    "services.ingest",
    "services.fanout",
    "services.ledger",
    "services.risk",
    "valkey-server",
    "postgres",
)

unless_stores_are_given = pytest.mark.skipif(
    bool(os.environ.get("DATABASE_URL") or os.environ.get("REDIS_URL")),
    reason="kills stores, so only its own ones",
)
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the services' processes in /proc"),
]


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def child_named(parent: int, name: str) -> int | None:
    for pid in children_of(parent):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        # A server may have put its title into the first word.
        if any(word == name or word.split(" ")[0].endswith(f"/{name}") for word in words[:5]):
            return pid
    return None


def run_demo(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-P",
        "-m",
        "mesh.cli",
        "demo",
        "--no-view",
        "--json",
        str(folder / "demo.json"),
    ]
    with (folder / "demo.log").open("wb") as log:
        return subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT)


def wait_for(folder: Path, text: str, *, seconds_max: float) -> None:
    deadline = time.monotonic() + seconds_max
    while text not in (folder / "demo.log").read_text():
        assert time.monotonic() < deadline, (folder / "demo.log").read_text()
        time.sleep(0.1)


@unless_stores_are_given
def test_books_add_up_though_everything_is_killed_once(tmp_path: Path) -> None:
    demo = run_demo(tmp_path, "--seconds", str(SECONDS), "--rate", "90")
    try:
        wait_for(tmp_path, "trust fell", seconds_max=60)
        killed = []
        for name in NAMES:
            victim = child_named(demo.pid, name)
            assert victim is not None, f"{name} is no child of the demo"
            os.kill(victim, signal.SIGKILL)
            killed.append(name)
            time.sleep(1.5)
        assert demo.wait(timeout=150) == 0, (tmp_path / "demo.log").read_text()
    finally:
        demo.kill()
        demo.wait()
    result = json.loads((tmp_path / "demo.json").read_text())
    assert killed == list(NAMES)
    assert set(result["services"]["restarts"].values()) >= {1}
    assert (
        result["signals"]["acknowledged"]
        == result["signals"]["logged"]
        == result["signals"]["archived"]
        > 500
    )
    assert result["deliveries"]["expected"] == result["deliveries"]["received"] > 2_000
    assert result["users"]["paused"] == result["users"]["cheating"] != []
    assert result["ok"]


def test_books_add_up_though_fanout_dies_again_and_again_while_it_pauses_a_user(tmp_path: Path) -> None:
    """What was delivered before the pause is never told as withheld by the streams after it."""
    demo = run_demo(tmp_path, "--seconds", "14", "--rate", "90")
    try:
        wait_for(tmp_path, ": paused ", seconds_max=60)
        kills = 0
        deadline = time.monotonic() + 30
        while kills < 3 and time.monotonic() < deadline:
            time.sleep(0.4)
            victim = child_named(demo.pid, "services.fanout")
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
                kills += 1
        assert demo.wait(timeout=150) == 0, (tmp_path / "demo.log").read_text()
    finally:
        demo.kill()
        demo.wait()
    result = json.loads((tmp_path / "demo.json").read_text())
    assert result["services"]["restarts"]["fanout"] >= 1
    assert result["deliveries"]["expected"] == result["deliveries"]["received"] > 2_000
    assert result["deliveries"]["withheld"] > 0
    assert result["ok"]
