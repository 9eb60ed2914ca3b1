"""What changes at the ledger reaches live streams, and what befalls streams reaches the ledger, on real peers.

How long that took is printed and judged by nobody: the promise is a second, the machine under a test is not ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from ecp_client.books import Book
from ecp_client.clock import wall_us
from ecp_client.copying import CopySettings
from ecp_client.disk import FsyncPolicy
from ecp_client.master import Master
from ecp_client.subscriber import Resynced, Subscriber, SubscriberEvent, SubscriberSettings
from ecp_client.subscriber.journal import JournalSettings, read_journal
from ecp_client.subscriber.journal_format import EntryType
from execution.common.v1 import signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2
from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from tests.integration.fanout.fanout_service import Fanout, from_now, from_snapshot
from tests.integration.fanout.real_peers import WAIT_SECONDS, World, opening, send

UNKNOWN, SYNCED, DEGRADED, RESYNCING = (
    ledger_pb.SYNC_STATE_UNSPECIFIED,
    ledger_pb.SYNC_STATE_SYNCED,
    ledger_pb.SYNC_STATE_DEGRADED_GAP,
    ledger_pb.SYNC_STATE_RESYNCING,
)


async def measured(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for it, and prints how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(WAIT_SECONDS):
        while not await condition():  # noqa: ASYNC110  # only the ledger knows
            await asyncio.sleep(0.01)
    print(f"{what}: {(time.monotonic() - began) * 1_000:.0f} ms")


async def transitions(world: World) -> list[tuple[int, int, str]]:
    """What the ledger tells operators of the sync state, oldest first; each not before the one before."""
    request = ledger_pb.ListTransitionsRequest(subscription_id=world.subscription_id)
    answer = await world.ledger.call("SubscriptionService/ListTransitions", request)
    found = [one for one in reversed(answer.transitions) if one.kind == ledger_pb.TRANSITION_KIND_SYNC]
    times = [one.changed_at.ToMicroseconds() for one in found]
    assert times == sorted(times)
    return [(one.sync_before, one.sync_after, one.reason) for one in found]


@asynccontextmanager
async def following(world: World, fanout: Fanout, events: list[SubscriberEvent]) -> AsyncIterator[Subscriber]:
    settings = SubscriberSettings(
        addresses=[fanout.target],
        license_token=world.token,
        plaintext=True,
        masters={world.master_id: CopySettings()},
        journal_folder=world.folder / "journal",
        journal=JournalSettings(fsync=FsyncPolicy.NEVER),
        full_sync_seconds_min=0.1,
    )
    async with Subscriber(settings, on_event=events.append) as subscriber:
        yield subscriber


async def is_synced(world: World) -> bool:
    """Whether the ledger says so."""
    return (await world.subscription()).sync_state == SYNCED


@asynccontextmanager
async def in_step(
    world: World, signals: int
) -> AsyncIterator[tuple[Master, Subscriber, list[SubscriberEvent]]]:
    """A master and its subscriber, who has so many signals and is in step by the ledger; and what it is told."""
    events: list[SubscriberEvent] = []
    book = Book(signal_pb2.ACCOUNT_MODE_HEDGING)
    async with (
        world.fanout() as fanout,
        Master(world.master_settings, book=book) as master,
        following(world, fanout, events) as subscriber,
    ):
        await master.wait_open(timeout_seconds=WAIT_SECONDS)
        await send(master, 1, signals)
        await subscriber.wait_position(world.master_id, signals, timeout_seconds=WAIT_SECONDS)
        await measured("in step after the first full sync", lambda: is_synced(world))
        yield master, subscriber, events


async def test_a_gap_is_in_the_ledger_and_so_is_the_full_sync_that_heals_it(world: World) -> None:
    async with in_step(world, 3) as (master, subscriber, _):
        before = len(await transitions(world))

        # Too old to be taken: the front door refuses it, and the master declares the hole.
        stale = opening(4)
        stale.occurred_at_us = wall_us() - 3_600_000_000
        master.put_many([stale])

        async def is_degraded() -> bool:
            return any(after == DEGRADED for _, after, _ in (await transitions(world))[before:])

        await measured("a gap until DEGRADED_GAP is in the ledger", is_degraded)
        await send(master, 5, 2)
        await subscriber.wait_position(world.master_id, 6, timeout_seconds=WAIT_SECONDS)
        await measured("until SYNCED is", lambda: is_synced(world))
        turns = (await transitions(world))[before:]
        assert [(old, new) for old, new, _ in turns][:3] == [
            (SYNCED, DEGRADED),
            (DEGRADED, RESYNCING),
            (RESYNCING, SYNCED),
        ]
        assert all(reason for _, _, reason in turns)


async def test_a_full_sync_that_an_operator_asks_for_reaches_the_subscribers_client(world: World) -> None:
    async with in_step(world, 5) as (master, subscriber, events):
        streams, syncs = subscriber.stats.streams, subscriber.stats.full_syncs
        request = ledger_pb.RequestFullSyncRequest(user_id=(await world.subscription()).user_id, reason="x")
        await world.ledger.call("SubscriptionService/RequestFullSync", request)

        async def is_done() -> bool:
            now = await world.subscription()
            return now.full_sync_due == 0 and now.sync_state == SYNCED

        await measured("a full sync that was asked for", is_done)

        async def has_synced() -> bool:
            return subscriber.stats.full_syncs > syncs

        await measured("until the client has it", has_synced)
        await send(master, 6, 2)
        await subscriber.wait_position(world.master_id, 7, timeout_seconds=WAIT_SECONDS)
        # In the midst of the stream that there was.
        assert subscriber.stats.streams == streams
        assert isinstance([one for one in events if isinstance(one, Resynced)][-1], Resynced)
    entries = [one for one in read_journal(world.folder / "journal") if one.entry_type is EntryType.SIGNAL]
    sequences = [one.position.sequence for one in entries]
    assert sequences == sorted(set(sequences))
    assert sequences[-2:] == [6, 7]
    asked = "a full sync was asked for: x"
    found = await transitions(world)
    assert found[-2:] == [(SYNCED, RESYNCING, asked), (RESYNCING, SYNCED, "the full sync is complete")]


async def test_the_pause_of_risk_the_end_of_a_subscription_and_of_a_license_reach_live_streams(
    world: World,
) -> None:
    follower = (await world.subscription()).user_id
    async with (
        world.fanout() as fanout,
        fanout.subscribe(world.token, from_now(world.master_id)) as subscriber,
    ):
        await subscriber.begun()
        told = subscriber.of(world.master_id)
        trust = ledger_pb.ApplyTrustRequest(
            user_id=follower,
            trust_score=20,
            version=1,
            pause=license_service_pb2.PAUSE_SCOPE_ALL,
            reason="cheats",
        )
        await world.ledger.call("SubscriptionService/ApplyTrust", trust)

        async def is_paused() -> bool:
            return pb.SUBSCRIPTION_STATE_PAUSED_ALL in told.states

        await measured("risk's pause", is_paused)
        cancel = ledger_pb.CancelSubscriptionRequest(subscription_id=world.subscription_id, reason="left")
        await world.ledger.call("SubscriptionService/CancelSubscription", cancel)
        began = time.monotonic()
        error = await subscriber.ended()
        print(f"the end of a subscription: {(time.monotonic() - began) * 1_000:.0f} ms")
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert told.states[-1] == pb.SUBSCRIPTION_STATE_CANCELLED


async def test_a_revoked_license_ends_every_stream_of_it(world: World) -> None:
    async with Master(world.master_settings) as master, world.fanout(snapshot_wait_seconds=60) as fanout:
        await master.wait_open(timeout_seconds=WAIT_SECONDS)
        # One that waits for a snapshot that never comes, too.
        subscribers = [
            fanout.subscribe(world.token, start(world.master_id))
            for start in (from_now, from_now, from_snapshot)
        ]
        for one in subscribers:
            await one.begun()
        revoke = license_service_pb2.RevokeLicenseRequest(license_id=world.license_id, reason="lost")
        await world.ledger.call("LicenseService/RevokeLicense", revoke)
        began = time.monotonic()
        for one in subscribers:
            assert (await one.ended()).code() is grpc.StatusCode.UNAUTHENTICATED
        print(f"the end of a license, for three streams: {(time.monotonic() - began) * 1_000:.0f} ms")


async def test_one_whose_full_sync_the_ledger_never_heard_of_comes_to_be_in_step_there_too(
    world: World,
) -> None:
    """As after the SIGKILL of a process that told the full sync, and had yet to record that it did."""
    async with in_step(world, 3) as (master, subscriber, _):
        syncs = subscriber.stats.full_syncs
        gap = ledger_pb.SyncTransition(sync_state=DEGRADED, reason="a hole that was healed since")
        position = ledger_pb.SubscriberPosition(
            user_id=(await world.subscription()).user_id, master_id=world.master_id, transitions=[gap]
        )
        request = ledger_pb.RecordPositionsRequest(positions=[position])
        await world.ledger.call("SubscriptionService/RecordPositions", request)
        assert not await is_synced(world)
        subscriber.disconnect()
        await measured("in step again, by the ledger", lambda: is_synced(world))
        assert subscriber.stats.full_syncs == syncs + 1
        await send(master, 4, 2)
        await subscriber.wait_position(world.master_id, 5, timeout_seconds=WAIT_SECONDS)
        assert await is_synced(world)
    entries = [one for one in read_journal(world.folder / "journal") if one.entry_type is EntryType.SIGNAL]
    assert [one.position.sequence for one in entries][-2:] == [4, 5]
