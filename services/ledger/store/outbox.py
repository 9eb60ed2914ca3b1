"""Events that wait for their publication: written with the change, numbered and forgotten by the one publisher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from execution.ledger.v1 import events_pb2, license_service_pb2
from services.common import pg, sql
from services.ledger.domain import events

CHANNEL: Final = "ledger_outbox"
"""The channel on which PostgreSQL tells listeners, at commit, that something was added."""


@dataclass(frozen=True, slots=True)
class _Queries:
    add: str
    number: str
    oldest: str
    forget: str
    backlog: str


_queries = sql.bind(_Queries, __package__ or "", "outbox.sql")


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event with its number, to be published."""

    event_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many events wait, and how old the oldest is."""

    events: int
    age_seconds: float


async def add(connection: pg.Connection, changes: Iterable[events.LedgerEvent]) -> None:
    """Writes the events into the transaction of `connection`; its commit wakes the publisher."""
    payloads = [_event_to_pb(change).SerializeToString() for change in changes]
    if payloads:
        await connection.fetchrow(_queries.add, payloads)


class OutboxStore:
    """The publisher's side; one publisher at a time, which its caller sees to."""

    def __init__(self, pool: pg.Pool) -> None:
        self._pool = pool

    async def number_new(self, *, count: int) -> None:
        """Gives the next event_ids to at most `count` new events, in the order in which they were written.

        Commits before they can be published, so a repeat publishes under the same event_id.
        """
        await self._pool.execute(_queries.number, count)

    async def oldest(self, *, count: int) -> tuple[Waiting, ...]:
        """The oldest numbered events, in order, as the complete bytes to publish."""
        rows = await self._pool.fetch(_queries.oldest, count)
        return tuple(
            Waiting(row["event_id"], _complete(row["event_id"], row["created_at"], row["payload"]))
            for row in rows
        )

    async def forget(self, up_to: int) -> None:
        """Deletes the numbered events up to this event_id: they are published."""
        await self._pool.execute(_queries.forget, up_to)

    async def backlog(self) -> Backlog:
        """What waits now."""
        row = await self._pool.fetchrow(_queries.backlog)
        assert row is not None
        return Backlog(row["events"], row["age_seconds"])


def _complete(event_id: int, created_at: datetime, payload: bytes) -> bytes:
    # Serialized messages that are concatenated are merged, so the stored bytes stay as they are.
    head = events_pb2.LedgerEvent(event_id=event_id)
    head.occurred_at.FromDatetime(created_at)
    return head.SerializeToString() + payload


def _event_to_pb(change: events.LedgerEvent) -> events_pb2.LedgerEvent:
    message = events_pb2.LedgerEvent()
    match change:
        case events.SubscriptionChanged():
            _fill_subscription(message.subscription_changed, change)
        case events.LicenseChanged():
            message.license_changed.license_id = str(change.license_id)
            message.license_changed.user_id = str(change.user_id)
            message.license_changed.revoked = change.revoked
            message.license_changed.expires_at.FromDatetime(change.expires_at)
        case events.SigningKeyChanged():
            message.signing_key_changed.master_id = change.master_id
            message.signing_key_changed.key_id = change.key_id
            message.signing_key_changed.revoked = change.revoked
            if change.expires_at is not None:
                message.signing_key_changed.expires_at.FromDatetime(change.expires_at)
        case events.TrustChanged():
            message.trust_changed.user_id = str(change.user_id)
            message.trust_changed.trust_score = change.trust_score
            message.trust_changed.version = change.version
        case events.FullSyncRequested():
            _fill_full_sync(message.full_sync_requested, change)
    return message


def _fill_subscription(message: events_pb2.SubscriptionChanged, change: events.SubscriptionChanged) -> None:
    subscription = change.subscription
    message.subscription_id = str(subscription.subscription_id)
    message.user_id = str(subscription.user_id)
    message.master_id = subscription.master_id
    message.pause = license_service_pb2.PauseScope.ValueType(subscription.pause.scope)
    message.cancelled = subscription.cancelled_at is not None
    message.version = subscription.version
    message.reason = change.reason


def _fill_full_sync(message: events_pb2.FullSyncRequested, change: events.FullSyncRequested) -> None:
    message.subscription_id = str(change.subscription_id)
    message.user_id = str(change.user_id)
    message.master_id = change.master_id
    message.full_sync = change.full_sync
    message.reason = change.reason
