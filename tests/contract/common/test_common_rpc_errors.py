"""Every error of the family over every kind of call, against a real server."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common import errors, rpc
from services.common.errors import ServiceError
from tests.contract.common.example_service import KINDS, call, calling_example, failure

EXPECTED = [
    (
        errors.InvalidInputError(
            "bad", violations=[errors.FieldViolation("a.b", "is bad")], metadata={"k": "v"}
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    (errors.UnauthenticatedError("who?", reason="LICENSE_EXPIRED"), grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDeniedError("no"), grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotFoundError("no such user", metadata={"user_id": "7"}), grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExistsError("there"), grpc.StatusCode.ALREADY_EXISTS),
    (
        errors.FailedPreconditionError("revoked", reason="LICENSE_REVOKED"),
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    (errors.AbortedError("again"), grpc.StatusCode.ABORTED),
    (errors.OutOfRangeError("gone", metadata={"oldest": "1:5", "head": "1:9"}), grpc.StatusCode.OUT_OF_RANGE),
    (
        errors.ResourceExhaustedError("full", reason="STREAMS_PER_USER", retry_after_seconds=2.5),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
    (errors.UnavailableError("down", retry_after_seconds=0.25), grpc.StatusCode.UNAVAILABLE),
]
IDS = [type(error).__name__ for error, _ in EXPECTED]


@pytest.mark.parametrize("kind", [*KINDS, "Writing"])
@pytest.mark.parametrize(("raised", "code"), EXPECTED, ids=IDS)
async def test_an_error_reaches_the_caller_whole(
    raised: ServiceError, code: grpc.StatusCode, kind: str
) -> None:
    async with calling_example() as (served, channel):
        served.example.failure = raised
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind)
        assert caught.value.code() is code
        assert caught.value.details() == raised.message
        got = rpc.error_from_rpc(caught.value)
    assert type(got) is type(raised)
    assert (got.message, got.reason, got.metadata, got.retryable) == (
        raised.message,
        raised.reason,
        raised.metadata,
        raised.retryable,
    )
    assert getattr(got, "violations", None) == getattr(raised, "violations", None)
    assert getattr(got, "retry_after_seconds", None) == getattr(raised, "retry_after_seconds", None)


async def test_stock_tools_read_the_details() -> None:
    async with calling_example() as (served, channel):
        served.example.failure = EXPECTED[0][0]
        attempt = channel.unary_unary("/example.v1.ExampleService/UnaryUnary")(b"x")
        with pytest.raises(grpc.aio.AioRpcError):
            await attempt
        status: status_pb2.Status = await rpc_status.aio.from_call(attempt)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "INVALID_INPUT",
        "execution-control-plane",
        {"k": "v", "retryable": "false"},
    )
    assert bad_request.field_violations[0].field == "a.b"


@pytest.mark.parametrize("kind", [*KINDS, "Writing"])
@pytest.mark.parametrize(
    "raised",
    [KeyError("hunter2"), ServiceError("hunter2"), errors.ConfigurationError("hunter2"), OSError("hunter2")],
)
async def test_a_mistake_is_logged_with_its_traceback_and_told_as_internal(
    raised: Exception, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling_example() as (served, channel):
        served.example.failure = raised
        with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "hunter2" not in str(caught.value.trailing_metadata())
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 1
    assert logged[0].exc_info[1] is raised
    assert logged[0].__dict__["rpc.method"].endswith(kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_expected_error_is_not_logged_as_a_failure(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling_example() as (served, channel):
        served.example.failure = errors.NotFoundError("x")
        await failure(call(channel, kind))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_message_that_cannot_be_a_header_arrives() -> None:
    async with calling_example() as (served, channel):
        served.example.failure = errors.NotFoundError("no “Müller”\n\x00 100%")
        error = await failure(call(channel, "UnaryUnary"))
    assert error.message == "no “Müller”\n\x00 100%"


async def test_an_error_with_too_much_metadata_still_arrives() -> None:
    async with calling_example() as (served, channel):
        served.example.failure = errors.NotFoundError("x" * 10_000, metadata={"k": "v" * 50_000})
        error = await failure(call(channel, "UnaryUnary"))
    assert isinstance(error, errors.NotFoundError)


async def test_what_was_streamed_before_the_error_arrives() -> None:
    async with calling_example() as (served, channel):
        served.example.failure = errors.UnavailableError("later")
        answers = []
        with pytest.raises(errors.UnavailableError), rpc.peer_errors("example"):
            answers.extend(
                [
                    answer
                    async for answer in channel.unary_stream("/example.v1.ExampleService/UnaryStream")(b"x")
                ]
            )
    assert answers == []


async def test_an_unknown_method_is_unimplemented() -> None:
    async with calling_example() as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/example.v1.ExampleService/Nope")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert type(rpc.error_from_rpc(caught.value)) is ServiceError


async def test_a_peer_that_is_not_there_is_unavailable() -> None:
    async with rpc.channel("127.0.0.1:1", token=None) as channel:
        error = await failure(call(channel, "UnaryUnary"))
    assert isinstance(error, errors.UnavailableError)
    assert error.metadata["peer"] == "example"


async def test_a_peer_slower_than_the_deadline_is_unavailable() -> None:
    async with calling_example() as (served, channel):
        served.example.hold = asyncio.Event()
        error = await failure(call(channel, "UnaryUnary", timeout=0.1))
    assert isinstance(error, errors.UnavailableError)
    assert error.reason == "PEER_DEADLINE_EXCEEDED"
