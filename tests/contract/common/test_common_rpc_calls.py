"""What surrounds every call: identity, deadlines, cancellation, metrics, limits; against a real server."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from services.common import errors, rpc
from tests.contract.common.example_service import (
    KINDS,
    OPEN_TO_LICENSES,
    OPERATOR_TOKEN,
    SERVICE,
    SERVICE_TOKEN,
    Example,
    call,
    calling_example,
    failure,
    serving_example,
)
from tests.waiting import until


@pytest.mark.parametrize("kind", KINDS)
async def test_the_channel_carries_the_token_and_the_handler_knows_the_caller(kind: str) -> None:
    async with calling_example(OPERATOR_TOKEN) as (_, channel):
        assert (await call(channel, kind))[-1] == b"hello:operator:"


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_token_no_handler_runs(kind: str) -> None:
    async with calling_example(None) as (served, channel):
        error = await failure(call(channel, kind))
        assert isinstance(error, errors.UnauthenticatedError)
        assert error.reason == "TOKEN_MISSING"
        assert served.example.events == []


async def test_an_unknown_token_is_unauthenticated_and_a_wrong_kind_denied() -> None:
    async with calling_example("license-token") as (served, channel):
        assert isinstance(await failure(call(channel, "UnaryUnary")), errors.UnauthenticatedError)
        assert await call(channel, OPEN_TO_LICENSES) == [b"hello:license:license-token"]
        async with rpc.channel(served.address, token=OPERATOR_TOKEN) as operator:
            assert isinstance(await failure(call(operator, OPEN_TO_LICENSES)), errors.PermissionDeniedError)


async def test_a_token_given_with_the_call_wins() -> None:
    async with calling_example(OPERATOR_TOKEN) as (_, channel):
        metadata = (("authorization", f"Bearer {SERVICE_TOKEN}"),)
        assert await call(channel, "UnaryUnary", metadata=metadata) == [b"hello:service:"]


async def test_calls_at_once_each_know_their_own_caller() -> None:
    async with (
        calling_example() as (served, service),
        rpc.channel(served.address, token=OPERATOR_TOKEN) as operator,
    ):
        served.example.hold = asyncio.Event()
        calls = [asyncio.create_task(call(channel, "UnaryUnary")) for channel in [service, operator] * 10]
        await until(lambda: len(served.example.events) == 20)
        served.example.hold.set()
        answers = [(await one)[0] for one in calls]
    assert answers == [b"hello:service:", b"hello:operator:"] * 10


async def test_the_server_bounds_a_unary_call() -> None:
    async with calling_example(grpc_unary_deadline_seconds=0.1) as (served, channel):
        served.example.hold = asyncio.Event()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "UnaryUnary")
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "0.1 s" in caught.value.details()
        assert served.example.events == ["held", "cancelled"]


async def test_the_servers_bound_does_not_end_streams() -> None:
    async with calling_example(grpc_unary_deadline_seconds=0.05) as (served, channel):
        served.example.hold = asyncio.Event()
        running = asyncio.create_task(call(channel, "UnaryStream"))
        await asyncio.sleep(0.2)
        served.example.hold.set()
        assert len(await running) == 2


async def test_a_timeout_inside_the_handler_is_not_taken_for_the_servers_deadline() -> None:
    async with calling_example() as (served, channel):
        served.example.failure = TimeoutError("inner")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "UnaryUnary")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("kind", ["UnaryUnary", "UnaryStream", "Writing"])
async def test_a_caller_that_goes_cancels_its_handler(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with calling_example() as (served, channel):
        served.example.hold = asyncio.Event()
        running = asyncio.create_task(call(channel, kind))
        await until(lambda: "held" in served.example.events)
        running.cancel()
        await until(lambda: "cancelled" in served.example.events)
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_stream_whose_reader_goes_is_closed_without_the_garbage_collector(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.disable()
    try:
        async with calling_example() as (served, channel):
            stream = channel.unary_stream(f"/{SERVICE}/Endless")(b"")
            async for _ in stream:
                break
            stream.cancel()
            await until(lambda: served.example.events == ["closed"])
    finally:
        gc.enable()
    assert [record for record in caplog.records if record.exc_info] == []


async def test_readers_that_drop_their_connection_leave_no_errors_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving_example() as served:
        for _ in range(10):
            async with rpc.channel(served.address, token=SERVICE_TOKEN) as channel:
                streams = [channel.unary_stream(f"/{SERVICE}/Endless")(b"") for _ in range(3)]
                for stream in streams:
                    assert len(await stream.read()) == 10_000
                await channel.close(None)
        await until(lambda: len(served.example.events) == 30)
    assert [
        record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "WARNING")
    ] == []


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"grpc_service": SERVICE} | labels) or 0.0


@pytest.mark.parametrize(
    ("kind", "grpc_type"),
    [
        ("UnaryUnary", "unary"),
        ("UnaryStream", "server_stream"),
        ("StreamUnary", "client_stream"),
        ("StreamStream", "bidi_stream"),
    ],
)
@pytest.mark.parametrize(
    ("raised", "grpc_code"),
    [(None, "OK"), (errors.FailedPreconditionError("x"), "FailedPrecondition"), (KeyError("x"), "Internal")],
)
async def test_calls_are_counted_with_the_labels_of_go_grpc(
    kind: str, grpc_type: str, raised: Exception | None, grpc_code: str
) -> None:
    labels = {"grpc_method": kind, "grpc_type": grpc_type}
    names = ("grpc_server_started_total", "grpc_server_handling_seconds_count")
    before = [counted(name, **labels) for name in names]
    handled = counted("grpc_server_handled_total", grpc_code=grpc_code, **labels)
    async with calling_example() as (served, channel):
        served.example.failure = raised
        if raised is None:
            await call(channel, kind)
        else:
            await failure(call(channel, kind))
        await until(
            lambda: counted("grpc_server_handled_total", grpc_code=grpc_code, **labels) == handled + 1
        )
    assert [counted(name, **labels) for name in names] == [count + 1 for count in before]


@pytest.mark.parametrize(("ending", "grpc_code"), [("cancel", "Canceled"), ("deadline", "DeadlineExceeded")])
async def test_calls_that_the_caller_ends_are_counted_so(ending: str, grpc_code: str) -> None:
    labels = {"grpc_method": "UnaryUnary", "grpc_type": "unary", "grpc_code": grpc_code}
    handled = counted("grpc_server_handled_total", **labels)
    async with calling_example() as (served, channel):
        served.example.hold = asyncio.Event()
        running = asyncio.create_task(
            call(channel, "UnaryUnary", timeout=0.1 if ending == "deadline" else 30)
        )
        await until(lambda: "held" in served.example.events)
        if ending == "cancel":
            running.cancel()
        await until(lambda: counted("grpc_server_handled_total", **labels) == handled + 1)
        await asyncio.gather(running, return_exceptions=True)


async def test_what_the_guard_refuses_is_counted() -> None:
    labels = {"grpc_method": "UnaryUnary", "grpc_type": "unary", "grpc_code": "Unauthenticated"}
    handled = counted("grpc_server_handled_total", **labels)
    async with calling_example("unknown") as (_, channel):
        await failure(call(channel, "UnaryUnary"))
        await until(lambda: counted("grpc_server_handled_total", **labels) == handled + 1)


async def test_calls_beyond_the_limit_are_refused() -> None:
    async with calling_example(grpc_concurrent_rpcs_max=2) as (served, channel):
        served.example.hold = asyncio.Event()
        running = [asyncio.create_task(call(channel, "UnaryUnary")) for _ in range(2)]
        await until(lambda: len(served.example.events) == 2)
        error = await failure(call(channel, "UnaryUnary"))
        assert isinstance(error, errors.ResourceExhaustedError)
        assert error.reason == "CALLS_AT_ONCE"
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        served.example.hold.set()
        await asyncio.gather(*running)


async def test_messages_beyond_the_limit_are_refused() -> None:
    async with calling_example(grpc_message_bytes_max=1_024) as (_, channel):
        assert isinstance(
            await failure(call(channel, "UnaryUnary", b"x" * 2_000)), errors.ResourceExhaustedError
        )


async def test_an_idempotent_method_is_tried_again_while_the_peer_is_unavailable() -> None:
    class Flaky(Example):
        left = 2

        async def act(self, request: bytes) -> bytes:
            if self.left:
                self.left -= 1
                raise errors.UnavailableError("not yet")
            return b"done"

    async with serving_example() as served:
        served.example.__class__ = Flaky
        async with rpc.channel(served.address, token=SERVICE_TOKEN) as once:
            assert isinstance(await failure(call(once, "UnaryUnary")), errors.UnavailableError)
        async with rpc.channel(
            served.address, token=SERVICE_TOKEN, idempotent=[f"{SERVICE}/UnaryUnary"]
        ) as again:
            assert await call(again, "UnaryUnary") == [b"done"]


async def test_a_write_that_meets_the_end_of_the_call_is_a_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = {"grpc_method": "Writing", "grpc_type": "server_stream", "grpc_code": "Canceled"}
    handled = counted("grpc_server_handled_total", **labels)
    async with calling_example() as (served, channel):
        served.example.failure = grpc.aio.InternalError('Failed "execute_batch"')
        running = asyncio.create_task(call(channel, "Writing", timeout=5))
        await until(lambda: counted("grpc_server_handled_total", **labels) == handled + 1)
        await asyncio.gather(running, return_exceptions=True)
    assert [record for record in caplog.records if record.exc_info] == []
