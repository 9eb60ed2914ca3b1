"""The admin HTTP port: /metrics, /health, /ready; it changes nothing and holds no secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import Gauge, Histogram, make_wsgi_app

from services.common.errors import ConfigurationError
from services.common.settings import Address

_log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 0.5
_ANSWERS_AT_ONCE: Final = 4
_REQUEST_SECONDS: Final = 5.0
_CONNECTIONS_MAX: Final = 32
_ROOM_SECONDS: Final = 0.5
_ACCEPT_RETRY_SECONDS: Final = 0.1

LOOP_LAG = Histogram(
    "event_loop_lag_seconds",
    "How much later than asked the event loop woke up.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
LOOP_LAG_LAST = Gauge("event_loop_lag_last_seconds", "The last such delay.")
CHECK_UP = Gauge("service_check_up", "1 while the named check is fine, else 0.", ("check",))

StartResponse = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Check:
    """One named condition. `is_ok` is called from another thread and must only look at a value, never wait.

    A check with `gates` false is shown and measured but does not make the process unready: when the database
    is away for all, taking all replicas out at once helps nobody.
    """

    name: str
    is_ok: Callable[[], bool]
    gates: bool = True


class Readiness:
    """The named checks of a process; add them as its parts come up."""

    def __init__(self, checks: Iterable[Check] = ()) -> None:
        self._checks: dict[str, Check] = {check.name: check for check in checks}

    def add(self, name: str, is_ok: Callable[[], bool], *, gates: bool = True) -> None:
        """Adds or replaces a check."""
        self._checks[name] = Check(name, is_ok, gates)

    def report(self) -> tuple[bool, dict[str, bool]]:
        """Whether all gating checks are fine, and the result of each."""
        checks = list(self._checks.values())
        results = {check.name: _look(check) for check in checks}
        for name, ok in results.items():
            CHECK_UP.labels(name).set(ok)
        return all(results[check.name] for check in checks if check.gates), results


def _look(check: Check) -> bool:
    try:
        return bool(check.is_ok())
    except Exception:
        # A check comes from elsewhere and may fail in any way; that is not fine, and no reason to answer nothing.
        _log.exception("check %s failed", check.name)
        return False


class LoopPulse:
    """Ticks on the event loop, so that another thread can see whether it is alive, and measures its lag."""

    def __init__(self) -> None:
        self._ticked_at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """Seconds since the last tick."""
        return time.monotonic() - self._ticked_at

    async def run(self) -> None:
        """Ticks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            lag_seconds = max(0.0, loop.time() - due)
            LOOP_LAG.observe(lag_seconds)
            LOOP_LAG_LAST.set(lag_seconds)
            self._ticked_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Admin:
    """The running admin port."""

    port: int
    readiness: Readiness
    pulse: LoopPulse


@asynccontextmanager
async def serving(
    address: Address, readiness: Readiness | None = None, *, tick_age_seconds_max: float = 10.0
) -> AsyncIterator[Admin]:
    """Serves the admin port from threads of its own until the block ends, so it answers while the event loop
    is stuck.

    /health is 200 while the event loop ticked within `tick_age_seconds_max`; /ready is 200 while all gating
    checks are fine; both answer JSON, 503 otherwise. /metrics is the default Prometheus registry.

    Raises:
        ConfigurationError: the address is in use or cannot be bound.
    """
    readiness, pulse = readiness or Readiness(), LoopPulse()
    async with answering(address, _Application(readiness, pulse, tick_age_seconds_max)) as port:
        ticking = asyncio.create_task(pulse.run(), name="event loop pulse")
        try:
            yield Admin(port, readiness, pulse)
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)


@asynccontextmanager
async def answering(address: Address, application: Application) -> AsyncIterator[int]:
    """Answers with the WSGI application from threads of its own until the block ends; gives the port.

    Raises:
        ConfigurationError: the address is in use or cannot be bound.
    """
    server = _Server(address, application)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="admin", daemon=True
    )
    thread.start()
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.end, thread)


def answer(
    environ: dict[str, Any],
    start_response: StartResponse,
    paths: Mapping[str, Callable[[], tuple[bool, str, bytes]]],
) -> Iterable[bytes]:
    """Answers a GET from the path's function: whether all is fine (200, else 503), type and content."""
    if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
        return _answer(start_response, "405 Method Not Allowed", {"error": "only GET"})
    path = paths.get(environ.get("PATH_INFO", ""))
    if path is None:
        return _answer(start_response, "404 Not Found", {"error": f"try {', '.join(paths)}"})
    fine, kind, content = path()
    status = "200 OK" if fine else "503 Service Unavailable"
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(content)))])
    return [content]


