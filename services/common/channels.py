"""Channels to peers' gRPC servers: balancing, retries, token, deadline; it knows no peer's contract."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from services.common import status, tls, tracing
from services.common.errors import ServiceError
from services.common.settings import Address

_KEEPALIVE_MS: Final = 30_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000
_RECONNECT_MS_MIN, _RECONNECT_MS_MAX = 100, 5_000
_CLOSE_GRACE_SECONDS: Final = 1.0

Continuation = Callable[[grpc.aio.ClientCallDetails, Any], Any]


@asynccontextmanager
async def channel(
    address: Address | str,
    *,
    token: str | None = None,
    files: tls.ClientFiles | None = None,
    idempotent: Iterable[str] = (),
    call_timeout_seconds: float = 5.0,
    message_bytes_max: int = 4 * 1024 * 1024,
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to every server that `address` resolves to, round robin over those whose health says SERVING; or to
    the one at a `unix:PATH`.

    Every call carries `token`; calls with one answer get the deadline `call_timeout_seconds` unless the
    caller gives one. Methods named in `idempotent` (`execution.ledger.v1.LicenseService/Authenticate`, or a
    whole service without the method) are tried up to 4 times while the answer is UNAVAILABLE. Connecting
    happens in the background: the peer may start later. Calls raise grpc.aio.AioRpcError; `peer_errors` turns
    that into our errors.

    Raises:
        ConfigurationError: a TLS file cannot be read.
    """
    options = _options(idempotent, message_bytes_max)
    interceptors = _interceptors(token, call_timeout_seconds)
    text = str(address)
    target = text if text.startswith("unix:") else f"dns:///{text}"
    if files is None:
        opened = grpc.aio.insecure_channel(target, options, interceptors=interceptors)
    else:
        opened = grpc.aio.secure_channel(
            target, tls.channel_credentials(files), options, interceptors=interceptors
        )
    try:
        yield opened
    finally:
        await opened.close(_CLOSE_GRACE_SECONDS)


def error_from_rpc(error: grpc.aio.AioRpcError, *, peer: str | None = None) -> ServiceError:
    """The service error that a failed call stands for, with all the details that the peer gave."""
    details: bytes | None = None
    for key, value in error.trailing_metadata() or ():
        if key == status.DETAILS_KEY and isinstance(value, bytes):
            details = value
    return status.error_of(error.code(), error.details() or error.code().name, details, peer=peer)


@contextmanager
def peer_errors(peer: str) -> Iterator[None]:
    """Turns the AioRpcError of calls inside into the service error it stands for, with `metadata["peer"]`
    set.

    Raises:
        ServiceError: a call inside failed; UnavailableError when the peer is down or slower than its
        deadline.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, peer=peer) from error


def _options(idempotent: Iterable[str], message_bytes_max: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", json.dumps(_service_config(idempotent))),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS_MIN),
        ("grpc.min_reconnect_backoff_ms", _RECONNECT_MS_MIN),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        # Channels of one process must not share connections: each has its own life and token.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _service_config(idempotent: Iterable[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
    names = [_method_name(name) for name in idempotent]
    if names:
        retry = {
            "maxAttempts": 4,
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": retry}]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.1}
    return config


def _method_name(name: str) -> dict[str, str]:
    service, _, method = name.lstrip("/").partition("/")
    return {"service": service, "method": method} if method else {"service": service}


def _interceptors(token: str | None, call_timeout_seconds: float) -> Sequence[grpc.aio.ClientInterceptor]:
    single, stream = _Prepared(token, call_timeout_seconds), _Prepared(token, None)
    ours = [_UnaryUnary(single), _UnaryStream(stream), _StreamUnary(stream), _StreamStream(stream)]
    if not tracing.enabled():
        return ours
    return [*aio_client_interceptors(), *ours]  # type: ignore[no-untyped-call]  # the library is untyped


class _Prepared:
    """Adds what every call of a channel carries."""

    def __init__(self, token: str | None, timeout_seconds: float | None) -> None:
        self._authorization = None if token is None else f"Bearer {token}"
        self._timeout_seconds = timeout_seconds

    def details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if self._authorization is not None and metadata.get("authorization") is None:
            metadata.add("authorization", self._authorization)
        timeout = details.timeout if details.timeout is not None else self._timeout_seconds
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, prepared: _Prepared) -> None:
        self._prepared = prepared

    async def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._prepared.details(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, prepared: _Prepared) -> None:
        self._prepared = prepared

    async def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._prepared.details(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, prepared: _Prepared) -> None:
        self._prepared = prepared

    async def intercept_stream_unary(
        self,
        continuation: Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await continuation(self._prepared.details(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, prepared: _Prepared) -> None:
        self._prepared = prepared

    async def intercept_stream_stream(
        self,
        continuation: Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await continuation(self._prepared.details(client_call_details), request_iterator)
