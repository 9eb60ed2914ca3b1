"""The life of a process: command line, logs, signals, systemd, exit code; what it runs is its caller's."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

import uvloop

from services.common import logs, settings, tracing
from services.common.errors import ConfigurationError
from services.common.settings import ServiceSettings

_log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
_STOP_MARGIN_SECONDS: Final = 10.0


def command_line(
    settings_class: type[SettingsT],
    *,
    running: Callable[[SettingsT], AbstractAsyncContextManager[object]],
    migrate: Callable[[SettingsT], Awaitable[None]] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a service as `python -m services.NAME [serve|migrate]` and returns the exit code.

    `serve`, the default, enters `running(settings)` and leaves it on SIGTERM or SIGINT; `migrate` awaits
    `migrate(settings)`. Codes: 0 ended as asked; 1 failed; 2 unknown subcommand; 3 configuration error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = ["serve"] + (["migrate"] if migrate is not None else [])
    command = words[0] if words else "serve"
    if len(words) > 1 or command not in commands:
        print(
            f"usage: python -m services.{settings_class.service_name} [{'|'.join(commands)}]", file=sys.stderr
        )
        return EXIT_USAGE
    try:
        loaded = settings.load(settings_class)
    except ConfigurationError as error:
        return _configuration_failure(error)
    logs.configure(settings_class.service_name, loaded.log_level)
    if command == "migrate" and migrate is not None:
        migration = migrate(loaded)
        return run(lambda _: migration, interrupted_code=EXIT_FAILURE)
    with tracing.exporting(settings_class.service_name, loaded.otel_exporter_otlp_endpoint):
        return run(lambda stop: _serve(running(loaded), stop), grace_seconds=loaded.drain_grace_seconds)


class Stop:
    """How a running process is asked to end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set by the first signal."""
        self.is_graceful = False
        self.was_forced = False

    def begin_graceful(self) -> None:
        """From now on a signal sets `asked` and does no more; before, it cancels what runs."""
        self.is_graceful = True


def run(
    main: Callable[[Stop], Awaitable[None]], *, grace_seconds: float = 10.0, interrupted_code: int = EXIT_OK
) -> int:
    """Runs `main` on uvloop and returns the exit code.

    The first SIGTERM or SIGINT sets `stop.asked`, and cancels `main` if it has not called
    `stop.begin_graceful()`. `main` is cancelled too at a second signal, and when it has not ended
    `grace_seconds` and a margin later. A ConfigurationError is printed on stderr; other failures are logged.
    """
    stop = Stop()
    try:
        uvloop.run(_supervised(main, stop, grace_seconds))
    except ConfigurationError as error:
        return _configuration_failure(error)
    except asyncio.CancelledError:
        return _cancelled(stop, interrupted_code)
    except BaseExceptionGroup as group:
        return _group_failure(group)
    except Exception:
        _log.exception("stopped by a failure")
        return EXIT_FAILURE
    return EXIT_OK


async def _supervised(main: Callable[[Stop], Awaitable[None]], stop: Stop, grace_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def force() -> None:
        stop.was_forced = True
        task.cancel()

    def on_signal(number: int) -> None:
        name = signal.Signals(number).name
        if stop.asked.is_set():
            _log.warning("%s again: stopping at once", name)
            force()
            return
        _log.info("%s: stopping", name)
        stop.asked.set()
        loop.call_later(grace_seconds + _STOP_MARGIN_SECONDS, force)
        if not stop.is_graceful:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await main(stop)


async def _serve(service: AbstractAsyncContextManager[object], stop: Stop) -> None:
    async with service:
        # What is there now stays; looking through it again and again would stop the event loop for 40 ms each time.
        gc.collect()
        gc.freeze()
        stop.begin_graceful()
        watchdog = asyncio.create_task(_feed_watchdog(), name="systemd watchdog")
        notify("READY=1")
        _log.info("ready")
        try:
            await stop.asked.wait()
        finally:
            notify("STOPPING=1")
            watchdog.cancel()
            await asyncio.gather(watchdog, return_exceptions=True)
    _log.info("stopped")


async def _feed_watchdog() -> None:
    """Tells systemd twice per WatchdogSec that the event loop is alive, if systemd asked for it."""
    interval_us = os.environ.get("WATCHDOG_USEC", "")
    if not interval_us.isdigit() or int(interval_us) == 0:
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(interval_us) / 2e6)


def notify(state: str) -> bool:
    """Sends one line to systemd (sd_notify(3)); False when nobody asked for it or listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.setblocking(False)
            notifier.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("systemd was not notified: %s", error)
        return False
    return True


def _configuration_failure(error: ConfigurationError) -> int:
    print(error.message, file=sys.stderr)
    return ConfigurationError.exit_code


def _cancelled(stop: Stop, interrupted_code: int) -> int:
    if stop.asked.is_set() and not stop.was_forced:
        return interrupted_code
    _log.error("stopped before its end was reached")
    return EXIT_FAILURE


def _group_failure(group: BaseExceptionGroup[BaseException]) -> int:
    """A configuration error may come out of a TaskGroup, wrapped."""
    wrong, rest = group.split(ConfigurationError)
    if wrong is not None and rest is None:
        return _configuration_failure(_first(wrong))
    _log.error("stopped by a failure", exc_info=group)
    return EXIT_FAILURE


def _first(group: BaseExceptionGroup[ConfigurationError]) -> ConfigurationError:
    inner = group.exceptions[0]
    return inner if isinstance(inner, ConfigurationError) else _first(inner)
