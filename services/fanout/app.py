"""The fan-out's composition root: what it is made of, in the order in which it starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from execution.ingest.v1 import ingest_service_pb2_grpc
from execution.ledger.v1 import (
    archive_service_pb2_grpc,
    license_service_pb2_grpc,
    subscription_service_pb2_grpc,
)
from services.common import admin, h2grpc, rpc, siblings, stream, tasks, tls
from services.common import log as signal_log
from services.common.clock import Clock, SystemClock
from services.common.log import SignalLog
from services.common.settings import Address
from services.common.stream import Redis
from services.fanout import limits, metrics
from services.fanout.acknowledgements import Acknowledgements
from services.fanout.backlog import Backlog
from services.fanout.catch_up import CatchUp
from services.fanout.delivery import Delivery, Needs
from services.fanout.domain import errors
from services.fanout.domain.index import LogIndex
from services.fanout.domain.intake import Intake
from services.fanout.domain.ring import Ring
from services.fanout.domain.stream import Turn
from services.fanout.entitlements import Changes, Entitlements, LedgerEvents
from services.fanout.front_door import FrontDoor, request_from_nobody
from services.fanout.full_syncs import FullSyncs
from services.fanout.hub import Hub
from services.fanout.live import LiveEntitlements
from services.fanout.opening import Opening
from services.fanout.recorder import Recorder
from services.fanout.servicer import ALLOWED, Calls, FanoutServicer, add_to_server
from services.fanout.settings import FanoutSettings
from services.fanout.shared_servicer import SharedFanoutServicer
from services.fanout.snapshots import Ask, Snapshots
from services.fanout.standing import Standing
from services.fanout.stream_tasks import StreamTasks
from services.fanout.tailer import Tailer
from services.fanout.tailers import Tailers

_log = logging.getLogger(__name__)

Server: TypeAlias = rpc.Server | h2grpc.Server


@dataclass(frozen=True, slots=True)
class Running:
    """A fan-out that answers."""

    port: int
    admin_port: int
    hub: Hub


@dataclass(frozen=True, slots=True)
class _Peers:
    """What lies outside."""

    client: Redis
    log: SignalLog
    ledger: grpc.aio.Channel
    ask: Ask


@dataclass(frozen=True, slots=True)
class _Reading:
    """What comes from the log, as it grows and from further back, and who is told."""

    hub: Hub
    backlog: Backlog
    catch_up: CatchUp
    snapshots: Snapshots
    tailers: Tailers


@dataclass(frozen=True, slots=True)
class _Readers:
    """What is known of subscribers, and told to the ledger."""

    entitlements: Entitlements
    live: LiveEntitlements
    recorder: Recorder
    standing: Standing
    tasks: StreamTasks


@dataclass(frozen=True, slots=True)
class _Parts:
    """What works in the background and what serves."""

    hub: Hub
    tailers: Tailers
    events: LedgerEvents
    live: LiveEntitlements
    recorder: Recorder
    acknowledgements: Acknowledgements
    servicer: FanoutServicer


@asynccontextmanager
async def running(settings: FanoutSettings) -> AsyncIterator[Running]:
    """Runs the fan-out until the block ends; streams are drained then.

    Redis and the ledger may come later: until the log was read, Subscribe answers UNAVAILABLE and health NOT_SERVING.

    Raises:
        ConfigurationError: a setting is missing, or an address cannot be bound.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(stream.connect(settings))
        log = await stack.enter_async_context(signal_log.connect(settings))
        ledger = await stack.enter_async_context(_channel(settings, settings.ledger_address))
        ask = await _front_door(stack, settings)
        parts = await _parts(stack, settings, _Peers(client, log, ledger, ask))
        readiness = admin.Readiness()
        readiness.add("log", lambda: parts.tailers.is_filled)
        readiness.add("redis", lambda: parts.tailers.is_connected, gates=False)
        readiness.add("ledger events", lambda: parts.events.is_connected, gates=False)
        served = await stack.enter_async_context(
            admin.serving(
                settings.admin_bind_address,
                readiness,
                tick_age_seconds_max=settings.health_tick_age_seconds_max,
            )
        )
        draining, drained = asyncio.Event(), asyncio.Event()
        await stack.enter_async_context(
            tasks.background(
                *parts.tailers.work(),
                parts.events.run(),
                parts.hub.tick_forever(),
                parts.live.refresh_forever(),
                parts.recorder.run(),
                parts.acknowledgements.follow(),
                parts.acknowledgements.tell_forever(),
                _drain(draining, drained, parts.hub),
            )
        )
        await stack.enter_async_context(_answering_siblings(settings, parts.servicer))
        if settings.shares_ports:
            await _warm_up(settings, parts)
        server = await stack.enter_async_context(_serving(settings, parts.servicer, draining, drained))
        await stack.enter_async_context(tasks.background(_announce(server, parts)))
        yield Running(server.port, served.port, parts.hub)


