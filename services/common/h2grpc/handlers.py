"""The handlers of a server by full method name, each with its surroundings; it serves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from services.common.interceptors import CallGuard, Handler


@dataclass(frozen=True, slots=True)
class Method:
    """One method that is served."""

    full_name: str
    behavior: Callable[..., Any]
    """Called with the request, or an async iterator of requests, and the context; to be awaited."""
    takes_stream: bool
    gives_stream: bool
    deserialize: Callable[[bytes], Any] | None
    serialize: Callable[[Any], bytes] | None


@dataclass(frozen=True, slots=True)
class _Details(grpc.HandlerCallDetails):
    """What an interceptor is told of a call."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


class Handlers:
    """Takes registrations as a grpc.aio.Server does, through generated `add_XServicer_to_server` functions."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self.services: dict[str, tuple[str, ...]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Ignored: the same handlers come with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Keeps the handlers of a service."""
        self.services[service] = tuple(handlers)
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    async def guarded(self, guard: CallGuard) -> dict[bytes, Method]:
        """Every method by its :path, surrounded by the guard."""
        return {name.encode(): await _guarded(guard, name, one) for name, one in self._handlers.items()}


async def _guarded(guard: CallGuard, name: str, handler: Handler) -> Method:
    async def found(_: grpc.HandlerCallDetails) -> Handler:
        return handler

    wrapped = await guard.intercept_service(found, _Details(name))
    assert wrapped is not None
    behavior = wrapped.unary_unary or wrapped.unary_stream or wrapped.stream_unary or wrapped.stream_stream
    assert behavior is not None
    return Method(
        name,
        behavior,
        takes_stream=wrapped.request_streaming,
        gives_stream=wrapped.response_streaming,
        deserialize=wrapped.request_deserializer,
        serialize=wrapped.response_serializer,
    )
