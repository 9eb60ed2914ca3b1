"""The fan-out's composition root: what it is made of, in the order in which it starts."""

from __future__ import annotations

import asyncio
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
from services.common.clock import SystemClock
from services.common.log import SignalLog
from services.common.settings import Address
from services.common.stream import Redis
from services.fanout.acknowledgements import AcknowledgementLimits, Acknowledgements
from services.fanout.backlog import Backlog, BacklogLimits
from services.fanout.catch_up import CatchUp
from services.fanout.delivery import Delivery, Needs
from services.fanout.domain import errors
from services.fanout.domain.index import LogIndex
from services.fanout.domain.intake import Intake
from services.fanout.domain.lag import LagLimits
from services.fanout.domain.pacing import Pacing
from services.fanout.domain.ring import Ring
from services.fanout.domain.stream import StreamLimits, Turn
from services.fanout.entitlements import Changes, EntitlementLimits, Entitlements, LedgerEvents
from services.fanout.front_door import FrontDoor, request_from_nobody
from services.fanout.full_syncs import FullSyncs
from services.fanout.hub import Hub, HubLimits
from services.fanout.live import LiveEntitlements
from services.fanout.opening import Opening
from services.fanout.recorder import Recorder, RecordLimits
from services.fanout.servicer import ALLOWED, Calls, FanoutServicer, add_to_server
from services.fanout.settings import FanoutSettings
from services.fanout.shared_servicer import SharedFanoutServicer
from services.fanout.snapshots import Ask, SnapshotLimits, Snapshots
from services.fanout.standing import Standing
from services.fanout.stream_tasks import StreamTasks
from services.fanout.tailer import Tailer, TailLimits
from services.fanout.tailers import Tailers

Server: TypeAlias = rpc.Server | h2grpc.Server


@dataclass(frozen=True, slots=True)
class Running:
    """A fan-out that answers."""

    port: int
    admin_port: int
    hub: Hub


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
        parts = await _parts(stack, settings, client, log, ledger, ask)
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
    await parts.tailers.wait_filled()
    await parts.events.following.wait()
    await server.set_all_serving(True)


async def _parts(
    stack: AsyncExitStack,
    settings: FanoutSettings,
    client: Redis,
    log: SignalLog,
    ledger: grpc.aio.Channel,
    ask: Ask,
) -> _Parts:
    clock = SystemClock()
    ring = Ring(
        records_per_master_max=settings.ring_records_per_master_max,
        memory_bytes_max=settings.ring_memory_bytes_max,
    )
    indexes = [_index(settings) for _ in log.shards]
    intake = Intake(ring, tracked_positions_max=settings.tracked_positions_per_master_max)
    hub = Hub(ring, clock, _hub_limits(settings))
    backlog = Backlog(
        log, indexes, archive_service_pb2_grpc.ArchiveServiceStub(ledger), _backlog_limits(settings)
    )
    catch_up = await stack.enter_async_context(
        CatchUp(backlog, clock, attempts_max=settings.backlog_attempts_max)
    )
    snapshots = await stack.enter_async_context(
        Snapshots(log, backlog, ask, clock, _snapshot_limits(settings))
    )
    entitlements = Entitlements(
        license_service_pb2_grpc.LicenseServiceStub(ledger), clock, _entitlement_limits(settings)
    )
    subscriptions = subscription_service_pb2_grpc.SubscriptionServiceStub(ledger)
    recorder = Recorder(subscriptions, _record_limits(settings))
    stream_tasks = await stack.enter_async_context(StreamTasks())
    full_syncs = FullSyncs(
        snapshots,
        stream_tasks,
        clock,
        retry_seconds_max=settings.full_sync_retry_seconds_max,
        on_done=recorder.full_sync_done,
    )
    live = LiveEntitlements(
        hub, entitlements, full_syncs, clock, refresh_interval_seconds=settings.refresh_interval_seconds
    )
    standing = Standing(
        subscriptions,
        full_syncs,
        stream_tasks,
        clock,
        calls_max=settings.standing_calls_max,
        retry_seconds_max=settings.standing_retry_seconds_max,
    )

    def on_replaced(shard: int) -> None:
        backlog.forget(shard)
        hub.end_following(lambda master_id: log.shard_of(master_id) == shard, errors.log_replaced())

    def on_turned(delivery: Delivery, turn: Turn) -> None:
        recorder.turned(delivery.stream.reader.user_id, turn)

    tailers = Tailers(
        [
            Tailer(
                log,
                shard,
                intake,
                index,
                hub,
                _pacing(settings),
                _tail_limits(settings),
                on_snapshot=snapshots.stored,
                on_replaced=on_replaced,
            )
            for shard, index in enumerate(indexes)
        ]
    )
    changes = Changes(live.on_subscription, live.on_license, live.on_full_sync, live.on_unsure)
    events = LedgerEvents(client, entitlements, changes, block_ms=settings.tail_block_ms)
    acknowledgements = Acknowledgements(client, hub, clock, _acknowledgement_limits(settings))
    servicer = FanoutServicer(
        hub=hub,
        ready=lambda: tailers.is_filled and events.following.is_set(),
        entitlements=entitlements,
        live=live,
        opening=Opening(log, ring, backlog, clock, _stream_limits(settings)),
        snapshots=snapshots,
        recorder=recorder,
        acknowledgements=acknowledgements,
        standing=standing,
        tasks=stream_tasks,
        needs=Needs(page=catch_up.fetch, turned=on_turned),
        clock=clock,
        lag_limits=_lag_limits(settings),
    )
    return _Parts(hub, tailers, events, live, recorder, acknowledgements, servicer)


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