class _Application:
    """WSGI: three paths, GET only."""

    def __init__(self, readiness: Readiness, pulse: LoopPulse, tick_age_seconds_max: float) -> None:
        self._readiness = readiness
        self._pulse = pulse
        self._tick_age_seconds_max = tick_age_seconds_max
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _answer(start_response, "405 Method Not Allowed", {"error": "only GET"})
        if path == "/metrics":
            self._readiness.report()
            return self._metrics(environ, start_response)
        if path == "/health":
            return self._health(start_response)
        if path == "/ready":
            ready, checks = self._readiness.report()
            return _report(
                start_response, ready, {"status": "ready" if ready else "not ready", "checks": checks}
            )
        return _answer(start_response, "404 Not Found", {"error": "try /metrics, /health or /ready"})

    def _health(self, start_response: StartResponse) -> Iterable[bytes]:
        age_seconds = self._pulse.age_seconds
        alive = age_seconds <= self._tick_age_seconds_max
        body = {"status": "ok" if alive else "stuck", "event_loop_tick_age_seconds": round(age_seconds, 3)}
        return _report(start_response, alive, body)


def _report(start_response: StartResponse, fine: bool, body: dict[str, Any]) -> Iterable[bytes]:
    return _answer(start_response, "200 OK" if fine else "503 Service Unavailable", body)


def _answer(start_response: StartResponse, status: str, body: dict[str, Any]) -> Iterable[bytes]:
    content = json.dumps(body).encode() + b"\n"
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS
    server: _Server

    def setup(self) -> None:
        super().setup()
        # The socket's own time-out begins anew with each byte.
        self._deadline = threading.Timer(_REQUEST_SECONDS, _cut, (self.request,))
        self._deadline.daemon = True
        self._deadline.start()
        self.server.reads(self.request)

    def get_environ(self) -> dict[str, Any]:
        # The request is there; the answer may take its time, as with workers that are asked first.
        self._deadline.cancel()
        self.server.has_read(self.request)
        return super().get_environ()

    def finish(self) -> None:
        self._deadline.cancel()
        self.server.has_read(self.request)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _cut(request: socket.socket) -> None:
    """Ends a request that takes too long; who reads from it meets the end."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _few_at_once(application: Application) -> Application:
    """Metrics take the processor from what the process is for, so few are made at once."""
    answering = threading.BoundedSemaphore(_ANSWERS_AT_ONCE)

    def limited(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        with answering:
            return list(application(environ, start_response))

    return limited


class _Server(WSGIServer):
    """A WSGI server with bounded connections, each with its thread; for one too many the longest silent one ends."""

    allow_reuse_address = True
    request_queue_size = _CONNECTIONS_MAX

    def __init__(self, address: Address, application: Application) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._threads = ThreadPoolExecutor(_CONNECTIONS_MAX, thread_name_prefix="admin")
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._reading: dict[socket.socket, None] = {}
        self._reading_lock = threading.Lock()
        try:
            super().__init__((address.host, address.port), _Handler)
        except OSError as error:
            self._threads.shutdown(wait=False)
            raise ConfigurationError(
                f"cannot listen on {address}: {error.strerror}",
                where="ADMIN_BIND_ADDRESS",
                do="stop the other process or choose another address",
            ) from error
        self.set_app(_few_at_once(application))

    def reads(self, request: socket.socket) -> None:
        """The connection's request is not complete yet."""
        with self._reading_lock:
            self._reading[request] = None

    def has_read(self, request: socket.socket) -> None:
        """It is, or never will be. Safe to repeat."""
        with self._reading_lock:
            self._reading.pop(request, None)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            # Without a free descriptor the connection goes on waiting, and asking for it at once would never rest.
            time.sleep(_ACCEPT_RETRY_SECONDS)
            raise

    def server_bind(self) -> None:
        # WSGIServer's own looks up the host's name, which can take seconds without DNS.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False) and not self._make_room():
            self.shutdown_request(request)
            return
        self._threads.submit(self._process, request, client_address)

    def _make_room(self) -> bool:
        """Many who say nothing do not keep out the probe that decides over the process."""
        with self._reading_lock:
            longest = next(iter(self._reading), None)
        if longest is None:
            return False
        _cut(longest)
        return self._slots.acquire(timeout=_ROOM_SECONDS)

    def _process(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:
            _log.debug("admin request from %s ended: %s", client_address, error)
        finally:
            self.shutdown_request(request)
            self._slots.release()

    def end(self, thread: threading.Thread) -> None:
        """Stops accepting, waits for what is being answered."""
        self.shutdown()
        thread.join(_REQUEST_SECONDS)
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.server_close()
