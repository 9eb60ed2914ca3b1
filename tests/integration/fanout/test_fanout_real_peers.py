"""The fan-out between the real front door and the real ledger, with the real clients at both ends."""

from __future__ import annotations

import dataclasses

import grpc
import pytest
from redis.asyncio import Redis

from ecp_client.books import Book
from ecp_client.copying import CopySettings
from ecp_client.master import Master
from ecp_client.subscriber import Start, Subscriber, SubscriberSettings
from execution.common.v1 import position_pb2, signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2, subscription_service_pb2
from services.common import stream
from tests.integration.fanout.fanout_service import (
    after,
    from_now,
    from_snapshot,
    metadata,
    place,
)
from tests.integration.fanout.real_peers import WAIT_SECONDS, World, send
from tests.integration.ledger.ledger_service import eventually


async def test_signals_go_from_the_masters_client_to_the_subscribers(world: World) -> None:
    received: list[int] = []
    async with world.fanout() as fanout, Master(world.master_settings) as master:
        await master.wait_open(timeout_seconds=WAIT_SECONDS)
        settings = SubscriberSettings(
            addresses=[fanout.target],
            license_token=world.token,
            plaintext=True,
            masters={world.master_id: CopySettings()},
            start=Start.BEGINNING,
            acknowledge_interval_seconds=0.1,
        )
        async with Subscriber(
            settings, on_batch=lambda batch: received.extend(one.sequence for one in batch.signals)
        ) as subscriber:
            await send(master, 1, 300)
            await subscriber.wait_position(world.master_id, 300, timeout_seconds=WAIT_SECONDS)
            assert received == list(range(1, 301))

            async def acknowledged() -> bool:
                return place((await world.subscription()).acknowledged) == (1, 300)

            await eventually(acknowledged)


async def test_a_pause_and_its_end_reach_the_stream(world: World) -> None:
    async with world.fanout() as fanout, Master(world.master_settings) as master:
        await master.wait_open(timeout_seconds=WAIT_SECONDS)
        async with fanout.subscribe(world.token, from_now(world.master_id)) as subscriber:
            await subscriber.begun()
            told = subscriber.of(world.master_id)
            request = subscription_service_pb2.PauseSubscriptionRequest(
                subscription_id=world.subscription_id,
                scope=license_service_pb2.PAUSE_SCOPE_ALL,
                reason="a test",
            )
            await world.ledger.call("SubscriptionService/PauseSubscription", request)
            await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_PAUSED_ALL in told.states)
            await send(master, 1, 5)
            await subscriber.until(lambda: told.held == (1, 5))
            assert told.signals == []
            assert {gap.reason for gap in told.gaps} == {position_pb2.GAP_REASON_WITHHELD}
            resume = subscription_service_pb2.ResumeSubscriptionRequest(
                subscription_id=world.subscription_id, reason="a test"
            )
            await world.ledger.call("SubscriptionService/ResumeSubscription", resume)
            await subscriber.until(lambda: told.states[-1] == pb.SUBSCRIPTION_STATE_SYNCED)
            await send(master, 6, 5)
            await subscriber.until(lambda: told.sequences == [6, 7, 8, 9, 10])


async def test_the_end_of_a_subscription_and_of_a_license_end_the_stream(world: World) -> None:
    async with world.fanout() as fanout:
        subscriber = fanout.subscribe(world.token, from_now(world.master_id))
        await subscriber.begun()
        cancel = subscription_service_pb2.CancelSubscriptionRequest(
            subscription_id=world.subscription_id, reason="a test"
        )
        await world.ledger.call("SubscriptionService/CancelSubscription", cancel)
        assert (await subscriber.ended()).code() is grpc.StatusCode.PERMISSION_DENIED
        follower = (await world.subscription()).user_id
        await world.ledger.call(
            "SubscriptionService/CreateSubscription",
            subscription_service_pb2.CreateSubscriptionRequest(
                request_id="again", user_id=follower, master_id=world.master_id
            ),
        )

        async def subscribed_again() -> bool:
            nonlocal subscriber
            subscriber = fanout.subscribe(world.token, from_now(world.master_id))
            try:
                await subscriber.begun()
            except AssertionError:
                return False
            return True

        await eventually(subscribed_again)
        revoke = license_service_pb2.RevokeLicenseRequest(license_id=world.license_id, reason="a test")
        await world.ledger.call("LicenseService/RevokeLicense", revoke)
        assert (await subscriber.ended()).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_snapshot_is_asked_for_where_none_is_stored(world: World) -> None:
    book = Book(signal_pb2.ACCOUNT_MODE_HEDGING)
    async with (
        world.fanout(snapshot_wait_seconds=10) as fanout,
        Master(world.master_settings, book=book) as master,
    ):
        await master.wait_open(timeout_seconds=WAIT_SECONDS)
        await send(master, 1, 5)
        async with fanout.subscribe(world.token, from_snapshot(world.master_id)) as subscriber:
            told = subscriber.of(world.master_id)
            await subscriber.until(lambda: told.snapshots)
            assert told.held is not None
            await send(master, 6, 5)
            await subscriber.until(lambda: told.held == (1, 10))

            async def in_step() -> bool:
                state = (await world.subscription()).sync_state
                return state == subscription_service_pb2.SYNC_STATE_SYNCED

            await eventually(in_step)


async def test_what_the_log_let_go_of_comes_from_the_real_archive(world: World) -> None:
    async with Master(world.master_settings) as master:
        await master.wait_open(timeout_seconds=WAIT_SECONDS)
        for first in range(1, 200, 20):
            await send(master, first, 20)
        await world.ledger.archived(200)
        async with Redis.from_url(world.redis_url) as client:
            await client.xtrim(stream.log_name(), maxlen=2, approximate=False)
        async with (
            world.fanout(page_records_max=30) as fanout,
            fanout.subscribe(world.token, after(world.master_id, 0, 0)) as subscriber,
        ):
            told = subscriber.of(world.master_id)
            await subscriber.until(lambda: told.sequences == list(range(1, 201)))
            await send(master, 201, 5)
            await subscriber.until(lambda: told.sequences == list(range(1, 206)))
            assert told.gaps == []


async def test_a_wiped_outbox_begins_a_new_epoch_for_everybody(world: World) -> None:
    async with world.fanout() as fanout:
        async with Master(world.master_settings) as master:
            await master.wait_open(timeout_seconds=WAIT_SECONDS)
            await send(master, 1, 5)
        subscriber = fanout.subscribe(world.token, after(world.master_id, 0, 0))
        told = subscriber.of(world.master_id)
        await subscriber.until(lambda: told.held == (1, 5))
        wiped = dataclasses.replace(world.master_settings, outbox_folder=world.folder / "another outbox")
        async with Master(wiped) as master:
            await master.wait_open(timeout_seconds=WAIT_SECONDS)
            await send(master, 6, 3)
            await subscriber.until(lambda: told.held == (2, 8))
        (gap,) = told.gaps
        assert gap.reason == position_pb2.GAP_REASON_MASTER_LOST
        assert told.places == [*((1, n) for n in range(1, 6)), (2, 6), (2, 7), (2, 8)]
        await subscriber.__aexit__()


async def test_positions_of_strangers_change_nothing(world: World) -> None:
    other = await world.ledger.user()
    token = (await world.ledger.license(other)).token
    async with world.fanout() as fanout:
        request = pb.AcknowledgeRequest(positions=[position_pb2.MasterPosition(master_id=world.master_id)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fanout.stub.Acknowledge(request, metadata=metadata(token))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
