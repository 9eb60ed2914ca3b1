"""Several processes of one service behind one port, as an operator or systemd sees them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.process import process_exists
from services.common import shared_ports
from services.common.errors import ConfigurationError
from services.common.settings import Address

SERVICE = '''
"""A service for the tests: answers each connection with its process id; BEHAVIOR says what else it does."""
import asyncio, os, signal, socket, sys, threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from prometheus_client import Counter, Histogram
from services.common import admin, lifecycle, shared_ports
from services.common.errors import ConfigurationError
from services.common.settings import Address
from services.common.worker import WorkerSettings

BEHAVIOR = os.environ.get("BEHAVIOR", "")
TAKEN = Counter("taken_total", "Connections.", ("kind",))
SIZES = Histogram("sizes", "Sizes.", buckets=(1, 2))

class ExampleSettings(WorkerSettings):
    service_name = "example"

def answer(reader, writer):
    TAKEN.labels("any").inc()
    SIZES.observe(1)
    writer.write(b"%d\\n" % os.getpid())
    writer.close()

@asynccontextmanager
async def running(settings):
    number = settings.worker_number
    if BEHAVIOR == "misconfigured":
        raise ConfigurationError("is bad", where="SOMETHING", do="change it")
    if BEHAVIOR == "slow start":
        print("starting", number, flush=True)
        await asyncio.sleep(60)
    if BEHAVIOR == "second fails" and number == 2:
        raise KeyError("boom")
    readiness = admin.Readiness([admin.Check("mood", lambda: not (BEHAVIOR == "second moody" and number == 2))])
    listener = socket.create_server(("127.0.0.1", 0)) if not settings.shares_ports else socket.socket()
    if settings.shares_ports:
        shared_ports.share(listener)
        listener.bind((settings.grpc_bind_address.host, settings.grpc_bind_address.port))
    server = await asyncio.start_server(answer, sock=listener)
    async with server, admin.serving(settings.admin_bind_address, readiness) as served:
        print("serving", number, os.getpid(), settings.grpc_bind_address.port, settings.worker_folder, flush=True)
        class Running:
            admin_port = served.port
        try:
            yield Running()
        finally:
            if BEHAVIOR == "slow end":
                print("ending", number, flush=True)
                await asyncio.sleep(60)
            print("left", number, flush=True)

if __name__ == "__main__":
    sys.exit(lifecycle.command_line(ExampleSettings, running=running))
'''
ENVIRONMENT = {
    "SERVICE_TOKEN": "service-token-0123456789",
    "GRPC_BIND_ADDRESS": "127.0.0.1:0",
    "ADMIN_BIND_ADDRESS": "127.0.0.1:0",
    "DRAIN_GRACE_SECONDS": "1",
    "WORKER_RESTART_SECONDS_MIN": "0.01",
    "WORKER_RESTART_SECONDS_MAX": "0.02",
    "WORKER_FAILURES_MAX": "3",
}
WAIT_SECONDS = 60


class Parent:
    """The process that was started, and what its workers said."""

    def __init__(self, process: asyncio.subprocess.Process, admin_port: int) -> None:
        self.process = process
        self.admin_port = admin_port
        self.pids: dict[int, int] = {}
        self.port = 0
        self.folder = Path()
        self.lines: list[str] = []

    async def until(self, condition: Callable[[], object]) -> None:
        """Reads what is printed until the condition holds."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                line = (await self.process.stdout.readline()).decode()
                assert line, f"ended: {self.lines}"
                self.lines.append(line)
                match line.split():
                    case ["serving", number, pid, port, folder]:
                        self.pids[int(number)] = int(pid)
                        self.port, self.folder = int(port), Path(folder)

    async def ready(self) -> None:
        await self.until(lambda: any('"parent"' in line and '"ready"' in line for line in self.lines))

    async def finish(self) -> tuple[int, str]:
        async with asyncio.timeout(WAIT_SECONDS):
            out, err = await self.process.communicate()
        self.lines += out.decode().splitlines(keepends=True)
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()

    async def ask(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(get, f"http://127.0.0.1:{self.admin_port}{path}")

    async def who_answers(self) -> int:
        """Asks again when a worker dies before it has answered."""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                if pid := await reader.read():
                    return int(pid)
            except ConnectionResetError:
                continue
            finally:
                writer.close()
                with suppress(ConnectionResetError):
                    await writer.wait_closed()

    async def everybody_answers(self, pids: set[int]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while pids:
                pids = pids - {await self.who_answers()}

    async def gone(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while any(process_exists(pid) for pid in self.pids.values()):  # noqa: ASYNC110 - not our children
                await asyncio.sleep(0.01)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def started(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[Parent]:
    script = folder / "service.py"
    script.write_text(SERVICE)
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    admin_port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(script),
        *arguments,
        env=clean
        | ENVIRONMENT
        | {"TMPDIR": str(folder), "ADMIN_BIND_ADDRESS": f"127.0.0.1:{admin_port}"}
        | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Parent(process, admin_port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


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


async def test_a_wrong_setting_is_told_once_and_ends_with_3(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "3", BEHAVIOR="misconfigured") as parent:
        assert await parent.finish() == (3, "SOMETHING: is bad; change it\n")


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


async def test_systemd_hears_that_all_are_ready_and_alive(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        loop = asyncio.get_running_loop()
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
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


@pytest.mark.parametrize("shares", [False, True])
async def test_a_port_in_use_ends_with_3_and_one_line(tmp_path: Path, shares: bool) -> None:
    """Also by a process of the same user that would share it: the kernel would let both have it without a word."""
    with socket.socket() as other:
        if shares:
            shared_ports.share(other)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with started(tmp_path, "--workers", "2", GRPC_BIND_ADDRESS=f"127.0.0.1:{port}") as parent:
            code, err = await parent.finish()
    assert code == 3
    assert err.startswith(f"GRPC_BIND_ADDRESS: cannot listen on 127.0.0.1:{port}: ")
    assert err.count("\n") == 1
    assert parent.pids == {}


async def test_another_parent_cannot_have_the_port(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with started(tmp_path, "--workers", "2") as parent:
        await parent.until(lambda: parent.port)
        address = f"127.0.0.1:{parent.port}"
        async with started(tmp_path / "other", "--workers", "2", GRPC_BIND_ADDRESS=address) as other:
            assert (await other.finish())[0] == 3


@pytest.mark.parametrize(
    "arguments",
    [("--workers",), ("--workers", "2", "3"), ("serve", "--worker", "2"), ("migrate", "--workers", "2")],
)
async def test_wrong_options_end_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    async with started(tmp_path, *arguments) as parent:
        code, err = await parent.finish()
    assert (code, err) == (2, "usage: python -m services.example [serve] [--workers N]\n")


@pytest.mark.parametrize("count", ["0", "65", "two"])
async def test_a_wrong_number_of_workers_ends_with_3(tmp_path: Path, count: str) -> None:
    async with started(tmp_path, "--workers", count) as parent:
        code, err = await parent.finish()
    assert (code, err.split(":")[0], err.count("\n")) == (3, "WORKERS", 1)


def test_who_does_not_share_cannot_have_a_held_port() -> None:
    with shared_ports.held(Address("127.0.0.1", 0), "WHERE") as address:
        with pytest.raises(ConfigurationError), shared_ports.held(address, "WHERE"):
            pass
        with socket.socket() as worker:
            shared_ports.share(worker)
            worker.bind((address.host, address.port))
            worker.listen()
        with pytest.raises(OSError, match="in use"):
            socket.create_server((address.host, address.port))
