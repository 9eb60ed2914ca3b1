"""`ecp up`, `ecp status` and `ecp admin` as a newcomer uses them: the printed commands work as they are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1.fanout_service_pb2_grpc import FanoutServiceStub
from mesh import runfile

ECP = [sys.executable, "-P", "-m", "mesh.cli"]
START_SECONDS_MAX = 90.0

pytestmark = pytest.mark.timeout(240)


@dataclass
class Up:
    """A running `ecp up` and what it printed."""

    process: subprocess.Popen[str]
    folder: Path
    printed: dict[str, Any]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*ECP, *arguments, "--data", str(self.folder)]
        wide = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=wide)

    def admin(self, *arguments: str) -> dict[str, Any]:
        done = self.run("admin", *arguments)
        assert done.returncode == 0, done.stderr
        made: dict[str, Any] = json.loads(done.stdout)
        return made


def start(folder: Path, *arguments: str) -> Up:
    process = subprocess.Popen(
        [*ECP, "up", "--json", "--rate", "10", "--data", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            return Up(process, folder, json.loads(text))
    _, errors = process.communicate()
    raise AssertionError(errors)


def stop(up: Up) -> int:
    up.process.send_signal(signal.SIGINT)
    code = up.process.wait(timeout=60)
    for stream in (up.process.stdout, up.process.stderr):
        if stream:
            stream.close()
    return code


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with_passage = Path(f"/tmp/ecp-test-up-{os.getpid()}")  # root's PostgreSQL cannot enter pytest's
    running = start(with_passage)
    try:
        yield running
    finally:
        stop(running)
        subprocess.run(["rm", "-rf", str(with_passage)], check=False)


def shell(command: str, *, seconds_max: float) -> str:
    """What a command prints in so many seconds; a stream is cut off then."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        out, _ = process.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    return out


def test_the_printed_commands_answer(up: Up) -> None:
    stream, head, user, health, services = up.printed["commands"]
    streamed = shell(stream, seconds_max=4)
    assert '"snapshot"' in streamed
    assert '"SIGNAL_KIND_' in streamed
    answered = json.loads(shell(head, seconds_max=20))["head"]
    assert answered["masterId"] == str(up.printed["master_id"])
    assert int(answered["position"]["sequence"]) > 0
    assert json.loads(shell(user, seconds_max=20))["user"]["userId"] == up.printed["user_id"]
    assert json.loads(shell(health, seconds_max=20)) == {"status": "SERVING"}
    assert "execution.ledger.v1.LicenseService" in shell(services, seconds_max=20).split()


def test_status_tells_health_heads_and_archive(up: Up) -> None:
    done = up.run("status", "--json")
    assert done.returncode == 0, done.stdout
    status = json.loads(done.stdout)
    assert status["healthy"]
    assert set(status["health"].values()) == {"SERVING"}
    [head] = status["heads"]
    assert head["sequence"] > 0
    assert head["connected"]
    assert status["archived_signals"] > 0
    assert "Heads" in up.run("status").stdout


def test_admin_creates_what_a_subscriber_needs(up: Up) -> None:
    user = up.admin("user", "create", "--email", "ann@example.org", "--name", "Ann", "--request-id", "ann-1")
    user_id = user["user"]["user_id"]
    again = up.admin("user", "create", "--email", "ann@example.org", "--name", "Ann", "--request-id", "ann-1")
    assert again == user
    assert user_id in {one["user_id"] for one in up.admin("user", "list")["users"]}
    master = up.admin("master", "create", "--owner", user_id, "--name", "Ann's", "--mode", "netting")
    assert master["key"]["secret"]
    master_id = master["master"]["master_id"]
    made = up.admin("subscription", "create", user_id, master_id, "--fee", "49.90")
    subscription_id = made["subscription"]["subscription_id"]
    paused = up.admin("subscription", "pause", subscription_id, "--reason", "holiday")
    assert paused["subscription"]["pause"] == "PAUSE_SCOPE_CLOSE_ONLY"
    resumed = up.admin("subscription", "resume", subscription_id, "--reason", "back")
    assert resumed["subscription"]["pause"] == "PAUSE_SCOPE_UNSPECIFIED"
    issued = up.admin("license", "issue", user_id, "--days", "7")
    assert issued["token"].startswith("ecp_")
    license_id = issued["license"]["license_id"]
    assert up.admin("license", "rotate", license_id, "--overlap-hours", "1")["token"] != issued["token"]
    revoked = up.admin("license", "revoke", license_id, "--reason", "lost")
    assert revoked["license"]["state"] == "LICENSE_STATE_REVOKED"


