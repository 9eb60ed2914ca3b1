"""A small service with several workers, started as an operator would, and what its processes say."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from mesh.process import process_exists

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
