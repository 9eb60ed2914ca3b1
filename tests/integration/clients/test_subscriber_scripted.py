"""The subscriber client where the server misbehaves, refuses, stops or is slow, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from ecp_client.copying import Reason
from ecp_client.positions import Position
from ecp_client.subscriber import (
    Degraded,
    GapSeen,
    Resynced,
    ServerDraining,
    SyncState,
)
from execution.common.v1.position_pb2 import MasterPosition
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.integration.clients.application import FOREVER, WAIT_SECONDS, App, settings
from tests.integration.clients.scripted_server import (
    Context,
    drain,
    out_of_range,
    says,
    serving,
    signals,
    snapshot,
    state,
)
from tests.waiting import until


async def test_a_signal_left_out_is_asked_for_again() -> None:
    app = App()
    async with serving(says(signals(1, 2), signals(4, 5)), says(signals(3, 4, 5))) as server:
        async with app.subscriber(settings(server)) as client:
            await client.wait_position(1, 5, WAIT_SECONDS)
            assert client.stats.streams == 2
        assert server.requests[1].masters[0].after == Position(1, 2).to_pb()
    assert app.sequences == [1, 2, 3, 4, 5]
    assert [event.reason for event in app.events if isinstance(event, GapSeen)] == ["UNEXPLAINED"]


async def test_a_server_that_always_leaves_it_out_leads_to_a_full_sync() -> None:
    app = App()
    synced, jumping = says(snapshot(3), signals(4)), says(signals(3))

    def as_asked(request: pb.SubscribeRequest, context: Context) -> AsyncIterator[pb.SubscribeResponse]:
        asked = request.masters[0].WhichOneof("start")
        return (synced if asked == "from_snapshot" else jumping)(request, context)

    scripts = says(signals(1), signals(3)), as_asked
    async with serving(*scripts) as server, app.subscriber(settings(server)) as client:
        await client.wait_position(1, 4, WAIT_SECONDS)
        assert client.state(1) is SyncState.SYNCED
    assert app.sequences == [1, 4]


async def test_a_server_that_says_that_something_is_missing_is_asked_for_a_full_sync() -> None:
    """Though no gap was seen: the end of an earlier full sync may not be recorded."""
    app = App()
    told = says(signals(1), state(pb.SUBSCRIPTION_STATE_DEGRADED_GAP))
    async with serving(told, says(snapshot(1), signals(2))) as server:
        async with app.subscriber(settings(server)) as client:
            await client.wait_position(1, 2, WAIT_SECONDS)
            assert client.state(1) is SyncState.SYNCED
        kinds = [request.masters[0].WhichOneof("start") for request in server.requests]
    assert kinds == ["after", "from_snapshot"]
    assert app.sequences == [1, 2]
    assert Degraded(1, "TOLD") in app.events


async def test_a_master_without_snapshots_is_followed_degraded_and_not_in_a_circle() -> None:
    app = App()
    degraded = state(pb.SUBSCRIPTION_STATE_DEGRADED_GAP)
    missing = says(then=grpc.StatusCode.UNAVAILABLE, details="SNAPSHOT_UNAVAILABLE")
    async with serving(says(signals(1), degraded), missing, says(degraded, signals(2))) as server:
        given = settings(server, full_sync_seconds_min=FOREVER, full_sync_seconds_max=FOREVER)
        async with app.subscriber(given) as client:
            await client.wait_position(1, 2, WAIT_SECONDS)
            assert client.state(1) is SyncState.DEGRADED
            assert app.decisions[-1].reason is Reason.DEGRADED
        kinds = [request.masters[0].WhichOneof("start") for request in server.requests]
    assert kinds == ["after", "from_snapshot", "after"]


async def test_what_is_gone_leads_to_the_snapshot() -> None:
    app = App()
    scripts = out_of_range(50, 80), says(snapshot(80), signals(81))
    async with serving(*scripts) as server, app.subscriber(settings(server)) as client:
        await client.wait_position(1, 81, WAIT_SECONDS)
    assert app.sequences == [81]
    assert [event.as_of for event in app.events if isinstance(event, Resynced)] == [Position(1, 80)]


async def test_a_server_that_cannot_serve_what_it_offers_is_not_asked_without_end() -> None:
    app = App()
    async with serving(out_of_range(50, None)) as server:
        patient = {"reconnect_seconds_min": FOREVER, "reconnect_seconds_max": FOREVER}
        given = settings(server, **patient, refused_seconds_max=FOREVER)
        async with app.subscriber(given):
            await until(lambda: len(app.ends()) == 2)
            await asyncio.sleep(0.1)
            assert len(server.requests) == 2


async def test_what_is_gone_without_a_snapshot_is_told_and_the_rest_followed_degraded() -> None:
    app = App()
    async with serving(out_of_range(50, None), says(signals(51))) as server:
        given = settings(server, full_sync_seconds_min=FOREVER, full_sync_seconds_max=FOREVER)
        async with app.subscriber(given) as client:
            await client.wait_position(1, 51, WAIT_SECONDS)
            assert client.state(1) is SyncState.DEGRADED
            assert not list(client.copier(1).account.held())
    (gap,) = [event for event in app.events if isinstance(event, GapSeen)]
    assert (gap.first, gap.last, gap.reason) == (Position(0, 1), Position(1, 50), "TRIMMED")


async def test_a_silent_stream_is_given_up() -> None:
    app = App()
    async with serving(says(signals(1)), says(signals(2))) as server:
        given = settings(server, silence_seconds_max=0.1)
        async with app.subscriber(given) as client:
            await client.wait_position(1, 2, WAIT_SECONDS)
    assert app.ends()[0] == "CANCELLED"


async def test_a_drain_is_followed_to_its_time() -> None:
    app = App()
    gone = says(signals(1), drain(30), then=grpc.StatusCode.UNAVAILABLE)
    async with serving(gone, says(signals(2))) as server, app.subscriber(settings(server)) as client:
        await client.wait_position(1, 2, WAIT_SECONDS)
    assert ServerDraining(30) in app.events


async def test_a_drain_leads_to_the_next_address() -> None:
    """The process that drains is about to end."""

    async def drains_newcomers(
        request: pb.SubscribeRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeResponse]:
        first = says(signals(1), drain(30), then=grpc.StatusCode.UNAVAILABLE)
        script = says(signals(2)) if request.masters[0].after.sequence else first
        async for response in script(request, context):
            yield response

    app = App()
    async with serving(drains_newcomers) as one, serving(drains_newcomers) as other:
        both = settings(one, addresses=[one.address, other.address])
        async with app.subscriber(both) as client:
            await client.wait_position(1, 2, WAIT_SECONDS)
    assert (len(one.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
async def test_any_end_leads_to_the_next_stream(code: grpc.StatusCode) -> None:
    app = App()
    scripts = says(signals(1), then=code), says(signals(2))
    async with serving(*scripts) as server, app.subscriber(settings(server)) as client:
        await client.wait_position(1, 2, WAIT_SECONDS)
    assert app.ends()[0] == code.name
    assert app.sequences == [1, 2]


async def test_a_refused_license_waits_for_another_one() -> None:
    app = App()
    refused = says(then=grpc.StatusCode.UNAUTHENTICATED, details="revoked")
    async with serving(refused, says(signals(1))) as server:
        given = settings(server, reconnect_seconds_max=FOREVER, refused_seconds_max=FOREVER)
        async with app.subscriber(given) as client:
            await until(app.ends)
            client.set_license_token("fresh")
            await client.wait_position(1, 1, WAIT_SECONDS)
        assert server.tokens == ["Bearer token", "Bearer fresh"]


async def test_a_refresh_that_fails_is_tried_again() -> None:
    app = App()
    answers: list[str] = []

    async def refresh() -> str:
        answers.append("asked")
        if len(answers) == 1:
            raise ConnectionError
        return "fresh"

    refused = says(then=grpc.StatusCode.UNAUTHENTICATED)
    async with serving(refused, refused, says(signals(1))) as server:
        given = settings(server, refused_seconds_max=0.05)
        async with app.subscriber(given, refresh_token=refresh) as client:
            await client.wait_position(1, 1, WAIT_SECONDS)
            assert client.stats.callback_errors == 1


async def test_another_address_is_tried() -> None:
    app = App()
    async with serving(says(signals(1))) as server:
        given = settings(server, addresses=["127.0.0.1:1", server.address])
        async with app.subscriber(given) as client:
            await client.wait_position(1, 1, WAIT_SECONDS)


async def test_positions_are_acknowledged_also_at_the_end() -> None:
    app = App()
    async with serving(says(signals(1, 2))) as server:
        async with app.subscriber(settings(server)) as client:
            await until(lambda: Position(1, 2) in server.acknowledged)
        lazy = settings(server, acknowledge_interval_seconds=FOREVER)
        server.acknowledged.clear()
        async with app.subscriber(lazy) as client:
            await client.wait_position(1, 2, WAIT_SECONDS)
        assert server.acknowledged == [Position(1, 2)]


async def test_of_more_masters_than_one_call_may_name_all_are_acknowledged() -> None:
    """And the first of them do not push the others out, though they always have something new."""
    app = App()
    masters = range(1, 251)

    def progress(sequence: int) -> pb.SubscribeResponse:
        positions = [MasterPosition(master_id=one, position=Position(1, sequence).to_pb()) for one in masters]
        return pb.SubscribeResponse(progress=pb.Progress(positions=positions))

    async def moving(_request: pb.SubscribeRequest, _context: Context) -> AsyncIterator[pb.SubscribeResponse]:
        for sequence in range(1, 10_000):
            yield progress(sequence)
            await asyncio.sleep(0.002)

    async with serving(moving) as server, app.subscriber(settings(server, masters={})):
        await until(lambda: server.acknowledged_masters == set(masters))


async def test_a_drain_that_asks_for_too_long_a_wait_is_followed_for_a_bounded_time() -> None:
    app = App()
    scripts = says(signals(1), drain(10**9), then=grpc.StatusCode.UNAVAILABLE), says(signals(2))
    async with serving(*scripts) as server:
        given = settings(server, refused_seconds_max=0.1)
        async with app.subscriber(given) as client:
            await client.wait_position(1, 2, WAIT_SECONDS)


async def test_what_is_said_about_masters_that_were_not_asked_for_is_passed_over() -> None:
    app = App()
    stranger = signals(1, 2)
    for one in stranger.signals.signals:
        one.master_id = 7
    other = snapshot(5)
    other.snapshot.snapshot.master_id = 8
    async with (
        serving(says(stranger, other, signals(1))) as server,
        app.subscriber(settings(server)) as client,
    ):
        await client.wait_position(1, 1, WAIT_SECONDS)
        assert client.master_ids == [1]
        assert client.stats.signals == 1