def test_resync_brings_a_live_stream_in_step_and_leaves_a_trail(up: Up) -> None:
    request = pb.SubscribeRequest()
    request.masters.add(master_id=up.printed["master_id"]).from_now.SetInParent()
    bearer = (("authorization", f"Bearer {up.printed['license_token']}"),)
    kinds: list[str | None] = []
    resync = ("admin", "resync", "--master", str(up.printed["master_id"]), "--reason", "a test")
    with grpc.insecure_channel(up.printed["grpc"]["fanout"]) as channel, ThreadPoolExecutor(1) as pool:
        call = FanoutServiceStub(channel).Subscribe(request, metadata=bearer, timeout=60)
        kinds.append(next(call).WhichOneof("event"))
        asked = pool.submit(up.run, *resync, "--wait", "30", "--json")
        states: list[int] = []
        for response in call:
            kinds.append(response.WhichOneof("event"))
            if response.HasField("state_change"):
                states.append(response.state_change.state)
            if "snapshot" in kinds and states[-1:] == [pb.SUBSCRIPTION_STATE_SYNCED]:
                break
        done = asked.result()
    assert pb.SUBSCRIPTION_STATE_RESYNCING in states
    assert done.returncode == 0, done.stderr
    (one,) = [s for s in json.loads(done.stdout)["subscriptions"] if s["user_id"] == up.printed["user_id"]]
    assert (one["sync_state"], one["full_sync_due"]) == ("SYNC_STATE_SYNCED", "0")

    trail = up.admin("subscription", "transitions", one["subscription_id"], "--json")["transitions"]
    after = [line["sync_after"].removeprefix("SYNC_STATE_") for line in trail]
    assert after[:2] == ["SYNCED", "RESYNCING"]
    assert trail[0]["reason"] == "the full sync is complete"
    assert trail[1]["reason"] == "a full sync was asked for: a test"
    assert "a full sync was asked for: a test" in up.run(*resync[:1], *_transitions(one)).stdout
    # Nobody reads its stream now: the next one is due, and stays so.
    left = up.run("admin", "resync", "--user", up.printed["user_id"], "--reason", "again", "--wait", "0.5")
    assert (left.returncode, "1 with a full sync that is due" in left.stdout) == (1, True)


def _transitions(one: dict[str, Any]) -> tuple[str, ...]:
    return ("subscription", "transitions", str(one["subscription_id"]))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("admin", "resync", "--reason", "x"), 2, "name a subscription, a subscriber or a master"),
        (("admin", "resync", "--user", "x", "--reason", "x"), 1, "INVALID_ARGUMENT"),
        (("admin", "user", "get", "not-a-uuid"), 1, "INVALID_ARGUMENT"),
        (("admin", "user", "get", "00000000-0000-4000-8000-000000000000"), 1, "NOT_FOUND"),
        (("admin", "subscription", "create", "x", "1", "--fee", "1.123456789"), 2, "more than 8 decimals"),
    ],
)
def test_bad_input_is_one_clear_message(up: Up, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = up.run(*arguments)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_mesh_on_the_same_folder_is_refused(up: Up) -> None:
    done = up.run("up")
    assert done.returncode == 3
    assert f"in use by process {up.process.pid}" in done.stderr


def test_what_a_killed_mesh_left_keeps_nobody_out(data_folder: Path) -> None:
    """Its number may be anybody's by now, in a container even that of the next mesh itself."""
    left = runfile.RunFile(os.getpid(), "", {}, {}, "", "", "", str(data_folder))
    left.write(data_folder)
    up = start(data_folder)
    assert runfile.read(data_folder).pid == up.process.pid
    assert stop(up) == 128 + signal.SIGINT


def test_a_port_in_use_is_one_clear_line(up: Up, data_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*ECP, "up", "--data", str(data_folder), "--front-door-port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_mesh_status_says_how_to_start_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [*ECP, "status", "--data", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "ecp up" in done.stderr


def test_data_survives_a_restart_and_a_dead_service_comes_back(data_folder: Path) -> None:
    first = start(data_folder)
    user_id = first.printed["user_id"]
    assert stop(first) == 128 + signal.SIGINT
    assert not (data_folder / "mesh.json").exists()
    second = start(data_folder)
    try:
        assert second.admin("user", "get", user_id)["user"]["user_id"] == user_id
        assert len(json.loads(second.run("status", "--json").stdout)["heads"]) == 2
        _kill_ledger(second)
        deadline = time.monotonic() + 30
        while second.run("status").returncode != 0:
            assert time.monotonic() < deadline
    finally:
        stop(second)


def _kill_ledger(up: Up) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if b"services.ledger" in words and up.printed["grpc"]["ledger"].encode() in environment:
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise AssertionError("the ledger's process was not found")