def _hub_limits(settings: FanoutSettings) -> HubLimits:
    return HubLimits(
        streams_max=settings.streams_max,
        streams_per_user_max=settings.streams_per_user_max,
        stream_age_seconds_max=settings.stream_age_seconds_max,
        progress_interval_seconds=settings.progress_interval_seconds,
        # The second half of the grace is for those that end slowly.
        drain_jitter_seconds=min(settings.drain_jitter_seconds, settings.drain_grace_seconds / 2),
        messages=_stream_limits(settings),
        first_stream_id=settings.first_stream_id,
    )


def _stream_limits(settings: FanoutSettings) -> StreamLimits:
    return StreamLimits(
        message_bytes_max=settings.message_bytes_max,
        message_signals_max=settings.message_signals_max,
        progress_interval_seconds=settings.progress_interval_seconds,
    )


def _lag_limits(settings: FanoutSettings) -> LagLimits:
    return LagLimits(
        signals_max=settings.lag_signals_max,
        bytes_max=settings.lag_bytes_max,
        seconds_max=settings.lag_seconds_max,
        catch_up_seconds_max=settings.catch_up_seconds_max,
        unacknowledged_seconds_max=settings.unacknowledged_seconds_max,
    )


def _index(settings: FanoutSettings) -> LogIndex:
    return LogIndex(
        marks_max=max(1, settings.index_marks_max // settings.log_shards),
        block_entries=settings.index_block_entries,
    )


def _pacing(settings: FanoutSettings) -> Pacing:
    # The load of all shards together is what counts.
    return Pacing(
        load_max=settings.load_max / settings.log_shards,
        delay_seconds_max=settings.coalescing_delay_seconds_max,
    )


def _tail_limits(settings: FanoutSettings) -> TailLimits:
    return TailLimits(
        fill_entries_max=settings.fill_entries_max // settings.log_shards,
        fill_bytes_max=settings.fill_bytes_max // settings.log_shards,
        block_ms=settings.tail_block_ms,
        entries_max=settings.tail_entries_max,
        masters_max=settings.ring_masters_max,
        audit_interval_seconds=settings.audit_interval_seconds,
    )


def _backlog_limits(settings: FanoutSettings) -> BacklogLimits:
    return BacklogLimits(
        walk_entries_max=settings.walk_entries_max,
        page_records_max=settings.page_records_max,
        pages_cached_max=settings.pages_cached_max,
        reads_max=settings.backlog_reads_max,
        timeout_seconds=settings.backlog_timeout_seconds,
    )


def _snapshot_limits(settings: FanoutSettings) -> SnapshotLimits:
    return SnapshotLimits(
        wait_seconds=settings.snapshot_wait_seconds,
        poll_seconds=settings.snapshot_poll_seconds,
        waits_max=settings.snapshot_waits_max,
    )


def _entitlement_limits(settings: FanoutSettings) -> EntitlementLimits:
    return EntitlementLimits(
        cached_max=settings.authenticate_cached_max,
        cached_seconds=settings.authenticate_cached_seconds,
        refused_seconds=settings.authenticate_refused_seconds,
        calls_max=settings.authenticate_calls_max,
        recent_max=settings.recent_changes_max,
    )


def _record_limits(settings: FanoutSettings) -> RecordLimits:
    return RecordLimits(
        interval_seconds=settings.record_interval_seconds,
        batch_max=settings.record_batch_max,
        pending_max=settings.record_pending_max,
        transitions_max=settings.record_transitions_max,
        timeout_seconds=settings.peer_call_timeout_seconds,
    )


def _acknowledgement_limits(settings: FanoutSettings) -> AcknowledgementLimits:
    return AcknowledgementLimits(
        interval_seconds=settings.record_interval_seconds,
        batch_max=settings.acknowledge_batch_max,
        pending_max=settings.record_pending_max,
        entries_max=settings.acknowledge_entries_max,
        block_ms=settings.tail_block_ms,
    )
