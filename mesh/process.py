"""Child processes that never outlive this one, and a main coroutine that signals end; knows not what they run."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from mesh.errors import MeshError

T = TypeVar("T")

POLL_SECONDS = 0.01
STOP_GRACE_SECONDS = 10.0
LINE_BYTES_MAX = 64 * 1024
_EXEC_CHILD = Path(__file__).with_name("exec_child.py")


@dataclass(frozen=True)
class User:
    """Who a child runs as. Only root can choose."""

    uid: int
    gid: int


class Child:
    """A process of ours. Bound to no event loop, so it may be started in one and stopped in another."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing when the process has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        self._popen.kill()
        self._popen.wait()

    async def wait(self) -> int:
        """Waits for the end, however long; cancelling it leaves the process alone. Returns the exit code."""
        while (returncode := self._popen.poll()) is None:  # noqa: ASYNC110 - no loop of its own
            await asyncio.sleep(POLL_SECONDS)
        return returncode

    async def stop(
        self, *, number: signal.Signals = signal.SIGTERM, grace_seconds: float = STOP_GRACE_SECONDS
    ) -> int:
        """Asks the process to end, kills it after the grace or when cancelled, and returns the exit code.

        Safe to repeat.
        """
        self.send_signal(number)
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait()
        except TimeoutError:
            pass
        finally:
            if self.returncode is None:
                self.kill()
        return self._popen.wait()


def spawn(
    name: str,
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    log_file: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    user: User | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> Child:
    """Starts `command` (its first word an absolute path), in a session of its own and without standard input.

    On Linux the kernel sends it `death_signal` when the thread that called this ends, so call it in a thread
    that lives as long as the child should. stdout and stderr are appended to `log_file`, or given to `on_line`
    line by line (in a thread of their own, without the newline), or else shared with this process.

    Raises:
        MeshError: the process could not be started.
    """
    wrapped = bound_to_us(command, user=user, death_signal=death_signal)
    output: IO[bytes] | int | None = subprocess.PIPE if on_line else None
    try:
        if log_file:
            output = os.fdopen(os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
        popen = subprocess.Popen(
            wrapped,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            cwd=folder,
            env=environment,
        )
    except OSError as error:
        raise MeshError(f"cannot start {name}: {error}") from error
    finally:
        if log_file and output and not isinstance(output, int):
            output.close()
    if on_line and popen.stdout:
        threading.Thread(target=_pump, args=(popen.stdout, on_line), name=f"{name}-log", daemon=True).start()
    return Child(name, popen)


def bound_to_us(
    command: Sequence[str | Path], *, user: User | None = None, death_signal: signal.Signals = signal.SIGKILL
) -> list[str]:
    """The command as `spawn` starts it, for those who start it otherwise: it ends with the thread that does."""
    uid, gid = (user.uid, user.gid) if user else (-1, -1)
    wrapped = [sys.executable, "-I", "-S", _EXEC_CHILD, os.getpid(), death_signal.value, uid, gid, *command]
    return list(map(str, wrapped))


def _pump(source: IO[bytes], on_line: Callable[[str], None]) -> None:
    with source:
        while line := source.readline(LINE_BYTES_MAX):
            on_line(line.decode("utf-8", "replace").rstrip("\r\n"))


def process_exists(pid: int) -> bool:
    """Whether a process of that number is there, and (known on Linux only) not just waiting to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return not Path("/proc/self/stat").exists()
    return status.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_gone(pid: int, *, seconds_max: float) -> bool:
    """Waits for a process that is not our child to end. Returns whether it did."""
    deadline = time.monotonic() + seconds_max
    while process_exists(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def run_until_signalled(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` in a fresh event loop; SIGINT, SIGTERM and SIGHUP cancel it, and its context managers clean up.

    A second signal cuts the cleaning up short; children are then ended by the kernel.

    Raises:
        SystemExit: it was cancelled by a signal: 128 plus the signal's number, as shells expect.
    """
    received: list[int] = []

    async def watched() -> T:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()

        def cancel(number: int) -> None:
            if received:
                os._exit(128 + number)
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, cancel, number)
        return await task

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None
