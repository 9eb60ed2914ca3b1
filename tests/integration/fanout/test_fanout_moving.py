"""Streams that are sent elsewhere: from connections that have grown old, and from a process that ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.integration.fanout.fanout_service import (
    WAIT_SECONDS,
    Fanout,
    after,
    fanout_running,
    fanout_settings,
    from_now,
    metadata,
    place,
)
from tests.integration.fanout.stand_in_ledger import OPERATOR_TOKEN, StandInLedger
from tests.integration.fanout.test_fanout_troubles import writing
from tests.integration.fanout.written_log import WrittenLog


async def peer_address(fanout: Fanout, user_id: str) -> str:
    """Where the user's one stream comes from."""
    listed = await fanout.stub.ListStreams(pb.ListStreamsRequest(), metadata=metadata(OPERATOR_TOKEN))
    (address,) = [one.peer_address for one in listed.streams if one.user_id == user_id]
    return address


async def test_streams_of_an_old_connection_go_on_over_a_new_one(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, edge: str
) -> None:
    """As clients behind a balancer must, or new processes would get none of them."""
    user = ledger.add_user("token", 1)
    ages: dict[str, object] = {"grpc_connection_age_seconds_max": 1.0}
    if edge == "aio":
        ages["stream_age_seconds_max"] = 1.0
    seen: list[int] = []
    addresses: list[str] = []
    start = after(1, 0, 0)
    async with fanout_running(fanout_settings(redis_url, ledger, **ages)) as fanout, writing(log, 1):
        for _ in range(3):
            subscriber = fanout.subscribe("token", start)
            await subscriber.begun()
            addresses.append(await peer_address(fanout, user.user_id))
            assert (await subscriber.ended()).code() is grpc.StatusCode.UNAVAILABLE
            assert subscriber.drain is not None
            (position,) = subscriber.drain.positions
            assert place(position.position) == subscriber.of(1).held
            await asyncio.sleep(subscriber.drain.reconnect_after.ToTimedelta().total_seconds())
            seen += subscriber.of(1).sequences
            start = after(1, *place(position.position))
    assert seen == list(range(1, len(seen) + 1))
    assert len(set(addresses)) == 3


@pytest.mark.parametrize("streams", [1, 40])
async def test_streams_of_a_process_that_ends_go_on_until_their_turn(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, streams: int
) -> None:
    for number in range(streams):
        ledger.add_user(f"token-{number}", 1)
    async with writing(log, 1):
        async with AsyncExitStack() as stack:
            fanout = await stack.enter_async_context(
                fanout_running(fanout_settings(redis_url, ledger, drain_jitter_seconds=5.0))
            )
            subscribers = [fanout.subscribe(f"token-{number}", from_now(1)) for number in range(streams)]
            for one in subscribers:
                await one.begun()
        async with asyncio.timeout(WAIT_SECONDS):
            for one in subscribers:
                assert (await one.ended()).code() is grpc.StatusCode.UNAVAILABLE
    ends = []
    for one in subscribers:
        assert one.drain is not None
        ends.append(place(one.drain.positions[0].position))
        assert ends[-1] == one.of(1).held
    # Signals kept coming while others were ended.
    assert len(set(ends)) > streams / 4
