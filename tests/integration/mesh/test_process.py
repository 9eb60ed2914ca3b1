"""Child processes: they end when they are told, when they hang, and when their parent is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import ports
from mesh.errors import ConfigurationError
from mesh.process import Child, User, process_exists, spawn, wait_until_gone

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell a child")
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def python(code: str, **options: object) -> Child:
    return spawn("python", [sys.executable, "-I", "-c", code], **options)


async def test_what_it_says_goes_to_the_file(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("before\n")
    child = python(
        "import sys; print('out'); sys.stdout.flush(); print('error', file=sys.stderr)", log_file=log
    )
    assert await child.wait() == 0
    assert log.read_text() == "before\nout\nerror\n"


async def test_what_it_says_comes_line_by_line() -> None:
    lines: list[str] = []
    ended = threading.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "end":
            ended.set()

    child = python("print('one'); print('\\xff' * 10); print('end')", on_line=on_line)
    assert await child.wait() == 0
    assert ended.wait(10)
    assert lines[0] == "one"


async def test_it_gets_the_environment_and_folder_that_are_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os; print(os.getcwd(), os.environ['A'], 'HOME' in os.environ, os.getsid(0) == os.getpid())"
    await python(code, environment={"A": "1"}, folder=tmp_path, log_file=log).wait()
    assert log.read_text() == f"{tmp_path.resolve()} 1 False True\n"


async def test_one_that_ignores_the_request_is_killed_after_the_grace() -> None:
    ready = threading.Event()
    child = python(DEAF, on_line=lambda _: ready.set())
    assert await asyncio.to_thread(ready.wait, 10)
    assert await child.stop(grace_seconds=0.1) == -signal.SIGKILL
    assert await child.stop() == -signal.SIGKILL, "a second stop changes nothing"
    assert not process_exists(child.pid)


async def test_one_is_killed_when_the_wait_for_its_end_is_cancelled() -> None:
    ready = threading.Event()
    child = python(DEAF, on_line=lambda _: ready.set())
    assert await asyncio.to_thread(ready.wait, 10)
    stopping = asyncio.create_task(child.stop(grace_seconds=60))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert child.returncode == -signal.SIGKILL


async def test_a_program_that_is_not_there_is_told_in_its_log(tmp_path: Path) -> None:
    child = spawn("nothing", [tmp_path / "nothing"], log_file=tmp_path / "log")
    assert await child.wait() == 126
    assert (tmp_path / "log").read_text() == f"cannot run {tmp_path}/nothing: No such file or directory\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a child as somebody else")
async def test_a_child_of_another_user_has_none_of_root_s_groups(data_folder: Path) -> None:
    log = data_folder / "log"
    child = spawn("id", ["/usr/bin/id"], log_file=log, user=User(54323, 54324), environment={"LC_ALL": "C"})
    assert await child.wait() == 0
    assert log.read_text() == "uid=54323 gid=54324 groups=54324\n"


PARENT = """
import sys, time
from mesh.process import spawn, User
import signal
code = "import time, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
user = User(54325, 54325) if sys.argv[1] == "other" else None
command = ["/bin/sleep", "600"] if user else [sys.executable, "-I", "-c", code]
print(spawn("child", command, user=user, log_file=None, on_line=print).pid, flush=True)
time.sleep(600)
"""


@linux_only
@pytest.mark.parametrize("user", ["same", "other"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_no_child_outlives_its_parent(user: str, number: signal.Signals) -> None:
    if user == "other" and os.geteuid() != 0:
        pytest.skip("only root can run a child as somebody else")
    parent = subprocess.Popen([sys.executable, "-P", "-c", PARENT, user], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert process_exists(pid)
        parent.send_signal(number)
    assert wait_until_gone(pid, seconds_max=10)


SIGNALLED = """
import asyncio
from mesh.process import run_until_signalled

async def main():
    try:
        print("ready", flush=True)
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0)
        print("cleaned up", flush=True)

run_until_signalled(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_main_coroutine_clean_up(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SIGNALLED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "cleaned up\n"
        assert process.stderr.read() == ""
    assert process.returncode == 128 + number


def test_two_blocks_of_ports_never_overlap() -> None:
    with ports.port_block() as one, ports.port_block() as two:
        first = [one.take() for _ in range(5)]
        second = [two.take() for _ in range(5)]
    assert len({*first, *second}) == 10
    assert all(ports.FIRST_PORT < port < 65_536 for port in (*first, *second))


def test_a_port_that_somebody_listens_on_is_passed_over() -> None:
    with ports.port_block() as block:
        taken = block.take()
        with socket.create_server((ports.LOOPBACK, taken + 1)):
            assert not ports.is_free(taken + 1)
            assert block.take() == taken + 2


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """This process as one that is not root."""
    before = os.geteuid()
    os.seteuid(before or 54_326)
    yield
    os.seteuid(before)


def test_a_port_for_root_alone_is_not_said_to_be_in_use(ordinary_user: None) -> None:
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not first.exists() or int(first.read_text()) <= 1:
        pytest.skip("every port is for everybody here")
    with pytest.raises(ConfigurationError, match="port 1 is not for ordinary users"):
        ports.require_free(1)


def test_a_block_ends() -> None:
    with ports.port_block() as block, pytest.raises(ConfigurationError, match="no free port left"):
        [block.take() for _ in range(ports.BLOCK_PORTS)]


@pytest.mark.parametrize(("ephemeral_first", "end"), [(32_768, 32_768), (49_152, 49_152), (1_024, 32_768)])
def test_blocks_of_ports_do_not_run_out_where_any_port_is_ephemeral(ephemeral_first: int, end: int) -> None:
    assert ports.end_of_blocks(ephemeral_first) == end
