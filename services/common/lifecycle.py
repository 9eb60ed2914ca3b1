"""The life of a process: command line, logs, signals, systemd, exit code; what it runs is its caller's."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

import uvloop

from services.common import logs, settings, systemd, tracing, workers
from services.common.errors import ConfigurationError
from services.common.long_lived import LongLived
from services.common.settings import ServiceSettings
from services.common.stopping import Stop
from services.common.worker import WorkerSettings, end_with_parent, ready_message

_log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
_STOP_MARGIN_SECONDS: Final = 10.0
# The process that started workers waits longer than they take.
_WORKERS_MARGIN_SECONDS: Final = 20.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A terminal's end and systemd's SendSIGHUP= add a SIGHUP to what they say already.
_URGENT: Final = (signal.SIGTERM, signal.SIGINT)


def command_line(
    settings_class: type[SettingsT],
    *,
    running: Callable[[SettingsT], AbstractAsyncContextManager[object]],
    migrate: Callable[[SettingsT], Awaitable[None]] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a service as `python -m services.NAME [serve|migrate]` and returns the exit code.

    `serve`, the default, enters `running(settings)` and leaves it on SIGTERM, SIGINT or SIGHUP; `migrate` awaits
    `migrate(settings)`. Where the settings are WorkerSettings, `--workers N` serves from N processes. Codes:
    0 ended as asked; 1 failed; 2 unknown subcommand or option; 3 configuration error.
    """
    commands = ["serve"] + (["migrate"] if migrate is not None else [])
    has_workers = issubclass(settings_class, WorkerSettings)
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = _asked(words, commands, has_workers=has_workers)
    if asked is None:
        options = " [--workers N]" if has_workers else ""
        name = settings_class.service_name
        print(f"usage: python -m services.{name} [{'|'.join(commands)}]{options}", file=sys.stderr)
        return EXIT_USAGE
    command, overrides = asked
    try:
        loaded = settings.load(settings_class, **overrides)
    except ConfigurationError as error:
        return _configuration_failure(error)
    if command == "migrate" and migrate is not None:
        logs.configure(settings_class.service_name, loaded.log_level)
        migration = migrate(loaded)
        return run(lambda _: migration, interrupted_code=EXIT_FAILURE)
    return _serve_as_asked(loaded, running)


def _asked(
    words: list[str], commands: Sequence[str], *, has_workers: bool
) -> tuple[str, dict[str, object]] | None:
    """The subcommand and what options override; None if that is not how it is used."""
    command = words.pop(0) if words and not words[0].startswith("-") else commands[0]
    if command not in commands:
        return None
    if not words:
        return command, {}
    option, _, value = " ".join(words).replace("=", " ", 1).partition(" ")
    if option != "--workers" or not has_workers or command != "serve" or not value or " " in value:
        return None
    return command, {"workers": value}


def _serve_as_asked(
    loaded: SettingsT, running: Callable[[SettingsT], AbstractAsyncContextManager[object]]
) -> int:
    name, grace_seconds, worker = loaded.service_name, loaded.drain_grace_seconds, None
    if isinstance(loaded, WorkerSettings):
        if loaded.workers > 1 and not loaded.shares_ports:
            logs.configure(name, loaded.log_level, node="parent")
            return run(
                lambda stop: workers.supervise(loaded, stop),
                grace_seconds=grace_seconds + _WORKERS_MARGIN_SECONDS,
            )
        if loaded.worker_number is not None and loaded.worker_parent_pid is not None:
            try:
                end_with_parent(loaded.worker_parent_pid)
            except ConfigurationError as error:
                return _configuration_failure(error)
            worker = loaded.worker_number
    logs.configure(name, loaded.log_level, node=None if worker is None else f"worker-{worker}")
    with tracing.exporting(name, loaded.otel_exporter_otlp_endpoint):
        return run(
            lambda stop: _serve(running(loaded), stop),
            grace_seconds=grace_seconds,
            again=(signal.SIGINT,) if worker is not None else _URGENT,
        )


def run(
    main: Callable[[Stop], Awaitable[None]],
    *,
    grace_seconds: float = 10.0,
    interrupted_code: int = EXIT_OK,
    again: Sequence[signal.Signals] = _URGENT,
) -> int:
    """Runs `main` on uvloop and returns the exit code.

    The first SIGTERM, SIGINT or (where nohup did not turn it off) SIGHUP sets `stop.asked`, and cancels `main`
    if it has not called `stop.begin_graceful()`. `main` is cancelled too at a second signal that is one of
    `again`, and when it has not ended `grace_seconds` and a margin later. A ConfigurationError is printed on
    stderr; other failures are logged.
    """
    stop = Stop()
    try:
        uvloop.run(_supervised(main, stop, grace_seconds, again))
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


async def _supervised(
    main: Callable[[Stop], Awaitable[None]],
    stop: Stop,
    grace_seconds: float,
    again: Sequence[signal.Signals],
) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def force() -> None:
        stop.was_forced = True
        task.cancel()

    def on_signal(number: int) -> None:
        name = signal.Signals(number).name
        if stop.asked.is_set():
            if number not in again:
                return
            _log.warning("%s again: stopping at once", name)
            force()
            return
        _log.info("%s: stopping", name)
        stop.asked.set()
        loop.call_later(grace_seconds + _STOP_MARGIN_SECONDS, force)
        if not stop.is_graceful:
            task.cancel()

    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN and number is signal.SIGHUP:
            continue
        loop.add_signal_handler(number, on_signal, number)
    await main(stop)


async def _serve(service: AbstractAsyncContextManager[object], stop: Stop) -> None:
    with LongLived():
        async with service as served:
            # What is there now stays.
            gc.collect()
            stop.begin_graceful()
            watchdog = asyncio.create_task(systemd.feed_watchdog(), name="systemd watchdog")
            systemd.notify(ready_message(served))
            _log.info("ready")
            try:
                await stop.asked.wait()
            finally:
                systemd.notify("STOPPING=1")
                watchdog.cancel()
                await asyncio.gather(watchdog, return_exceptions=True)
    _log.info("stopped")


def _configuration_failure(error: ConfigurationError) -> int:
    if error.message:
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
