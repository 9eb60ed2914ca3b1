"""What ended streams leave behind."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from services.common.h2grpc.call import Call
from services.common.h2grpc.connection import Connection
from services.fanout.delivery import Delivery
from tests.integration.fanout.fanout_service import WAIT_SECONDS, Fanout, from_now, metadata
from tests.integration.fanout.stand_in_ledger import StandInLedger

MASTER = 7
STREAMS = 10


def alive() -> int:
    return sum(isinstance(one, (Connection, Call, Delivery)) for one in gc.get_objects())


async def read_all(stream: grpc.aio.UnaryStreamCall[pb.SubscribeRequest, pb.SubscribeResponse]) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def a_stream(target: str, token: str, how: str) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options) as channel:
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        timeout = 1.0 if how == "deadline" else None
        request = pb.SubscribeRequest(masters=[from_now(MASTER if how != "refused" else MASTER + 1)])
        stream = stub.Subscribe(request, metadata=metadata(token), timeout=timeout)
        if how == "refused":
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()
            return
        await stream.read()
        if how == "cancelled":
            stream.cancel()
        elif how == "deadline":
            with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
                await read_all(stream)


@pytest.mark.parametrize("edge", ["h2"], indirect=True)
@pytest.mark.parametrize("how", ["closed", "cancelled", "deadline", "refused"])
async def test_an_ended_stream_leaves_nothing_to_the_garbage_collector(
    fanout: Fanout, ledger: StandInLedger, how: str
) -> None:
    """With thousands of streams the collector would make everybody wait."""
    ledger.add_user("token", MASTER)
    await a_stream(fanout.target, "token", how)
    gc.collect()
    before = alive()
    gc.disable()
    try:
        await asyncio.gather(*(a_stream(fanout.target, "token", how) for _ in range(STREAMS)))
        async with asyncio.timeout(WAIT_SECONDS):
            while alive() > before:  # noqa: ASYNC110 - nothing tells when an object is gone
                await asyncio.sleep(0.02)
    finally:
        gc.enable()
