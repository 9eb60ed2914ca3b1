"""Processes from start to exit code, as an operator or systemd sees them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

SERVICE = '''
"""A service for the tests; BEHAVIOR says what it does."""
import asyncio, os, signal, sys
from contextlib import asynccontextmanager
from services.common import admin, lifecycle, rpc, tasks
from services.common.errors import ConfigurationError
from services.common.settings import ServiceSettings

BEHAVIOR = os.environ.get("BEHAVIOR", "")

class ExampleSettings(ServiceSettings):
    service_name = "example"

async def fail_soon():
    await asyncio.sleep(0.05)
    if BEHAVIOR == "configuration in a task":
        raise ConfigurationError("is bad", where="LATE")
    raise KeyError("background")

async def forever():
    await asyncio.Event().wait()

@asynccontextmanager
async def running(settings):
    if BEHAVIOR == "slow start":
        print("starting", flush=True)
        try:
            await asyncio.sleep(60)
        finally:
            print("start undone", flush=True)
    if BEHAVIOR == "fails":
        raise KeyError("boom")
    async with (
        tasks.background(fail_soon() if "task" in BEHAVIOR else forever()),
        admin.serving(settings.admin_bind_address),
        rpc.serving(settings, [], authorizer=rpc.authorizer(settings)),
    ):
        try:
            yield
        finally:
            if BEHAVIOR == "slow end":
                print("ending", flush=True)
                await asyncio.sleep(60)
            print("left", flush=True)

async def migrate(settings):
    if BEHAVIOR == "slow migration":
        print("migrating", flush=True)
        await asyncio.sleep(60)
    print("migrated", settings.log_level, flush=True)

if __name__ == "__main__":
    sys.exit(lifecycle.command_line(ExampleSettings, running=running, migrate=migrate))
'''
ENVIRONMENT = {
    "SERVICE_TOKEN": "service-token-0123456789",
    "GRPC_BIND_ADDRESS": "127.0.0.1:0",
    "ADMIN_BIND_ADDRESS": "127.0.0.1:0",
    "DRAIN_GRACE_SECONDS": "1",
}


@pytest.fixture(autouse=True)
def hang_ups_count() -> Iterator[None]:
    """Also where the tests themselves run under nohup, which services would inherit."""
    kept = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, kept)


@asynccontextmanager
async def process(
    folder: Path, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    script = folder / "service.py"
    script.write_text(SERVICE)
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(script),
        *arguments,
        env=clean | ENVIRONMENT | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def read_until(running: asyncio.subprocess.Process, text: str) -> list[str]:
    """The lines of stdout up to the one that has `text` in it."""
    assert running.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(60):
        while not lines or text not in lines[-1]:
            line = await running.stdout.readline()
            assert line, f"{text!r} never came: {lines}"
            lines.append(line.decode())
    return lines


async def finish(running: asyncio.subprocess.Process) -> tuple[int, str, str]:
    async with asyncio.timeout(60):
        out, err = await running.communicate()
    assert running.returncode is not None
    return running.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_the_service_in_order(tmp_path: Path, number: signal.Signals) -> None:
    async with process(tmp_path) as running:
        await read_until(running, '"ready"')
        running.send_signal(number)
        code, out, err = await finish(running)
    assert (code, err) == (0, "")
    assert "left\n" in out
    messages = [json.loads(line)["message"] for line in out.splitlines() if line.startswith("{")]
    assert messages == [f"{number.name}: stopping", "stopped"]


async def test_all_of_stdout_is_json_with_the_services_name(tmp_path: Path) -> None:
    async with process(tmp_path) as running:
        lines = await read_until(running, '"ready"')
    assert {json.loads(line)["service.name"] for line in lines} == {"example"}


async def test_a_signal_during_the_start_undoes_it(tmp_path: Path) -> None:
    async with process(tmp_path, BEHAVIOR="slow start") as running:
        await read_until(running, "starting")
        running.send_signal(signal.SIGTERM)
        code, out, _ = await finish(running)
    assert code == 0
    assert "start undone" in out


async def test_a_hang_up_does_not_hurry_an_end_that_was_asked_for(tmp_path: Path) -> None:
    async with process(tmp_path, BEHAVIOR="slow end", DRAIN_GRACE_SECONDS="60") as running:
        await read_until(running, '"ready"')
        running.send_signal(signal.SIGTERM)
        await read_until(running, "ending")
        running.send_signal(signal.SIGHUP)
        running.send_signal(signal.SIGINT)
        code, out, _ = await finish(running)
    assert code == 1
    assert "SIGHUP again" not in out
    assert "SIGINT again: stopping at once" in out


async def test_nohup_keeps_the_service_through_a_hang_up(tmp_path: Path) -> None:
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with process(tmp_path) as running:
            await read_until(running, '"ready"')
            running.send_signal(signal.SIGHUP)
            running.send_signal(signal.SIGTERM)
            code, out, _ = await finish(running)
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert code == 0
    assert "SIGHUP" not in out


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    async with process(tmp_path, BEHAVIOR="slow end", DRAIN_GRACE_SECONDS="60") as running:
        await read_until(running, '"ready"')
        running.send_signal(signal.SIGTERM)
        await read_until(running, "ending")
        running.send_signal(signal.SIGTERM)
        code, out, _ = await finish(running)
    assert code == 1
    assert "SIGTERM again: stopping at once" in out


@pytest.mark.parametrize(("behavior", "kind"), [("fails", "KeyError"), ("task fails", "ExceptionGroup")])
async def test_a_failure_is_logged_and_exits_with_1(tmp_path: Path, behavior: str, kind: str) -> None:
    async with process(tmp_path, BEHAVIOR=behavior) as running:
        code, out, err = await finish(running)
    assert (code, err) == (1, "")
    last = json.loads([line for line in out.splitlines() if line.startswith("{")][-1])
    assert (last["message"], last["error.type"]) == ("stopped by a failure", kind)
    assert "KeyError" in last["error.stack_trace"]


async def test_a_bad_setting_is_one_line_on_stderr_and_exits_with_3(tmp_path: Path) -> None:
    async with process(tmp_path, GRPC_BIND_ADDRESS="nonsense") as running:
        code, out, err = await finish(running)
    assert (code, out) == (3, "")
    assert err == "GRPC_BIND_ADDRESS: 'nonsense' is not host:port\n"


async def test_a_configuration_error_in_a_task_is_one_line_too(tmp_path: Path) -> None:
    async with process(tmp_path, BEHAVIOR="configuration in a task") as running:
        code, _, err = await finish(running)
    assert (code, err) == (3, "LATE: is bad\n")


@pytest.mark.parametrize("variable", ["GRPC_BIND_ADDRESS", "ADMIN_BIND_ADDRESS"])
async def test_a_port_in_use_is_one_line_on_stderr_and_exits_with_3(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with process(tmp_path, **{variable: address}) as running:
            code, _, err = await finish(running)
    assert code == 3
    assert err.startswith(f"{variable}: cannot listen on {address}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "more"), ("--help",)])
async def test_another_command_line_is_answered_with_the_usage(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    async with process(tmp_path, *arguments) as running:
        code, _, err = await finish(running)
    assert (code, err) == (2, "usage: python -m services.example [serve|migrate]\n")


async def test_migrate_runs_the_migration(tmp_path: Path) -> None:
    async with process(tmp_path, "migrate", LOG_LEVEL="warning") as running:
        assert await finish(running) == (0, "migrated WARNING\n", "")


async def test_a_migration_can_be_interrupted(tmp_path: Path) -> None:
    async with process(tmp_path, "migrate", BEHAVIOR="slow migration") as running:
        await read_until(running, "migrating")
        running.send_signal(signal.SIGTERM)
        code, out, _ = await finish(running)
    assert code == 1
    assert "migrated" not in out


@pytest.mark.parametrize("abstract", [False, True])
async def test_systemd_is_told_of_start_life_and_end(tmp_path: Path, abstract: bool) -> None:
    path = f"@ecp-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + path[1:] if abstract else path)
        systemd.settimeout(60)
        async with process(tmp_path, NOTIFY_SOCKET=path, WATCHDOG_USEC="200000") as running:
            told = [await asyncio.to_thread(systemd.recv, 100) for _ in range(3)]
            running.send_signal(signal.SIGTERM)
            await finish(running)
        systemd.setblocking(False)
        rest = []
        while True:
            try:
                rest.append(systemd.recv(100))
            except BlockingIOError:
                break
    assert told == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    assert rest[-1] == b"STOPPING=1"


async def test_a_notify_socket_that_nobody_reads_does_no_harm(tmp_path: Path) -> None:
    async with process(tmp_path, NOTIFY_SOCKET=str(tmp_path / "nobody")) as running:
        await read_until(running, '"ready"')
        running.send_signal(signal.SIGTERM)
        code, out, _ = await finish(running)
    assert code == 0
    assert "systemd was not notified" in out
