"""Starts a service's worker processes, keeps them alive and ends them; they share its ports, it serves no requests."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common import shared_ports, systemd, tasks, worker_admin
from services.common.errors import ConfigurationError
from services.common.settings import Address
from services.common.stopping import Stop
from services.common.worker import WorkerSettings, notify_socket

_log = logging.getLogger(__name__)

_ADMIN_ADDRESS: Final = "127.0.0.1:0"
_NOTIFICATION_BYTES_MAX: Final = 4_096
# What a worker takes at most beyond its grace before it ends by itself, and some more.
_END_MARGIN_SECONDS: Final = 15.0
_FORCED_SECONDS: Final = 5.0
# A socket's path has at most 103 bytes (on macOS), and what comes behind this one about 40.
_FOLDER_BYTES_MAX: Final = 60


class WorkersFailedError(RuntimeError):
    """A worker does not come up, or did not end in order."""


class _AlreadyToldError(ConfigurationError):
    """A worker has said on stderr what is wrong with the configuration."""

    def __init__(self) -> None:
        super().__init__("")


@dataclass(slots=True)
class Worker:
    """One worker and its process."""

    number: int
    restarts: int = 0
    admin_port: int | None = None
    fed_at: float = 0.0
    """When it last said that its event loop lives."""
    ready: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_running(self) -> bool:
        """Whether it has a process."""
        return self.popen is not None and not self.ended.is_set()

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing when the process has ended."""
        if self.popen is not None and self.is_running:
            self.popen.send_signal(number)

    def hear(self, message: str) -> None:
        """Takes what it says in systemd's way."""
        for line in message.splitlines():
            name, _, value = line.partition("=")
            match name:
                case "X_ADMIN_PORT" if value.isdigit():
                    self.admin_port = int(value)
                case "READY":
                    self.ready.set()
                case "STOPPING":
                    self.ready.clear()
            self.fed_at = time.monotonic()


