"""What surrounds every call that our servers serve: metrics, identity, deadline, errors; no rules."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
from opentelemetry import trace
from prometheus_client import Counter, Histogram

from services.common import auth, status, tracing
from services.common.errors import DeadlineExceededError, ResourceExhaustedError, ServiceError

_log = logging.getLogger(__name__)

# Texts, because these classes are generic only in their stubs.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_LABELS: Final = ("grpc_type", "grpc_service", "grpc_method")
STARTED = Counter("grpc_server_started_total", "RPCs begun on the server.", _LABELS)
HANDLED = Counter(
    "grpc_server_handled_total", "RPCs completed on the server, by code.", (*_LABELS, "grpc_code")
)
HANDLING = Histogram(
    "grpc_server_handling_seconds",
    "Time from the call's arrival to its end on the server.",
    _LABELS,
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
# The spelling of grpc-go's codes.Code.String(), which published dashboards and rules match.
CODE_NAMES: Final = {
    code.value[0]: "".join(w.title() for w in code.name.split("_")) for code in grpc.StatusCode
} | {
    grpc.StatusCode.OK.value[0]: "OK",
    grpc.StatusCode.CANCELLED.value[0]: "Canceled",
}

# The codes that count as the server's fault, by OpenTelemetry's semantic conventions for gRPC.
_SERVER_FAULTS: Final = frozenset({2, 4, 12, 13, 14, 15})


@dataclass(frozen=True, slots=True)
class Method:
    """One method as metrics and rules name it."""

    full_name: str
    service: str
    name: str
    kind: str

    @classmethod
    def of(cls, full_name: str, handler: Handler) -> Method:
        """The method that `handler` serves under `full_name` (`/package.Service/Name`)."""
        service, _, name = full_name.lstrip("/").partition("/")
        kinds = {
            (False, False): "unary",
            (True, False): "client_stream",
            (False, True): "server_stream",
            (True, True): "bidi_stream",
        }
        return cls(full_name, service, name, kinds[handler.request_streaming, handler.response_streaming])


class CallGuard(grpc.aio.ServerInterceptor):
    """Surrounds each call of each kind: counts it, names its caller, bounds its time, and turns its failure
    into a status.

    Expected failures (ServiceError) become their status with google.rpc details; everything else is logged
    with its traceback and becomes INTERNAL. Cancellation passes through untouched.
    """

    def __init__(
        self,
        authorizer: auth.Authorizer,
        *,
        unary_deadline_seconds: float | None = None,
        calls_max: int = 20_000,
    ) -> None:
        self._authorizer = authorizer
        self._unary_deadline_seconds = unary_deadline_seconds
        self._calls_max = calls_max
        self._calls = 0
        self._handlers = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._guarded: dict[str, Handler] = {}

    async def idle(self) -> None:
        """Returns once no handler runs."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The guarded handler of the method; None for an unknown one (gRPC answers UNIMPLEMENTED)."""
        name = handler_call_details.method
        guarded = self._guarded.get(name)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            # Only methods that exist are kept, so callers cannot make this grow.
            guarded = self._guarded[name] = self._guard(Method.of(name, handler), handler)
        return guarded

    def _guard(self, method: Method, handler: Handler) -> Handler:
        behavior = _behavior(handler)
        wrapped = (
            self._stream(method, behavior) if handler.response_streaming else self._single(method, behavior)
        )
        make = {
            "unary": grpc.unary_unary_rpc_method_handler,
            "client_stream": grpc.stream_unary_rpc_method_handler,
            "server_stream": grpc.unary_stream_rpc_method_handler,
            "bidi_stream": grpc.stream_stream_rpc_method_handler,
        }[method.kind]
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def _single(
        self, method: Method, behavior: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        deadline_seconds = self._unary_deadline_seconds if method.kind == "unary" else None

        async def call(request: Any, context: Context) -> Any:
            async with self._around(method, context):
                if deadline_seconds is None:
                    return await behavior(request, context)
                return await _bounded(behavior(request, context), deadline_seconds)

        return call

    def _stream(self, method: Method, behavior: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        # Responses are written here, not handed to gRPC as a generator: gRPC leaves an abandoned generator
        # to the garbage collector, which would close it late and in another task.
        async def call(request: Any, context: Context) -> None:
            async with self._around(method, context):
                responses = behavior(request, context)
                if inspect.isawaitable(responses):
                    await responses
                    return
                async with aclosing(responses):
                    async for response in responses:
                        await context.write(response)

        return call

    @asynccontextmanager
    async def _around(self, method: Method, context: Context) -> AsyncIterator[None]:
        # Health is asked most when it is worst; refusing it would have the process killed for being busy.
        counted = method.service not in auth.OPEN_SERVICES
        self._calls += counted
        self._handlers += 1
        self._idle.clear()
        labels = (method.kind, method.service, method.name)
        STARTED.labels(*labels).inc()
        began = time.perf_counter()
        code = grpc.StatusCode.OK.value[0]
        try:
            async with _traced(method, context), _translated(method, context):
                if counted and self._calls > self._calls_max:
                    raise ResourceExhaustedError(
                        "the server serves as many calls as it may",
                        reason="CALLS_AT_ONCE",
                        retry_after_seconds=1.0,
                    )
                metadata = context.invocation_metadata() or ()
                auth.set_principal(self._authorizer.authorize(method.full_name, metadata))
                yield
            code = _number(context.code())
        except (asyncio.CancelledError, GeneratorExit):
            code = _code_of_cancellation(context)
            raise
        except BaseException:
            code = _number(context.code())
            raise
        finally:
            self._calls -= counted
            self._handlers -= 1
            if not self._handlers:
                self._idle.set()
            HANDLED.labels(*labels, CODE_NAMES.get(code, "Unknown")).inc()
            HANDLING.labels(*labels).observe(time.perf_counter() - began)


@asynccontextmanager
async def _traced(method: Method, context: Context) -> AsyncIterator[None]:
    if not tracing.enabled() or method.service in auth.OPEN_SERVICES:
        yield
        return
    with tracing.server_span(method.service, method.name, context.invocation_metadata() or ()) as span:
        try:
            yield
        finally:
            code = _number(context.code())
            span.set_attribute("rpc.grpc.status_code", code)
            if code in _SERVER_FAULTS:
                span.set_status(trace.StatusCode.ERROR, CODE_NAMES.get(code, "Unknown"))


@asynccontextmanager
async def _translated(method: Method, context: Context) -> AsyncIterator[None]:
    try:
        yield
    except ServiceError as error:
        code = status.code_of(error)
        if code is grpc.StatusCode.INTERNAL:
            _log.exception("call failed: %s", error.message, extra={"rpc.method": method.full_name})
            await context.abort(code, status.INTERNAL_MESSAGE)
        _log.debug("call refused: %s %s", error.reason, error.message, extra={"rpc.method": method.full_name})
        await context.abort(code, status.status_of(error).message, status.trailers_of(error))
    except grpc.aio.AbortError:
        raise
    except grpc.aio.InternalError as error:
        # A write that met the end of the call before we were cancelled: the caller is gone, as in a cancellation.
        raise asyncio.CancelledError from error
    except Exception:
        _log.exception("call failed", extra={"rpc.method": method.full_name})
        await context.abort(grpc.StatusCode.INTERNAL, status.INTERNAL_MESSAGE)


async def _bounded(call: Awaitable[Any], deadline_seconds: float) -> Any:
    timeout = asyncio.timeout(deadline_seconds)
    try:
        async with timeout:
            return await call
    except TimeoutError as error:
        if not timeout.expired():
            raise
        message = f"the call took longer than the server's {deadline_seconds:g} s"
        raise DeadlineExceededError(message, reason="SERVER_DEADLINE") from error


def _behavior(handler: Handler) -> Callable[..., Any]:
    behavior: Callable[..., Any] | None = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    if behavior is None:
        raise TypeError("a method handler without behavior")
    return behavior


def _number(code: grpc.StatusCode | int | None) -> int:
    if isinstance(code, grpc.StatusCode):
        number: int = code.value[0]
        return number
    return code or 0


def _code_of_cancellation(context: Context) -> int:
    remaining_seconds = context.time_remaining()
    ended = grpc.StatusCode.CANCELLED
    if remaining_seconds is not None and remaining_seconds <= 0:
        ended = grpc.StatusCode.DEADLINE_EXCEEDED
    return _number(ended)
