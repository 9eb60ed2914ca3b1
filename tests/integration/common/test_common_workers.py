"""Several processes of one service behind one port, as an operator or systemd sees them, from start to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mesh.process import process_exists
from tests.integration.common.worker_parent import WAIT_SECONDS, started


async def test_workers_share_the_port_and_end_in_order(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "3") as parent:
        await parent.ready()
        assert sorted(parent.pids) == [1, 2, 3]
        await parent.everybody_answers(set(parent.pids.values()))
        parent.process.send_signal(signal.SIGTERM)
        assert await parent.finish() == (0, "")
    assert sorted(line for line in parent.lines if line.startswith("left")) == [
        f"left {number}\n" for number in (1, 2, 3)
    ]
    assert not any(process_exists(pid) for pid in parent.pids.values())
    assert not parent.folder.exists()


async def test_the_number_of_workers_may_come_from_the_environment(tmp_path: Path) -> None:
    async with started(tmp_path, "serve", WORKERS="2") as parent:
        await parent.ready()
        assert sorted(parent.pids) == [1, 2]
        nodes = {json.loads(line)["service.node.name"] for line in parent.lines if line.startswith("{")}
        assert nodes <= {"parent", "worker-1", "worker-2"}


async def test_a_temporary_folder_too_deep_for_sockets_is_passed_over(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    async with started(tmp_path, "--workers", "2", TMPDIR=str(deep)) as parent:
        await parent.ready()
        assert list(deep.iterdir()) == []
        parent.process.send_signal(signal.SIGTERM)
        assert (await parent.finish())[0] == 0
    assert not parent.folder.exists()


async def test_a_dead_worker_is_started_again_while_the_others_serve(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers=2") as parent:
        await parent.ready()
        first = dict(parent.pids)
        os.kill(first[2], signal.SIGKILL)
        await parent.everybody_answers({first[1]})
        await parent.until(lambda: parent.pids[2] != first[2])
        assert parent.pids[1] == first[1]
        await parent.everybody_answers(set(parent.pids.values()))
        status, text = await parent.ask("/metrics")
        assert status == 200
        assert 'worker_restarts_total{worker="2"} 1.0' in text
        parent.process.send_signal(signal.SIGTERM)
        assert (await parent.finish())[0] == 0


async def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "3") as parent:
        await parent.ready()
        parent.process.kill()
        await parent.gone()


async def test_metrics_of_all_workers_come_from_one_port_told_apart(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "2") as parent:
        await parent.ready()
        counts = dict.fromkeys(parent.pids.values(), 0)
        for _ in range(40):
            counts[await parent.who_answers()] += 1
        _, text = await parent.ask("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    taken = {
        sample.labels["worker"]: sample.value
        for sample in families["taken"].samples
        if sample.name == "taken_total"
    }
    assert taken == {str(number): float(counts[pid]) for number, pid in parent.pids.items() if counts[pid]}
    assert families["sizes"].type == "histogram"
    assert {sample.labels["worker"] for sample in families["process_resident_memory_bytes"].samples} == {
        "parent",
        "1",
        "2",
    }
    assert text.count("# TYPE taken_total ") == 1


async def test_ready_and_healthy_only_when_all_workers_are(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "2", BEHAVIOR="second moody") as parent:
        await parent.ready()
        status, text = await parent.ask("/health")
        assert (status, json.loads(text)["status"]) == (200, "ok")
        status, text = await parent.ask("/ready")
        said = json.loads(text)
        assert (status, said["status"]) == (503, "not ready")
        assert {number: one["status"] for number, one in said["workers"].items()} == {
            "1": "ready",
            "2": "not ready",
        }
        assert (await parent.ask("/other"))[0] == 404
        os.kill(parent.pids[2], signal.SIGSTOP)
        try:
            status, text = await parent.ask("/health")
        finally:
            os.kill(parent.pids[2], signal.SIGCONT)
        assert (status, json.loads(text)["workers"]["2"]) == (503, {"status": "silent"})


async def test_a_worker_that_never_comes_up_ends_all(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "2", BEHAVIOR="second fails") as parent:
        code, err = await parent.finish()
    assert (code, err) == (1, "")
    assert "left 1\n" in parent.lines
    assert any("worker 2 ended 4 times before it served" in line for line in parent.lines)


async def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "2", BEHAVIOR="slow end") as parent:
        await parent.ready()
        parent.process.send_signal(signal.SIGTERM)
        await parent.until(lambda: sum(line.startswith("ending") for line in parent.lines) == 2)
        # The second one is for people who do not want to wait.
        parent.process.send_signal(signal.SIGTERM)
        code, _ = await parent.finish()
    assert code == 1
    await parent.gone()


async def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "2", BEHAVIOR="slow start") as parent:
        await parent.until(lambda: "starting 1\n" in parent.lines)
        parent.process.send_signal(signal.SIGTERM)
        assert await parent.finish() == (0, "")
    assert "starting 2\n" not in parent.lines


async def test_a_signal_to_workers_and_parent_alike_is_one_request(tmp_path: Path) -> None:
    """As systemd sends it to a whole control group."""
    async with started(tmp_path, "--workers", "2") as parent:
        await parent.ready()
        for pid in parent.pids.values():
            os.kill(pid, signal.SIGTERM)
        parent.process.send_signal(signal.SIGTERM)
        assert await parent.finish() == (0, "")


async def test_systemd_hears_that_all_are_ready_and_alive(tmp_path: Path, data_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(data_folder / "notify"))
        systemd.setblocking(False)
        loop = asyncio.get_running_loop()
        environment = {"NOTIFY_SOCKET": str(data_folder / "notify"), "WATCHDOG_USEC": "400000"}
        async with (
            started(tmp_path, "--workers", "2", **environment) as parent,
            asyncio.timeout(WAIT_SECONDS),
        ):
            heard = b""
            while heard != b"READY=1":
                heard = await loop.sock_recv(systemd, 1_000)
                assert heard in (b"READY=1", b"WATCHDOG=1")
            assert heard == b"READY=1"
            while await loop.sock_recv(systemd, 1_000) != b"WATCHDOG=1":
                pass
            parent.process.send_signal(signal.SIGTERM)
            while await loop.sock_recv(systemd, 1_000) != b"STOPPING=1":
                pass
            assert (await parent.finish())[0] == 0