class Crew:
    """All workers of a service."""

    def __init__(
        self, settings: WorkerSettings, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.workers = [Worker(number) for number in range(1, settings.workers + 1)]
        self._settings = settings
        self._command = command
        self._environment = environment
        self._has_begun = False

    @property
    def is_ready(self) -> bool:
        """Whether every worker serves."""
        return all(worker.is_running and worker.ready.is_set() for worker in self.workers)

    def is_well(self, silence_seconds_max: float) -> bool:
        """Whether every worker has said in this time that it lives."""
        since = time.monotonic() - silence_seconds_max
        return all(worker.fed_at >= since for worker in self.workers)

    async def run(self, asked: asyncio.Event) -> None:
        """Keeps all workers alive until `asked`, or until one does not come up. Then they still run.

        The first one goes ahead: what is wrong with the configuration is said once.

        Raises:
            ConfigurationError: the first worker says that something is wrong with the configuration.
            WorkersFailedError: a worker has ended too often before it served.
        """
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(self.workers[0]))]
            waiting = [group.create_task(_set(self.workers[0].ready)), group.create_task(_set(asked))]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            self._has_begun = True
            if not asked.is_set():
                keepers += [group.create_task(self._keep(worker)) for worker in self.workers[1:]]
                telling = group.create_task(self._tell_ready())
                await waiting[1]
                telling.cancel()
            for task in (*keepers, *waiting):
                task.cancel()

    async def _keep(self, worker: Worker) -> None:
        settings, failures, delay_seconds = self._settings, 0, 0.0
        while True:
            self._start(worker)
            await worker.ended.wait()
            was_ready = worker.admin_port is not None
            code = worker.popen.returncode if worker.popen is not None else None
            if code == ConfigurationError.exit_code and not self._has_begun:
                raise _AlreadyToldError
            failures = 1 if was_ready else failures + 1
            if failures > settings.worker_failures_max:
                raise WorkersFailedError(f"worker {worker.number} ended {failures} times before it served")
            shortest, longest = settings.worker_restart_seconds_min, settings.worker_restart_seconds_max
            delay_seconds = shortest if failures == 1 else min(longest, delay_seconds * 2)
            _log.error(
                "worker %d ended with %s and is started again in %.1f s", worker.number, code, delay_seconds
            )
            await asyncio.sleep(delay_seconds)
            worker.restarts += 1

    def _start(self, worker: Worker) -> None:
        worker.ready.clear()
        worker.admin_port = None
        worker.fed_at = time.monotonic()
        worker.ended = ended = asyncio.Event()
        folder = Path(self._environment["WORKER_FOLDER"])
        popen = worker.popen = subprocess.Popen(
            list(self._command),
            stdin=subprocess.DEVNULL,
            env={
                **self._environment,
                "WORKER_NUMBER": str(worker.number),
                "NOTIFY_SOCKET": str(notify_socket(folder, worker.number)),
            },
            # Ctrl-C in a terminal is for us, who then end the workers in order.
            start_new_session=True,
        )
        loop = asyncio.get_running_loop()

        def wait() -> None:
            popen.wait()
            with suppress(RuntimeError):  # the event loop may be closed by now
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=wait, name=f"worker {worker.number}", daemon=True).start()

    async def _tell_ready(self) -> None:
        for worker in self.workers:
            await worker.ready.wait()
        systemd.notify("READY=1")
        _log.info("ready")

    async def end(self) -> None:
        """Asks all workers to end in order and waits until they have.

        Raises:
            WorkersFailedError: one had to be killed, or failed.
        """
        begun = {worker.number for worker in self.workers if worker.admin_port is not None}
        running = [worker for worker in self.workers if worker.is_running]
        for worker in running:
            worker.send_signal(signal.SIGTERM)
        await self._until_ended(self._settings.drain_grace_seconds + _END_MARGIN_SECONDS)
        for worker in running:
            code = worker.popen.returncode if worker.popen is not None else 0
            # One that did not serve yet has nobody to drain, and may know no signals.
            if code and worker.number in begun:
                raise WorkersFailedError(f"worker {worker.number} ended with {code}")

    async def end_at_once(self) -> None:
        """Lets no worker outlive this; nothing when all have ended."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
            worker.send_signal(signal.SIGINT)
        await self._until_ended(_FORCED_SECONDS)

    async def _until_ended(self, seconds: float) -> None:
        """Waits, and kills those that are left then."""
        running = [worker for worker in self.workers if worker.is_running]
        try:
            async with asyncio.timeout(seconds):
                for worker in running:
                    await worker.ended.wait()
        except TimeoutError:
            _log.error("workers that do not end are killed")
        finally:
            for worker in running:
                if worker.popen is not None and worker.popen.poll() is None:
                    worker.popen.kill()
                    worker.popen.wait()


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def supervise(settings: WorkerSettings, stop: Stop) -> None:
    """Runs the workers until `stop.asked`, then lets them drain.

    The command is this process's own, without its arguments; the workers find everything in their environment.

    Raises:
        ConfigurationError: a port is in use, or a worker says that it cannot run as configured.
        WorkersFailedError: a worker does not come up, or did not end in order.
    """
    stop.begin_graceful()
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(settings.service_name))
        addresses = {
            name: stack.enter_context(shared_ports.held(getattr(settings, name), name.upper()))
            for name in settings.shared_addresses
        }
        crew = Crew(settings, _own_command(), _environment(settings, folder, addresses))
        stack.enter_context(_listening(crew, folder))
        await _supervise(settings, crew, stop)


async def _supervise(settings: WorkerSettings, crew: Crew, stop: Stop) -> None:
    silence_seconds_max = systemd.watchdog_seconds() or 0.0
    async with (
        worker_admin.serving(settings.admin_bind_address, crew.workers),
        tasks.background(systemd.feed_watchdog(lambda: crew.is_well(silence_seconds_max))),
    ):
        try:
            try:
                await crew.run(stop.asked)
            except BaseExceptionGroup:
                systemd.notify("STOPPING=1")
                with suppress(WorkersFailedError):
                    await crew.end()
                raise
            systemd.notify("STOPPING=1")
            await crew.end()
        finally:
            await crew.end_at_once()
    _log.info("stopped")


def _own_command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]


def _environment(settings: WorkerSettings, folder: Path, addresses: Mapping[str, Address]) -> dict[str, str]:
    return {
        **os.environ,
        **{name.upper(): str(address) for name, address in addresses.items()},
        "ADMIN_BIND_ADDRESS": _ADMIN_ADDRESS,
        "WORKERS": str(settings.workers),
        "WORKER_FOLDER": str(folder),
        "WORKER_PARENT_PID": str(os.getpid()),
    }


@contextmanager
def _folder(service_name: str) -> Iterator[Path]:
    """A folder for the workers' sockets that nobody else can look into."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix=f"ecp-{service_name}-", dir=_short_folder(), ignore_cleanup_errors=True
        )
    except OSError as error:
        raise ConfigurationError(
            f"no folder for the workers' sockets: {error.strerror}",
            where="TMPDIR",
            do=f"name one that is writable, with a path of at most {_FOLDER_BYTES_MAX} bytes",
        ) from error
    with folder as name:
        yield Path(name)


def _short_folder() -> str:
    """TMPDIR, or else a usual place for temporary files, in which a socket's path can be."""
    for candidate in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(os.fsencode(candidate)) <= _FOLDER_BYTES_MAX and os.access(candidate, os.W_OK):
            return candidate
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


@contextmanager
def _listening(crew: Crew, folder: Path) -> Iterator[None]:
    """Hears what the workers say about themselves."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for worker in crew.workers:
            heard = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            heard.setblocking(False)
            heard.bind(str(notify_socket(folder, worker.number)))
            loop.add_reader(heard, _hear, heard, worker)
            stack.callback(loop.remove_reader, heard)
        yield


def _hear(heard: socket.socket, worker: Worker) -> None:
    with suppress(BlockingIOError):
        worker.hear(heard.recv(_NOTIFICATION_BYTES_MAX).decode("utf-8", "replace"))
