"""The ledger's calls that the fan-out makes, on a real gRPC server, over dictionaries that a test can change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from execution.common.v1 import position_pb2, signal_pb2
from execution.ledger.v1 import archive_service_pb2 as archive_pb
from execution.ledger.v1 import (
    archive_service_pb2_grpc,
    events_pb2,
    license_service_pb2_grpc,
    subscription_service_pb2_grpc,
)
from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import subscription_service_pb2 as subscription_pb
from services.common import auth, rpc, settings, stream
from services.common.errors import (
    FailedPreconditionError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
)
from tests.integration.fanout.written_log import now_us

SERVICE_TOKEN = "service-token-of-the-tests"
OPERATOR_TOKEN = "operator-token-of-the-tests"


class LedgerSettings(settings.ServiceSettings):
    service_name = "ledger"


@dataclass
class Subscription:
    subscription_id: str
    master_id: int
    pause: int = license_pb.PAUSE_SCOPE_UNSPECIFIED
    version: int = 1
    cancelled: bool = False
    full_sync_asked: int = 0
    full_sync_done: int = 0

    @property
    def full_sync_due(self) -> int:
        return self.full_sync_asked if self.full_sync_asked > self.full_sync_done else 0


@dataclass
class User:
    user_id: str
    license_id: str
    expires_at_us: int
    revoked: bool = False
    subscriptions: dict[int, Subscription] = field(default_factory=dict)


@dataclass
class StandInLedger:
    """What the ledger knows. `redis` is where it announces changes."""

    redis: Redis
    port: int = 0
    users: dict[str, User] = field(default_factory=dict)
    """By license token."""
    archive: dict[int, list[archive_pb.ArchivedRecord]] = field(default_factory=dict)
    oldest: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Positions at or behind which the archive can be read; missing means from the first."""
    recorded: dict[tuple[str, int], list[subscription_pb.SubscriberPosition]] = field(default_factory=dict)
    authenticate_calls: int = 0
    is_away: bool = False
    """While it is set, no license is looked up."""
    subscriptions_away: int = 0
    """So many look-ups of a subscription fail."""
    subscription_calls: int = 0
    archive_open: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, reads of the archive wait."""
    archive_reads: int = 0
    """Under way now."""
    archive_reads_max: int = 0
    """The most at once so far."""
    _event_id: int = 0
    _recorded: asyncio.Event = field(default_factory=asyncio.Event)

    async def next_record(self) -> None:
        """Waits until positions are recorded."""
        self._recorded.clear()
        await self._recorded.wait()

    def record(self, positions: Iterable[subscription_pb.SubscriberPosition]) -> None:
        for one in positions:
            self.recorded.setdefault((one.user_id, one.master_id), []).append(one)
            for user in self.users.values():
                if user.user_id == one.user_id and one.master_id in user.subscriptions:
                    subscription = user.subscriptions[one.master_id]
                    subscription.full_sync_done = max(subscription.full_sync_done, one.full_sync_done)
        self._recorded.set()

    def add_user(self, token: str, *master_ids: int, lifetime_us: int = 3_600_000_000) -> User:
        number = len(self.users) + 1
        user = User(f"user-{number}", f"license-{number}", now_us() + lifetime_us)
        for master_id in master_ids:
            user.subscriptions[master_id] = Subscription(f"subscription-{number}-{master_id}", master_id)
        self.users[token] = user
        return user

    def sync_state(self, user_id: str, master_id: int) -> subscription_pb.SyncState.ValueType:
        """What was recorded last."""
        states = [one.sync_state for one in self.recorded.get((user_id, master_id), []) if one.sync_state]
        return states[-1] if states else subscription_pb.SYNC_STATE_UNSPECIFIED

    def transitions(self, user: User, master_id: int) -> list[subscription_pb.SyncState.ValueType]:
        """Every sync state that was recorded, oldest first."""
        positions = self.recorded.get((user.user_id, master_id), [])
        return [turn.sync_state for one in positions for turn in one.transitions]

    def archive_signals(self, master_id: int, first: int, last: int, *, epoch: int = 1) -> None:
        for sequence in range(first, last + 1):
            sequenced = signal_pb2.SequencedSignal(
                master_id=master_id,
                epoch=epoch,
                sequence=sequence,
                previous_epoch=epoch,
                previous_sequence=sequence - 1,
                signal=signal_pb2.Signal(
                    kind=signal_pb2.SIGNAL_KIND_OPEN, position_id=sequence, symbol="EURUSD"
                ),
                received_at_us=now_us(),
            )
            self.archive.setdefault(master_id, []).append(archive_pb.ArchivedRecord(signal=sequenced))

    def archive_gap(
        self, master_id: int, first: tuple[int, int], last: tuple[int, int], resume: tuple[int, int]
    ) -> None:
        gap = archive_pb.ArchivedGap(
            master_id=master_id,
            to=position_pb2.StreamPosition(epoch=last[0], sequence=last[1]),
            reason=position_pb2.GAP_REASON_REJECTED
            if resume[0] == last[0]
            else position_pb2.GAP_REASON_LOG_LOST,
            resume_after=position_pb2.StreamPosition(epoch=resume[0], sequence=resume[1]),
        )
        getattr(gap, "from").CopyFrom(position_pb2.StreamPosition(epoch=first[0], sequence=first[1]))
        self.archive.setdefault(master_id, []).append(archive_pb.ArchivedRecord(gap=gap))

    async def pause(self, user: User, master_id: int, scope: license_pb.PauseScope.ValueType) -> None:
        subscription = user.subscriptions[master_id]
        subscription.pause = scope
        subscription.version += 1
        await self._announce_subscription(user, subscription)

    async def cancel(self, user: User, master_id: int) -> None:
        subscription = user.subscriptions.pop(master_id)
        subscription.cancelled = True
        subscription.version += 1
        await self._announce_subscription(user, subscription)

    async def subscribe(self, user: User, master_id: int, subscription_id: str) -> None:
        user.subscriptions[master_id] = Subscription(subscription_id, master_id)
        await self._announce_subscription(user, user.subscriptions[master_id])

    async def ask_for_full_sync(self, user: User, master_id: int, *, announced: bool = True) -> None:
        subscription = user.subscriptions[master_id]
        subscription.full_sync_asked += 1
        if announced:
            asked = events_pb2.FullSyncRequested(
                subscription_id=subscription.subscription_id,
                user_id=user.user_id,
                master_id=master_id,
                full_sync=subscription.full_sync_asked,
                reason="a test",
            )
            await self._announce(events_pb2.LedgerEvent(full_sync_requested=asked))

    async def revoke(self, user: User) -> None:
        user.revoked = True
        await self._announce_license(user)

    async def expire_at(self, user: User, expires_at_us: int) -> None:
        user.expires_at_us = expires_at_us
        await self._announce_license(user)

    async def _announce_subscription(self, user: User, subscription: Subscription) -> None:
        changed = events_pb2.SubscriptionChanged(
            subscription_id=subscription.subscription_id,
            user_id=user.user_id,
            master_id=subscription.master_id,
            pause=subscription.pause,
            cancelled=subscription.cancelled,
            version=subscription.version,
            reason="a test",
        )
        await self._announce(events_pb2.LedgerEvent(subscription_changed=changed))

    async def _announce_license(self, user: User) -> None:
        changed = events_pb2.LicenseChanged(
            license_id=user.license_id, user_id=user.user_id, revoked=user.revoked
        )
        changed.expires_at.FromMicroseconds(user.expires_at_us)
        await self._announce(events_pb2.LedgerEvent(license_changed=changed))

    async def _announce(self, event: events_pb2.LedgerEvent) -> None:
        self._event_id += 1
        event.event_id = self._event_id
        await self.redis.xadd(stream.LEDGER_EVENTS, {stream.FIELD: event.SerializeToString()})


class Licenses(license_service_pb2_grpc.LicenseServiceServicer):
    def __init__(self, ledger: StandInLedger) -> None:
        self._ledger = ledger

    async def Authenticate(
        self, request: license_pb.AuthenticateRequest, context: rpc.Context
    ) -> license_pb.AuthenticateResponse:
        self._ledger.authenticate_calls += 1
        if self._ledger.is_away:
            raise UnavailableError("the database is away")
        user = self._ledger.users.get(request.token)
        if user is None:
            raise NotFoundError("no such license")
        if user.revoked:
            raise FailedPreconditionError("the license was revoked", reason="LICENSE_REVOKED")
        if now_us() >= user.expires_at_us:
            raise FailedPreconditionError("the license has expired", reason="LICENSE_EXPIRED")
        response = license_pb.AuthenticateResponse(user_id=user.user_id, license_id=user.license_id)
        response.expires_at.FromMicroseconds(user.expires_at_us)
        for subscription in user.subscriptions.values():
            response.entitlements.add(
                subscription_id=subscription.subscription_id,
                master_id=subscription.master_id,
                pause=subscription.pause,
                version=subscription.version,
                full_sync_due=subscription.full_sync_due,
            )
        return response


class Subscriptions(subscription_service_pb2_grpc.SubscriptionServiceServicer):
    def __init__(self, ledger: StandInLedger) -> None:
        self._ledger = ledger

    async def GetSubscription(
        self, request: subscription_pb.GetSubscriptionRequest, context: rpc.Context
    ) -> subscription_pb.GetSubscriptionResponse:
        self._ledger.subscription_calls += 1
        if self._ledger.subscriptions_away > 0:
            self._ledger.subscriptions_away -= 1
            raise UnavailableError("the database is away")
        for user in self._ledger.users.values():
            for one in user.subscriptions.values():
                if one.subscription_id == request.subscription_id:
                    return subscription_pb.GetSubscriptionResponse(
                        subscription=subscription_pb.Subscription(
                            subscription_id=one.subscription_id,
                            user_id=user.user_id,
                            master_id=one.master_id,
                            sync_state=self._ledger.sync_state(user.user_id, one.master_id),
                            sync_reason="a test",
                            full_sync_due=one.full_sync_due,
                        )
                    )
        raise NotFoundError("no such subscription")

    async def RecordPositions(
        self, request: subscription_pb.RecordPositionsRequest, context: rpc.Context
    ) -> subscription_pb.RecordPositionsResponse:
        self._ledger.record(request.positions)
        return subscription_pb.RecordPositionsResponse(recorded=len(request.positions))


class Archive(archive_service_pb2_grpc.ArchiveServiceServicer):
    def __init__(self, ledger: StandInLedger) -> None:
        self._ledger = ledger

    async def ReadSignals(
        self, request: archive_pb.ReadSignalsRequest, context: rpc.Context
    ) -> AsyncIterator[archive_pb.ReadSignalsResponse]:
        ledger = self._ledger
        ledger.archive_reads += 1
        ledger.archive_reads_max = max(ledger.archive_reads_max, ledger.archive_reads)
        try:
            await ledger.archive_open.wait()
        finally:
            ledger.archive_reads -= 1
        after = (request.after.epoch, request.after.sequence)
        oldest = self._ledger.oldest.get(request.master_id, (0, 0))
        if after < oldest:
            raise OutOfRangeError("older than the archive", metadata={"oldest": f"{oldest[0]}:{oldest[1]}"})
        left = request.records_max or 10_000
        records = [r for r in self._ledger.archive.get(request.master_id, []) if _place(r) > after][:left]
        for start in range(0, len(records), 1_000):
            yield archive_pb.ReadSignalsResponse(records=records[start : start + 1_000])


def _place(record: archive_pb.ArchivedRecord) -> tuple[int, int]:
    if record.HasField("gap"):
        position: position_pb2.StreamPosition = record.gap.resume_after
        return position.epoch, position.sequence
    return record.signal.epoch, record.signal.sequence


@asynccontextmanager
async def standing_in(redis: Redis) -> AsyncIterator[StandInLedger]:
    """The stand-in on a port of its own."""
    ledger = StandInLedger(redis)
    ledger.archive_open.set()
    loaded = settings.load(
        LedgerSettings,
        grpc_bind_address="127.0.0.1:0",
        service_token=SERVICE_TOKEN,
        operator_token=OPERATOR_TOKEN,
        drain_grace_seconds=0.2,
    )
    registrations = [
        rpc.registration(license_service_pb2_grpc.add_LicenseServiceServicer_to_server, Licenses(ledger)),
        rpc.registration(
            subscription_service_pb2_grpc.add_SubscriptionServiceServicer_to_server, Subscriptions(ledger)
        ),
        rpc.registration(archive_service_pb2_grpc.add_ArchiveServiceServicer_to_server, Archive(ledger)),
    ]
    rules = auth.Authorizer(service_token=SERVICE_TOKEN)
    async with rpc.serving(loaded, registrations, authorizer=rules) as server:
        ledger.port = server.port
        yield ledger


__all__ = ["OPERATOR_TOKEN", "SERVICE_TOKEN", "StandInLedger", "User", "standing_in"]
