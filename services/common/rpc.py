"""The gRPC server of a service, from start to graceful end, and the way to its peers; it makes no rules."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common import auth, health_port, tls
from services.common.channels import channel, error_from_rpc, peer_errors
from services.common.errors import ConfigurationError
from services.common.interceptors import CallGuard, Context
from services.common.settings import Address, ServiceSettings

__all__ = [
    "Context",
    "Registration",
    "Server",
    "authorizer",
    "channel",
    "error_from_rpc",
    "peer_errors",
    "registration",
    "serving",
]

_log = logging.getLogger(__name__)

_KEEPALIVE_MS: Final = 60_000
_KEEPALIVE_TIMEOUT_MS: Final = 20_000
# Our clients ping every 30 s; a server that allows less than that answers with GOAWAY "too many pings".
_CLIENT_PING_INTERVAL_MS_MIN: Final = 10_000
_METADATA_BYTES_MAX: Final = 16_384
_CONNECTION_AGE_GRACE_MS: Final = 30_000
_CANCELLATION_SECONDS: Final = 5.0
# Calls of health (one watch per client channel) and reflection, beyond the limit for all others.
_OPEN_CALLS_MAX: Final = 10_000

ServicerT = TypeVar("ServicerT")


@dataclass(frozen=True, slots=True)
class Registration:
    """One servicer and the generated function that adds it to a server."""

    add_to: Callable[[grpc.aio.Server], None]


def registration(add_to_server: Callable[[ServicerT, Any], None], servicer: ServicerT) -> Registration:
    """Pairs a servicer with its generated `add_XServicer_to_server`."""
    return Registration(lambda server: add_to_server(servicer, server))


@dataclass(slots=True)
class Server:
    """A gRPC server that answers. `draining` is set when it begins to end; long streams watch it."""

    server: grpc.aio.Server
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
        await self.health.set(service, _health_status(serving))

    async def set_all_serving(self, serving: bool) -> None:
        """The same for the process and each of its services."""
        for service in ("", *self.services):
            await self.health.set(service, _health_status(serving))


def authorizer(
    settings: ServiceSettings, allowed: Mapping[str, Iterable[auth.PrincipalKind]] | None = None
) -> auth.Authorizer:
    """The authorizer for the tokens in the settings; `allowed` as for `auth.Authorizer`."""
    operator_token = settings.operator_token
    return auth.Authorizer(
        service_token=settings.service_token.get_secret_value(),
        operator_token=None if operator_token is None else operator_token.get_secret_value(),
        allowed=allowed,
    )


@asynccontextmanager
async def serving(
    settings: ServiceSettings,
    registrations: Sequence[Registration],
    *,
    authorizer: auth.Authorizer,
    serving_at_once: bool = True,
    draining: asyncio.Event | None = None,
    unix_path: Path | None = None,
) -> AsyncIterator[Server]:
    """Serves the registrations on `settings.grpc_bind_address`, or on a unix socket, until the block ends.

    Adds grpc.health.v1 (the process as '' and each service by name) and reflection, both open to all. With
    `serving_at_once` false the services stay NOT_SERVING until `set_serving`; the process serves all the
    same, or a liveness probe would kill it while it waits for a peer. At the end health turns NOT_SERVING,
    `draining` (pass one to share it with servicers) is set, new calls are refused, running ones have
    `settings.drain_grace_seconds`, then they are cancelled.

    Raises:
        ConfigurationError: the address is in use or cannot be bound, or a certificate cannot be read.
        ValueError: the authorizer has rules for methods that no registration serves.
    """
    guard = CallGuard(
        authorizer,
        unary_deadline_seconds=settings.grpc_unary_deadline_seconds,
        calls_max=settings.grpc_concurrent_rpcs_max,
    )
    grpc_server = grpc.aio.server(
        interceptors=[guard],
        options=_options(settings),
        maximum_concurrent_rpcs=settings.grpc_concurrent_rpcs_max + _OPEN_CALLS_MAX,
    )
    methods = _register(grpc_server, registrations)
    unknown = authorizer.methods - {
        f"/{service}/{name}" for service, names in methods.items() for name in names
    }
    if unknown:
        raise ValueError(f"rules for methods that are not served: {sorted(unknown)}")
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, grpc_server)
    reflection.enable_server_reflection((*methods, health.SERVICE_NAME, reflection.SERVICE_NAME), grpc_server)
    port = _bind(grpc_server, settings, unix_path)
    server = Server(grpc_server, port, health_servicer, tuple(methods), draining or asyncio.Event())
    await server.set_all_serving(serving_at_once)
    await server.set_serving("", True)
    async with nullcontext() if unix_path else health_port.answering(settings, health_servicer):
        await grpc_server.start()
        _log.info("gRPC serves on %s", unix_path or settings.grpc_bind_address.with_port(server.port))
        try:
            yield server
        finally:
            await _drain(server, guard, settings.drain_grace_seconds)


async def _drain(server: Server, guard: CallGuard, grace_seconds: float) -> None:
    await server.health.enter_graceful_shutdown()
    server.draining.set()
    try:
        async with asyncio.timeout(grace_seconds + _CANCELLATION_SECONDS):
            await server.server.stop(grace_seconds)
            # stop() does not wait for the handlers that it cancels, and they may still use what is closed next.
            await guard.idle()
    except TimeoutError:
        _log.error("gRPC handlers still run %g s after they were cancelled", _CANCELLATION_SECONDS)


def _bind(server: grpc.aio.Server, settings: ServiceSettings, unix_path: Path | None) -> int:
    if unix_path is not None:
        return server.add_insecure_port(f"unix:{unix_path}")
    address, files = settings.grpc_bind_address, tls.server_files(settings)
    try:
        if not settings.shares_ports:
            _require_free(address)
        if files is None:
            return server.add_insecure_port(str(address))
        return server.add_secure_port(str(address), tls.server_credentials(files))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "in use or not an address of this machine"
        raise ConfigurationError(
            f"cannot listen on {address}: {reason}",
            where="GRPC_BIND_ADDRESS",
            do="stop the other process or choose another address",
        ) from error


def _require_free(address: Address) -> None:
    """Tries the address with sockets of our own, because gRPC does not say why it cannot have one."""
    failures: list[OSError] = []
    infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, bound in infos:
        try:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(bound)
                attempt.listen(1)
        except OSError as error:
            failures.append(error)
    # A name may stand for an address that this machine does not have (localhost without IPv6): one is enough.
    if any(error.errno == errno.EADDRINUSE for error in failures) or len(failures) == len(infos):
        raise failures[0]


def _register(server: grpc.aio.Server, registrations: Sequence[Registration]) -> dict[str, tuple[str, ...]]:
    recorder = _Recorder(server)
    for one in registrations:
        one.add_to(cast(grpc.aio.Server, recorder))
    return recorder.methods


class _Recorder:
    """Passes registrations on to the server and keeps the names of what was registered."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.methods: dict[str, tuple[str, ...]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.methods[service] = tuple(handlers)
        self._server.add_registered_method_handlers(service, handlers)


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    options = [
        ("grpc.so_reuseport", int(settings.shares_ports)),
        ("grpc.max_receive_message_length", settings.grpc_message_bytes_max),
        ("grpc.max_send_message_length", settings.grpc_message_bytes_max),
        ("grpc.max_metadata_size", _METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PING_INTERVAL_MS_MIN),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _CLIENT_PING_INTERVAL_MS_MIN),
    ]
    if settings.grpc_connection_age_seconds_max is not None:
        options += [
            ("grpc.max_connection_age_ms", int(settings.grpc_connection_age_seconds_max * 1_000)),
            ("grpc.max_connection_age_grace_ms", _CONNECTION_AGE_GRACE_MS),
        ]
    return options


def _health_status(serving: bool) -> int:
    response = health_pb2.HealthCheckResponse
    return response.SERVING if serving else response.NOT_SERVING