def _serving(
    settings: FanoutSettings, servicer: FanoutServicer, draining: asyncio.Event, drained: asyncio.Event
) -> AbstractAsyncContextManager[Server]:
    shared: Calls = servicer
    if settings.shares_ports:
        shared = SharedFanoutServicer(servicer, siblings.Siblings(settings))
    registrations = [rpc.registration(add_to_server, shared)]
    rules = rpc.authorizer(settings, ALLOWED)
    if settings.edge == "h2":
        return h2grpc.serving(
            settings,
            registrations,
            authorizer=rules,
            serving_at_once=False,
            draining=draining,
            drained=drained,
        )
    return rpc.serving(settings, registrations, authorizer=rules, serving_at_once=False, draining=draining)


def _answering_siblings(
    settings: FanoutSettings, servicer: FanoutServicer
) -> AbstractAsyncContextManager[None]:
    registration = rpc.registration(add_to_server, servicer)
    return siblings.answering(settings, [registration], authorizer=rpc.authorizer(settings, ALLOWED))


async def _drain(draining: asyncio.Event, drained: asyncio.Event, hub: Hub) -> None:
    """Ends the streams one after the other once the server begins to."""
    await draining.wait()
    await hub.drain()
    drained.set()


async def _announce(server: Server, parts: _Parts) -> None:
    """Tells health when streams can be opened."""
    await _until_ready(parts)
    await server.set_all_serving(True)


async def _until_ready(parts: _Parts) -> None:
    await parts.tailers.wait_filled()
    await parts.events.following.wait()


async def _warm_up(settings: FanoutSettings, parts: _Parts) -> None:
    """Lets the siblings have the new connections until streams can be opened here, but not for ever."""
    try:
        async with asyncio.timeout(settings.warm_up_seconds_max):
            await _until_ready(parts)
    except TimeoutError:
        _log.warning("the log is not read yet: streams are refused until it is")


async def _parts(stack: AsyncExitStack, settings: FanoutSettings, peers: _Peers) -> _Parts:
    clock = SystemClock()
    reading = await _reading(stack, settings, peers, clock)
    readers = await _readers(stack, settings, peers, reading, clock)
    hub, tailers = reading.hub, reading.tailers
    changes = Changes(
        readers.live.on_subscription,
        readers.live.on_license,
        readers.live.on_full_sync,
        readers.live.on_unsure,
    )
    events = LedgerEvents(peers.client, readers.entitlements, changes, block_ms=settings.tail_block_ms)
    acknowledgements = Acknowledgements(peers.client, hub, clock, limits.of_acknowledgement(settings))

    def on_turned(delivery: Delivery, turn: Turn) -> None:
        readers.recorder.turned(delivery.stream.reader.user_id, turn)

    servicer = FanoutServicer(
        hub=hub,
        ready=lambda: tailers.is_filled and events.following.is_set(),
        entitlements=readers.entitlements,
        live=readers.live,
        opening=Opening(peers.log, hub.ring, reading.backlog, clock, limits.of_stream(settings)),
        snapshots=reading.snapshots,
        recorder=readers.recorder,
        acknowledgements=acknowledgements,
        standing=readers.standing,
        tasks=readers.tasks,
        needs=Needs(page=reading.catch_up.fetch, turned=on_turned),
        clock=clock,
        lag_limits=limits.of_lag(settings),
    )
    return _Parts(hub, tailers, events, readers.live, readers.recorder, acknowledgements, servicer)


