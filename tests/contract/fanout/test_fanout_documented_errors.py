"""Every rpc of the fan-out and every error that its contract lists, by a stock client."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.integration.fanout.fanout_service import (
    Fanout,
    after,
    fanout_running,
    fanout_settings,
    from_now,
    from_snapshot,
    metadata,
)
from tests.integration.fanout.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger
from tests.integration.fanout.written_log import WrittenLog, now_us

RPCS = ("Subscribe", "Acknowledge", "ListStreams")
POSITION = position_pb2.MasterPosition(master_id=1)


def request_of(rpc: str) -> object:
    return {
        "Subscribe": pb.SubscribeRequest(masters=[from_now(1)]),
        "Acknowledge": pb.AcknowledgeRequest(positions=[POSITION]),
        "ListStreams": pb.ListStreamsRequest(),
    }[rpc]


async def error_of(fanout: Fanout, rpc: str, request: object, headers: object) -> grpc.aio.AioRpcError:
    """The error with which the call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(whole(getattr(fanout.stub, rpc)(request, metadata=headers)), 20)
    return caught.value


async def whole(call: grpc.aio.Call) -> None:
    if isinstance(call, grpc.aio.UnaryStreamCall):
        async for _ in call:
            pass
    else:
        await call


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
    raise AssertionError(f"no ErrorInfo in {error}")


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ((), "TOKEN_MISSING"),
        ((("authorization", "Basic x"),), "TOKEN_MALFORMED"),
        (metadata("nobody"), "LICENSE_UNKNOWN"),
        (metadata("revoked"), "LICENSE_REVOKED"),
        (metadata("expired"), "LICENSE_EXPIRED"),
    ],
)
async def test_a_token_that_does_not_count_is_unauthenticated(
    fanout: Fanout, ledger: StandInLedger, rpc: str, headers: object, reason: str
) -> None:
    ledger.add_user("revoked", 1).revoked = True
    ledger.add_user("expired", 1).expires_at_us = now_us() - 1
    error = await error_of(fanout, rpc, request_of(rpc), headers)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert info_of(error).reason == reason


@pytest.mark.parametrize("token", [SERVICE_TOKEN, OPERATOR_TOKEN])
@pytest.mark.parametrize("rpc", ["Subscribe", "Acknowledge"])
async def test_services_and_operators_have_no_subscriptions(fanout: Fanout, rpc: str, token: str) -> None:
    error = await error_of(fanout, rpc, request_of(rpc), metadata(token))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_subscribers_do_not_list_streams(fanout: Fanout, ledger: StandInLedger) -> None:
    ledger.add_user("token", 1)
    error = await error_of(fanout, "ListStreams", pb.ListStreamsRequest(), metadata("token"))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "request_",
    [pb.SubscribeRequest(masters=[from_now(1), from_now(2)]), pb.SubscribeRequest()],
    ids=["a master that is not followed", "nobody is followed"],
)
async def test_subscribing_needs_a_subscription(
    fanout: Fanout, ledger: StandInLedger, request_: pb.SubscribeRequest
) -> None:
    ledger.add_user("token", *([1] if request_.masters else []))
    error = await error_of(fanout, "Subscribe", request_, metadata("token"))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert info_of(error).reason == "NOT_SUBSCRIBED"


