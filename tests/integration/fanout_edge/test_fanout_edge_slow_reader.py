"""A reader that is given up for being slow learns so: it gets the rest of a message that was begun, and the status."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.rpc import error_details_pb2, status_pb2
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from redis.asyncio import Redis

from services.common.h2grpc.messages import prefixed
from tests.integration.fanout.fanout_service import Fanout, after, fanout_running, fanout_settings, pb
from tests.integration.fanout.stand_in_ledger import standing_in
from tests.integration.fanout.written_log import WrittenLog
from tests.integration.fanout_edge.attacker import WAIT_SECONDS, Attacker, attacking, headers

RESOURCE_EXHAUSTED = "8"


@asynccontextmanager
async def stage(redis_url: str, window: int, **overrides: object) -> AsyncIterator[tuple[Fanout, Attacker]]:
    """A fan-out that soon gives up a reader of 2,000 signals, and a peer that takes `window` bytes of each stream."""
    async with Redis.from_url(redis_url) as client, standing_in(client) as ledger:
        log = WrittenLog(client)
        await log.begin()
        ledger.add_user("a-license", 1)
        await log.signals(1, 2_000, per_entry=500)
        settings = fanout_settings(
            redis_url, ledger, edge="h2", lag_seconds_max=0.5, catch_up_seconds_max=0.5, **overrides
        )
        async with (
            fanout_running(settings) as fanout,
            attacking(fanout.running.port, {SettingsFrame.INITIAL_WINDOW_SIZE: window}) as peer,
        ):
            yield fanout, peer


async def subscribe(peer: Attacker, stream_id: int) -> None:
    request = pb.SubscribeRequest(masters=[after(1, 0, 0)], client="slow")
    await peer.send(
        HeadersFrame(stream_id, data=peer.encoder.encode(headers()), flags=["END_HEADERS"]),
        DataFrame(stream_id, data=prefixed(request.SerializeToString()), flags=["END_STREAM"]),
    )


async def read_bytes_until_given_up(fanout: Fanout, peer: Attacker, stream_id: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while len(fanout.running.hub):
            await peer.send(WindowUpdateFrame(stream_id, window_increment=1))
            await peer.data(1)


@pytest.mark.parametrize("window", [1_000, 0], ids=["within a message", "before the first"])
async def test_a_slow_reader_reads_whole_messages_and_why_it_was_given_up(
    redis_url: str, window: int
) -> None:
    async with stage(redis_url, window) as (fanout, peer):
        await subscribe(peer, 1)
        if window:
            assert await peer.data(window) == window
            # It is told at once, but not before the message's end.
            await read_bytes_until_given_up(fanout, peer, 1)
            assert 1 not in peer.ended
            await peer.send(WindowUpdateFrame(1, window_increment=1_000_000))
        answer = await peer.answer(1)
    assert answer.status == RESOURCE_EXHAUSTED
    sent = [one.sequence for message in answer.messages for one in message.signals.signals]
    assert sent == list(range(1, len(sent) + 1))
    assert bool(sent) == bool(window)
    encoded = answer.blocks[-1]["grpc-status-details-bin"]
    details = status_pb2.Status.FromString(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert details.details[0].Unpack(info)
    assert info.reason == "SLOW_READER"


async def test_streams_that_are_given_up_within_a_message_and_then_reset_take_no_room(redis_url: str) -> None:
    async with stage(redis_url, 1_000, http2_streams_per_connection_max=1) as (fanout, peer):
        for stream_id in (1, 3, 5):
            await subscribe(peer, stream_id)
            assert await peer.data(1_000) == 1_000, f"stream {stream_id} is refused"
            await read_bytes_until_given_up(fanout, peer, stream_id)
            await peer.send(RstStreamFrame(stream_id, error_code=ErrorCodes.CANCEL))
