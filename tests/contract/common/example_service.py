"""A small real gRPC server whose handlers do what the request says, and ways to call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.common import auth, rpc, settings
from services.common.errors import ServiceError
from services.common.settings import Address, ServiceSettings

SERVICE = "example.v1.ExampleService"
OPEN_TO_LICENSES = "License"
SERVICE_TOKEN = "service-token-0123456789"
OPERATOR_TOKEN = "operator-token-0123456789"
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


@dataclass
class Example:
    """What the handlers do: raise `failure`, or echo; `events` is what they lived through."""

    failure: BaseException | None = None
    hold: asyncio.Event | None = None
    events: list[str] = field(default_factory=list)

    async def act(self, request: bytes) -> bytes:
        try:
            if self.hold is not None:
                self.events.append("held")
                await self.hold.wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        if self.failure is not None:
            raise self.failure
        principal = auth.current_principal()
        return f"{request.decode()}:{principal.kind}:{principal.token}".encode()

    async def unary_unary(self, request: bytes, context: rpc.Context) -> bytes:
        return await self.act(request)

    async def unary_stream(self, request: bytes, context: rpc.Context) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            yield await self.act(request)
        finally:
            self.events.append("closed")

    async def stream_unary(self, requests: AsyncIterator[bytes], context: rpc.Context) -> bytes:
        return await self.act(b"".join([request async for request in requests]))

    async def stream_stream(
        self, requests: AsyncIterator[bytes], context: rpc.Context
    ) -> AsyncIterator[bytes]:
        yield b"first"
        async for request in requests:
            yield await self.act(request)

    async def writing(self, request: bytes, context: rpc.Context) -> None:
        await context.write(b"first")
        await context.write(await self.act(request))

    async def endless(self, request: bytes, context: rpc.Context) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 10_000
        finally:
            self.events.append("closed")


def add_to_server(example: Example, server: grpc.aio.Server) -> None:
    """As generated code does it."""
    handlers: dict[str, Any] = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(example.unary_unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(example.unary_stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(example.stream_unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(example.stream_stream),
        "Writing": grpc.unary_stream_rpc_method_handler(example.writing),
        "Endless": grpc.unary_stream_rpc_method_handler(example.endless),
        OPEN_TO_LICENSES: grpc.unary_unary_rpc_method_handler(example.unary_unary),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


async def call(
    channel: grpc.aio.Channel, kind: str, request: bytes = b"hello", **options: Any
) -> list[bytes]:
    """Calls the method of that kind and returns all answers."""

    async def requests() -> AsyncIterator[bytes]:
        yield request

    path = f"/{SERVICE}/{kind}"
    if kind in ("UnaryUnary", OPEN_TO_LICENSES):
        return [await channel.unary_unary(path)(request, **options)]
    if kind == "StreamUnary":
        return [await channel.stream_unary(path)(requests(), **options)]
    if kind == "StreamStream":
        return [answer async for answer in channel.stream_stream(path)(requests(), **options)]
    stream = channel.unary_stream(path)(request, **options)
    try:
        return [answer async for answer in stream]
    finally:
        # A task that is cancelled while its call begins leaves the call to the garbage collector.
        stream.cancel()


async def failure(attempt: Awaitable[object]) -> ServiceError:
    """The service error that the attempt ends with."""
    try:
        with rpc.peer_errors("example"):
            await attempt
    except ServiceError as error:
        return error
    raise AssertionError("the call succeeded")


@dataclass
class Served:
    """The running server and what its handlers do."""

    server: rpc.Server
    example: Example
    address: Address


def example_values(**overrides: object) -> dict[str, object]:
    defaults: dict[str, object] = {
        "grpc_bind_address": "127.0.0.1:0",
        "service_token": SERVICE_TOKEN,
        "operator_token": OPERATOR_TOKEN,
        "drain_grace_seconds": 0.2,
    }
    return defaults | overrides


def example_settings(**overrides: object) -> ServiceSettings:
    return settings.load(ServiceSettings, **example_values(**overrides))


@asynccontextmanager
async def serving_example(**overrides: object) -> AsyncIterator[Served]:
    """The server, with these settings, on a free port."""
    chosen, example = example_settings(**overrides), Example()
    kinds = {f"/{SERVICE}/{OPEN_TO_LICENSES}": {auth.PrincipalKind.LICENSE, auth.PrincipalKind.SERVICE}}
    registration = rpc.registration(add_to_server, example)
    async with rpc.serving(chosen, [registration], authorizer=rpc.authorizer(chosen, kinds)) as server:
        yield Served(server, example, Address("127.0.0.1", server.port))


@asynccontextmanager
async def calling_example(
    token: str | None = SERVICE_TOKEN, **overrides: object
) -> AsyncIterator[tuple[Served, grpc.aio.Channel]]:
    """The server and a channel to it that carries `token`."""
    async with serving_example(**overrides) as served, rpc.channel(served.address, token=token) as channel:
        yield served, channel