async def _reading(stack: AsyncExitStack, settings: FanoutSettings, peers: _Peers, clock: Clock) -> _Reading:
    log = peers.log
    ring = Ring(
        records_per_master_max=settings.ring_records_per_master_max,
        memory_bytes_max=settings.ring_memory_bytes_max,
    )
    indexes = [limits.new_index(settings) for _ in log.shards]
    intake = Intake(ring, tracked_positions_max=settings.tracked_positions_per_master_max)
    hub = Hub(ring, clock, limits.of_hub(settings))
    stack.enter_context(metrics.STATES.counting(hub.states))
    archive = archive_service_pb2_grpc.ArchiveServiceStub(peers.ledger)
    backlog = Backlog(log, indexes, archive, limits.of_backlog(settings))
    catch_up = CatchUp(backlog, clock, attempts_max=settings.backlog_attempts_max)
    snapshots = Snapshots(log, backlog, peers.ask, clock, limits.of_snapshot(settings))

    def on_replaced(shard: int) -> None:
        backlog.forget(shard)
        hub.end_following(lambda master_id: log.shard_of(master_id) == shard, errors.log_replaced())

    def tailer(shard: int, index: LogIndex) -> Tailer:
        pacing, tail_limits = limits.new_pacing(settings), limits.of_tail(settings)
        return Tailer(
            log,
            shard,
            intake,
            index,
            hub,
            pacing,
            tail_limits,
            on_snapshot=snapshots.stored,
            on_replaced=on_replaced,
        )

    return _Reading(
        hub,
        backlog,
        await stack.enter_async_context(catch_up),
        await stack.enter_async_context(snapshots),
        Tailers([tailer(shard, index) for shard, index in enumerate(indexes)]),
    )


async def _readers(
    stack: AsyncExitStack, settings: FanoutSettings, peers: _Peers, reading: _Reading, clock: Clock
) -> _Readers:
    licenses = license_service_pb2_grpc.LicenseServiceStub(peers.ledger)
    subscriptions = subscription_service_pb2_grpc.SubscriptionServiceStub(peers.ledger)
    entitlements = Entitlements(licenses, clock, limits.of_entitlement(settings))
    recorder = Recorder(subscriptions, limits.of_record(settings))
    stream_tasks = await stack.enter_async_context(StreamTasks())
    full_syncs = FullSyncs(
        reading.snapshots,
        stream_tasks,
        clock,
        retry_seconds_max=settings.full_sync_retry_seconds_max,
        on_done=recorder.full_sync_done,
    )
    live = LiveEntitlements(
        reading.hub,
        entitlements,
        full_syncs,
        clock,
        refresh_interval_seconds=settings.refresh_interval_seconds,
    )
    standing = Standing(
        subscriptions,
        full_syncs,
        stream_tasks,
        clock,
        calls_max=settings.standing_calls_max,
        retry_seconds_max=settings.standing_retry_seconds_max,
    )
    return _Readers(entitlements, live, recorder, standing, stream_tasks)


async def _front_door(stack: AsyncExitStack, settings: FanoutSettings) -> Ask:
    if settings.ingest_address is None:
        return request_from_nobody
    channel = await stack.enter_async_context(_channel(settings, settings.ingest_address))
    stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
    front_door = FrontDoor(stub, settings.ingest_address, processes_max=settings.ingest_processes_max)
    return front_door.request_snapshot


def _channel(settings: FanoutSettings, address: Address) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    return rpc.channel(
        address,
        token=settings.service_token.get_secret_value(),
        files=tls.client_files(settings),
        idempotent=[
            "execution.ledger.v1.LicenseService/Authenticate",
            "execution.ledger.v1.SubscriptionService/GetSubscription",
            "execution.ledger.v1.SubscriptionService/RecordPositions",
        ],
        call_timeout_seconds=settings.peer_call_timeout_seconds,
        message_bytes_max=settings.grpc_message_bytes_max,
    )