async def test_acknowledging_needs_a_subscription(fanout: Fanout, ledger: StandInLedger) -> None:
    ledger.add_user("token", 2)
    error = await error_of(fanout, "Acknowledge", request_of("Acknowledge"), metadata("token"))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("Subscribe", pb.SubscribeRequest(masters=[from_now(0)])),
        ("Subscribe", pb.SubscribeRequest(masters=[from_now(1), from_now(1)])),
        ("Subscribe", pb.SubscribeRequest(masters=[after(1, 0, 5)])),
        ("Subscribe", pb.SubscribeRequest(client="x" * 65)),
        ("Acknowledge", pb.AcknowledgeRequest()),
        ("Acknowledge", pb.AcknowledgeRequest(positions=[POSITION, POSITION])),
        ("ListStreams", pb.ListStreamsRequest(page_size=1_001)),
        ("ListStreams", pb.ListStreamsRequest(page_token="?")),
    ],
)
async def test_a_wrong_request_is_an_invalid_argument(
    fanout: Fanout, ledger: StandInLedger, rpc: str, request_: object
) -> None:
    ledger.add_user("token", 1)
    token = OPERATOR_TOKEN if rpc == "ListStreams" else "token"
    error = await error_of(fanout, rpc, request_, metadata(token))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_acknowledgement_beyond_the_log_is_an_invalid_argument(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 3)
    position = position_pb2.StreamPosition(epoch=1, sequence=4)
    request = pb.AcknowledgeRequest(positions=[position_pb2.MasterPosition(master_id=1, position=position)])
    error = await error_of(fanout, "Acknowledge", request, metadata("token"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(error).reason == "POSITION_BEYOND_LOG"


async def test_a_position_that_cannot_be_resumed_from_is_out_of_range(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 3)
    request = pb.SubscribeRequest(masters=[after(1, 1, 9)])
    error = await error_of(fanout, "Subscribe", request, metadata("token"))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert info_of(error).reason == "POSITION_UNAVAILABLE"


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("streams_max", "TOO_MANY_STREAMS"), ("streams_per_user_max", "TOO_MANY_STREAMS_OF_USER")],
)
async def test_too_many_streams_exhaust_a_resource(
    redis_url: str, ledger: StandInLedger, log: WrittenLog, limit: str, reason: str
) -> None:
    ledger.add_user("token", 1)
    async with (
        fanout_running(fanout_settings(redis_url, ledger, **{limit: 2})) as fanout,
        fanout.subscribe("token", from_now(1)) as one,
        fanout.subscribe("token") as other,
    ):
        await one.begun()
        await other.begun()
        error = await error_of(fanout, "Subscribe", request_of("Subscribe"), metadata("token"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info_of(error).reason == reason


async def test_a_slow_reader_exhausts_a_resource(
    redis_url: str, ledger: StandInLedger, log: WrittenLog
) -> None:
    """It acknowledged once, and then no more of what it was sent."""
    ledger.add_user("token", 1)
    loaded = fanout_settings(redis_url, ledger, unacknowledged_seconds_max=0.3)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", after(1, 0, 0)) as subscriber:
        await log.signals(1, 5)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
        position = position_pb2.StreamPosition(epoch=1, sequence=2)
        request = pb.AcknowledgeRequest(
            positions=[position_pb2.MasterPosition(master_id=1, position=position)]
        )
        await fanout.stub.Acknowledge(request, metadata=metadata("token"))
        error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = info_of(error)
    assert info.reason == "SLOW_READER"
    assert info.metadata["positions"] == "1:1:5"


async def test_a_missing_snapshot_is_unavailable(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 3)
    request = pb.SubscribeRequest(masters=[from_snapshot(1)])
    error = await error_of(fanout, "Subscribe", request, metadata("token"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    info = info_of(error)
    assert info.reason == "SNAPSHOT_UNAVAILABLE"
    assert info.metadata["retryable"] == "true"


async def test_a_drain_is_unavailable_and_comes_with_a_drain(
    redis_url: str, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    async with fanout_running(fanout_settings(redis_url, ledger)) as fanout:
        subscriber = fanout.subscribe("token", from_now(1))
        await subscriber.begun()
    error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(error).reason == "DRAINING"
    assert subscriber.drain is not None


@pytest.mark.parametrize("rpc", ["Subscribe", "Acknowledge"])
async def test_a_ledger_that_is_away_makes_calls_unavailable(
    redis_url: str, ledger: StandInLedger, log: WrittenLog, rpc: str
) -> None:
    loaded = fanout_settings(redis_url, ledger, ledger_address="127.0.0.1:1", peer_call_timeout_seconds=0.5)
    async with fanout_running(loaded) as fanout:
        error = await error_of(fanout, rpc, request_of(rpc), metadata("token"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
