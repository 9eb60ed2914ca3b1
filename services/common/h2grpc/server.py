"""The server of the HTTP/2 edge, from start to graceful end; the counterpart of `services.common.rpc.serving`."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from services.common import auth, health_port, shared_ports, tasks, tls
from services.common.errors import ConfigurationError
from services.common.h2grpc.certificates import Certificates
from services.common.h2grpc.connection import LAST_WORDS_SECONDS, Connection
from services.common.h2grpc.handlers import Handlers
from services.common.h2grpc.settings import Http2Settings
from services.common.h2grpc.shared import Serving
from services.common.interceptors import CallGuard
from services.common.rpc import Registration

_log = logging.getLogger(__name__)

_TLS_SHUTDOWN_SECONDS: Final = 1.0
_BACKLOG: Final = 4_096
# asyncio accepts as many in one round of its loop as it is told the backlog to be; open streams wait meanwhile.
_ACCEPTED_PER_ROUND: Final = 64
_CANCELLATION_SECONDS: Final = 5.0
_ROUNDS_PER_SECOND: Final = 10


@dataclass(slots=True)
class Server:
    """A gRPC server that answers. `draining` is set when it begins to end; long streams watch it."""

    port: int
    health: health.aio.HealthServicer
    services: tuple[str, ...]
    draining: asyncio.Event

    async def set_serving(self, service: str, serving: bool) -> None:
        """Sets what grpc.health.v1 says about one service, or about the whole process ('').

        Raises:
            KeyError: no such service here.
        """
        if service and service not in self.services:
            raise KeyError(service)
        status = health_pb2.HealthCheckResponse
        await self.health.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def set_all_serving(self, serving: bool) -> None:
        """The same for the process and each of its services."""
        for service in ("", *self.services):
            await self.set_serving(service, serving)


@asynccontextmanager
async def serving(
    settings: Http2Settings,
    registrations: Sequence[Registration],
    *,
    authorizer: auth.Authorizer,
    serving_at_once: bool = True,
    draining: asyncio.Event | None = None,
    drained: asyncio.Event | None = None,
) -> AsyncIterator[Server]:
    """Serves the registrations on `settings.grpc_bind_address` until the block ends, as `rpc.serving` does.

    Who sets `drained` at the end of what `draining` began, and ends its streams one after the other meanwhile, has half
    of the grace for that; connections whose calls have ended are closed as they come.

    Raises:
        ConfigurationError: the address is in use or cannot be bound, or a certificate cannot be read.
        ValueError: the authorizer has rules for methods that no registration serves.
    """
    guard = CallGuard(
        authorizer,
        unary_deadline_seconds=settings.grpc_unary_deadline_seconds,
        calls_max=settings.grpc_concurrent_rpcs_max,
    )
    handlers, health_servicer = Handlers(), health.aio.HealthServicer()
    services = _register(handlers, registrations, authorizer, health_servicer)
    shared = Serving(settings, await handlers.guarded(guard))
    idle = asyncio.Event()
    shared.on_idle = idle.set
    listener = await _listen(shared, settings)
    port: int = listener.sockets[0].getsockname()[1]
    server = Server(port, health_servicer, services, draining or asyncio.Event())
    await server.set_all_serving(serving_at_once)
    await server.set_serving("", True)
    _log.info("gRPC serves on %s", settings.grpc_bind_address.with_port(port))
    try:
        async with health_port.answering(settings, health_servicer), tasks.background(_look_after(shared)):
            try:
                yield server
            finally:
                listener.close()
                await _drain(server, shared, guard, idle, drained)
    finally:
        listener.close()
        await _drop_all(shared, idle)


def _register(
    handlers: Handlers,
    registrations: Sequence[Registration],
    authorizer: auth.Authorizer,
    health_servicer: health.aio.HealthServicer,
) -> tuple[str, ...]:
    registered = cast(grpc.aio.Server, handlers)
    for one in registrations:
        one.add_to(registered)
    served = {f"/{service}/{name}" for service, names in handlers.services.items() for name in names}
    unknown = authorizer.methods - served
    if unknown:
        raise ValueError(f"rules for methods that are not served: {sorted(unknown)}")
    services = tuple(handlers.services)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, registered)
    shown = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(shown)
    add_reflection: Callable[..., None] = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add_reflection(servicer, registered)
    return services


async def _listen(shared: Serving, settings: Http2Settings) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    address, files = settings.grpc_bind_address, tls.server_files(settings)
    context = None if files is None else Certificates(files).context
    try:
        listening = _listening_socket(address.host, address.port, settings)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {address}: {error.strerror}",
            where="GRPC_BIND_ADDRESS",
            do="stop the other process or choose another address",
        ) from error
    server = await loop.create_server(
        lambda: Connection(shared, loop),
        sock=listening,
        ssl=context,
        backlog=_ACCEPTED_PER_ROUND,
        ssl_handshake_timeout=None if context is None else settings.http2_handshake_seconds_max,
        # A peer that does not say goodbye must not hold up the end of the process.
        ssl_shutdown_timeout=None if context is None else _TLS_SHUTDOWN_SECONDS,
    )
    listening.listen(_BACKLOG)
    return server


def _listening_socket(host: str, port: int, settings: Http2Settings) -> socket.socket:
    family, kind, protocol, _, bound = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.shares_ports:
            shared_ports.share(listening)
        # Connections inherit these. With them unread bytes of a peer stay few, and a dead one is noticed.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.http2_send_buffer_bytes)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_ms = int(settings.http2_keepalive_timeout_seconds * 1_000)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        listening.bind(bound)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


async def _look_after(shared: Serving) -> None:
    """Looks at each connection about once a second, a part of them at a time."""
    loop = asyncio.get_running_loop()
    while True:
        rounds = max(1, min(len(shared.connections), _ROUNDS_PER_SECOND))
        await asyncio.sleep(1 / rounds)
        connections = tuple(shared.connections)
        for part in range(rounds):
            if part:
                await asyncio.sleep(1 / rounds)
            now = loop.time()
            for connection in connections[part::rounds]:
                connection.look_after(now)


async def _drain(
    server: Server, shared: Serving, guard: CallGuard, idle: asyncio.Event, drained: asyncio.Event | None
) -> None:
    grace_seconds = shared.settings.drain_grace_seconds
    await server.health.enter_graceful_shutdown()
    server.draining.set()
    began = time.monotonic()
    if any(connection.calls for connection in shared.connections):
        # Streams that watch for this end with their last words and a status.
        await _hear_last_words(shared, drained, grace_seconds)
    grace_seconds -= time.monotonic() - began
    for connection in tuple(shared.connections):
        connection.drain(grace_seconds, "drain")
    try:
        async with asyncio.timeout(grace_seconds):
            while shared.connections:
                idle.clear()
                await idle.wait()
    except TimeoutError:
        _cancel_all(shared)
    try:
        # Cancelled handlers may still use what is closed next.
        async with asyncio.timeout(_CANCELLATION_SECONDS):
            await guard.idle()
    except TimeoutError:
        _log.error("gRPC handlers still run %g s after they were cancelled", _CANCELLATION_SECONDS)


async def _hear_last_words(shared: Serving, drained: asyncio.Event | None, grace_seconds: float) -> None:
    """Waits until streams have ended of themselves and their clients have read it, for half of the grace at most."""
    loop = asyncio.get_running_loop()
    until = loop.time() + grace_seconds / 2
    quiet: set[Connection] = set()
    while drained is not None and not drained.is_set() and loop.time() < until:
        await asyncio.sleep(LAST_WORDS_SECONDS / 2)
        for connection in tuple(shared.connections):
            if connection.calls:
                continue
            if connection in quiet:
                connection.drain(grace_seconds, "drain")
            quiet.add(connection)
    await asyncio.sleep(min(LAST_WORDS_SECONDS, max(0.0, until - loop.time())))


async def _drop_all(shared: Serving, idle: asyncio.Event) -> None:
    for connection in tuple(shared.connections):
        connection.transport.abort()
    # The event loop closes their sockets in its next rounds.
    while shared.connections:
        idle.clear()
        await idle.wait()


def _cancel_all(shared: Serving) -> None:
    for connection in tuple(shared.connections):
        for call in tuple(connection.calls.values()):
            call.fail(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        connection.transport.close()
