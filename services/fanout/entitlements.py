"""Who may read what: licenses looked up at the ledger, and changes carried to live streams as they are announced."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import DecodeError

from execution.ledger.v1 import events_pb2, license_service_pb2, license_service_pb2_grpc
from services.common import rpc, stream, tail
from services.common.backoff import Backoff
from services.common.clock import Clock
from services.common.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    ServiceError,
    UnauthenticatedError,
    UnavailableError,
)
from services.common.stream import EntryId, Redis
from services.fanout import metrics
from services.fanout.domain import errors
from services.fanout.domain.filter import Pause

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entitlement:
    """One master that a user may read."""

    subscription_id: str
    master_id: int
    pause: Pause
    version: int
    cancelled: bool = False
    reason: str = ""
    full_sync_due: int = 0
    """Number of a full sync that was asked for and, when that was heard, not done; announcements of others say 0."""

    def is_newer_than(self, other: Entitlement) -> bool:
        """Whether this state of the user's subscription to the master came after `other`, or is the same."""
        if self.subscription_id == other.subscription_id:
            return self.version >= other.version
        # Of two subscriptions to one master, the first was cancelled before the second was made.
        return other.cancelled


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token stands for, and what that user follows."""

    user_id: str
    license_id: str
    expires_at_us: int
    entitlements: dict[int, Entitlement] = field(default_factory=dict)
    asked_at: float = 0.0
    """When the ledger was asked, in monotonic seconds: it answered with everything that was announced before."""


@dataclass(frozen=True, slots=True)
class EntitlementLimits:
    """How much is remembered, for how long, and how many calls are under way at once."""

    cached_max: int
    cached_seconds: float
    refused_seconds: float
    calls_max: int
    recent_max: int


@dataclass(frozen=True, slots=True)
class FullSyncAsked:
    """Somebody asked for a full sync of a subscription's streams."""

    user_id: str
    subscription_id: str
    master_id: int
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Who is told of changes."""

    subscription: Callable[[str, Entitlement], None]
    """(user_id, the subscription's new state)"""
    license: Callable[[str, str, bool, int], None]
    """(user_id, license_id, revoked, expires_at_us)"""
    full_sync: Callable[[FullSyncAsked], None]
    unsure: Callable[[], None]
    """Changes may have been missed."""


class Entitlements:
    """Looks tokens up, few at a time, each once for all who ask, and keeps what it learns up to date."""

    def __init__(
        self,
        licenses: license_service_pb2_grpc.LicenseServiceAsyncStub,
        clock: Clock,
        limits: EntitlementLimits,
    ) -> None:
        self._licenses = licenses
        self._clock = clock
        self._limits = limits
        self._known: OrderedDict[bytes, tuple[float, Identity | UnauthenticatedError]] = OrderedDict()
        self._asked_again: OrderedDict[bytes, float] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Task[Identity]] = {}
        self._calls = asyncio.Semaphore(limits.calls_max)
        self._recent: OrderedDict[str, dict[int, tuple[float, Entitlement]]] = OrderedDict()
        self._recent_full_syncs: OrderedDict[str, dict[int, tuple[str, int]]] = OrderedDict()
        self._recent_licenses: OrderedDict[str, tuple[bool, int]] = OrderedDict()

    async def authenticate(self, token: str, *, fresh: bool = False) -> Identity:
        """Who the token stands for; `fresh` asks the ledger even when that was known a moment ago.

        Raises:
            UnauthenticatedError: unknown, expired or revoked.
            UnavailableError: the ledger does not answer.
        """
        key = hashlib.sha256(token.encode()).digest()
        if not fresh:
            known = self._fresh(key)
            if known is not None:
                metrics.AUTHENTICATIONS.labels("cached").inc()
                return self._checked(known)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._look_up(key, token), name="authenticate")
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return self._checked(await asyncio.shield(task))

    async def authenticate_for(self, token: str, master_ids: Iterable[int]) -> Identity:
        """As `authenticate`, and asks once more before a master that was subscribed to just now is missing.

        A subscription may be used before its announcement is here. Of one token that goes on naming others' masters
        the ledger hears no more often than of one that it refused.
        """
        identity = await self.authenticate(token)
        if all(master_id in identity.entitlements for master_id in master_ids):
            return identity
        key, now_seconds = hashlib.sha256(token.encode()).digest(), self._clock.monotonic_seconds()
        if now_seconds < self._asked_again.get(key, now_seconds):
            return identity
        self._asked_again[key] = now_seconds + self._limits.refused_seconds
        self._asked_again.move_to_end(key)
        _bound(self._asked_again, self._limits.cached_max)
        return await self.authenticate(token, fresh=True)

    def note_subscription(self, user_id: str, entitlement: Entitlement) -> bool:
        """Takes note of an announced change; False when a newer one was seen already."""
        recent = self._recent.setdefault(user_id, {})
        self._recent.move_to_end(user_id)
        known = recent.get(entitlement.master_id)
        if known is not None and known[1].is_newer_than(entitlement):
            return False
        recent[entitlement.master_id] = self._clock.monotonic_seconds(), entitlement
        _bound(self._recent, self._limits.recent_max)
        return True

    def note_full_sync(self, asked: FullSyncAsked) -> None:
        """Takes note of an announced full sync: one who opens a stream soon may have been looked up before."""
        recent = self._recent_full_syncs.setdefault(asked.user_id, {})
        self._recent_full_syncs.move_to_end(asked.user_id)
        recent[asked.master_id] = (asked.subscription_id, asked.number)
        _bound(self._recent_full_syncs, self._limits.recent_max)

    def note_license(self, license_id: str, revoked: bool, expires_at_us: int) -> None:
        """Takes note of an announced change."""
        self._recent_licenses[license_id] = (revoked, expires_at_us)
        self._recent_licenses.move_to_end(license_id)
        _bound(self._recent_licenses, self._limits.recent_max)

    def forget(self) -> None:
        """Changes may have been missed: everything is looked up again."""
        self._known.clear()

    def _fresh(self, key: bytes) -> Identity | None:
        found = self._known.get(key)
        if found is None:
            return None
        until_seconds, known = found
        if self._clock.monotonic_seconds() >= until_seconds:
            del self._known[key]
            return None
        if isinstance(known, UnauthenticatedError):
            raise UnauthenticatedError(known.message, reason=known.reason)
        return known

    def _checked(self, identity: Identity) -> Identity:
        """The identity as of now: what was announced since it was looked up counts."""
        revoked, expires_at_us = self._recent_licenses.get(
            identity.license_id, (False, identity.expires_at_us)
        )
        if revoked:
            raise errors.license_revoked()
        if self._clock.now_us() >= expires_at_us:
            raise errors.license_expired()
        return replace(identity, expires_at_us=expires_at_us, entitlements=self._up_to_date(identity))

    def _up_to_date(self, identity: Identity) -> dict[int, Entitlement]:
        merged = dict(identity.entitlements)
        for master_id, (noted_at, recent) in self._recent.get(identity.user_id, {}).items():
            known = merged.get(master_id)
            if noted_at < identity.asked_at:
                continue
            if known is None or not known.is_newer_than(recent):
                merged[master_id] = _with_due_of(recent, known)
        for master_id, (subscription_id, number) in self._recent_full_syncs.get(identity.user_id, {}).items():
            known = merged.get(master_id)
            if known is not None and known.subscription_id == subscription_id:
                merged[master_id] = replace(known, full_sync_due=max(known.full_sync_due, number))
        return {master_id: one for master_id, one in merged.items() if not one.cancelled}

    async def _look_up(self, key: bytes, token: str) -> Identity:
        try:
            async with self._calls:
                asked_at = self._clock.monotonic_seconds()
                identity = replace(await self._ask(token), asked_at=asked_at)
        except UnauthenticatedError as error:
            self._remember(key, error, self._limits.refused_seconds)
            metrics.AUTHENTICATIONS.labels("refused").inc()
            raise
        except ServiceError:
            metrics.AUTHENTICATIONS.labels("failed").inc()
            raise
        self._believe(identity)
        self._remember(key, identity, self._limits.cached_seconds)
        metrics.AUTHENTICATIONS.labels("found").inc()
        return identity

    def _believe(self, identity: Identity) -> None:
        """A ledger that was restored to an earlier state numbers changes anew: they are not taken for old ones.

        All else that was announced stays noted, for what is remembered of the user's other tokens.
        """
        recent = self._recent.get(identity.user_id, {})
        for master_id, known in identity.entitlements.items():
            noted_at, announced = recent.get(master_id, (identity.asked_at, known))
            is_same = announced.subscription_id == known.subscription_id
            if noted_at < identity.asked_at and is_same and announced.version > known.version:
                _log.warning("the ledger went back: subscription %s as it was before", known.subscription_id)
                del recent[master_id]

    def _remember(self, key: bytes, what: Identity | UnauthenticatedError, seconds: float) -> None:
        self._known[key] = (self._clock.monotonic_seconds() + seconds, what)
        self._known.move_to_end(key)
        _bound(self._known, self._limits.cached_max)

    async def _ask(self, token: str) -> Identity:
        request = license_service_pb2.AuthenticateRequest(token=token)
        try:
            with rpc.peer_errors("ledger"):
                answer = await self._licenses.Authenticate(request)
        except (NotFoundError, InvalidInputError) as error:
            raise UnauthenticatedError("the license is not known", reason="LICENSE_UNKNOWN") from error
        except FailedPreconditionError as error:
            raise UnauthenticatedError(error.message, reason=error.reason) from error
        return Identity(
            user_id=answer.user_id,
            license_id=answer.license_id,
            expires_at_us=answer.expires_at.ToMicroseconds(),
            entitlements={
                one.master_id: Entitlement(
                    one.subscription_id,
                    one.master_id,
                    pause_of(one.pause),
                    one.version,
                    full_sync_due=one.full_sync_due,
                )
                for one in answer.entitlements
            },
        )


class LedgerEvents:
    """Follows what the ledger announces."""

    def __init__(self, client: Redis, entitlements: Entitlements, changes: Changes, *, block_ms: int) -> None:
        self.is_connected = False
        self.following = asyncio.Event()
        """Set once the place to follow from is known: what changes from then on is seen."""
        self._client = client
        self._entitlements = entitlements
        self._changes = changes
        self._block_ms = block_ms

    async def run(self) -> None:
        """Follows from now on, until cancelled; outages are waited out."""
        after = await self._begin()
        events = tail.tail(self._client, stream.LEDGER_EVENTS, after, block_ms=self._block_ms)
        async with aclosing(events):  # type: ignore[type-var]  # tail is an async generator
            async for event in events:
                match event:
                    case tail.Entries(entries):
                        for entry in entries:
                            self._take(entry.payload)
                    case tail.Connected():
                        self.is_connected = True
                    case tail.Disconnected():
                        self.is_connected = False
                    case tail.Trimmed() | tail.Restored():
                        _log.warning(
                            "announcements of the ledger may have been missed: entitlements are read again"
                        )
                        self._entitlements.forget()
                        self._changes.unsure()

    async def _begin(self) -> EntryId:
        backoff = Backoff(initial_seconds=0.1, cap_seconds=2.0, floor_seconds=0.05)
        while True:
            try:
                after = await stream.last_id(self._client, stream.LEDGER_EVENTS)
            except UnavailableError:
                await asyncio.sleep(backoff.next_delay())
                continue
            self.is_connected = True
            self.following.set()
            return after

    def _take(self, payload: bytes | None) -> None:
        try:
            event = events_pb2.LedgerEvent.FromString(payload or b"")
        except DecodeError:
            metrics.UNREADABLE.labels(stream.LEDGER_EVENTS).inc()
            _log.exception("an announcement of the ledger cannot be parsed")
            return
        kind = event.WhichOneof("event")
        if kind == "subscription_changed":
            self._subscription(event.subscription_changed)
        elif kind == "license_changed":
            self._license(event.license_changed)
        elif kind == "full_sync_requested":
            self._full_sync(event.full_sync_requested)

    def _subscription(self, changed: events_pb2.SubscriptionChanged) -> None:
        entitlement = Entitlement(
            changed.subscription_id,
            changed.master_id,
            pause_of(changed.pause),
            changed.version,
            changed.cancelled,
            changed.reason,
        )
        if self._entitlements.note_subscription(changed.user_id, entitlement):
            self._changes.subscription(changed.user_id, entitlement)

    def _full_sync(self, requested: events_pb2.FullSyncRequested) -> None:
        asked = FullSyncAsked(
            requested.user_id,
            requested.subscription_id,
            requested.master_id,
            requested.full_sync,
            requested.reason,
        )
        self._entitlements.note_full_sync(asked)
        self._changes.full_sync(asked)

    def _license(self, changed: events_pb2.LicenseChanged) -> None:
        expires_at_us = changed.expires_at.ToMicroseconds()
        self._entitlements.note_license(changed.license_id, changed.revoked, expires_at_us)
        self._changes.license(changed.user_id, changed.license_id, changed.revoked, expires_at_us)


def pause_of(scope: int) -> Pause:
    """What a PauseScope withholds; one that this version does not know withholds all."""
    try:
        return Pause(scope)
    except ValueError:
        return Pause.ALL


def _with_due_of(announced: Entitlement, known: Entitlement | None) -> Entitlement:
    """An announcement of another change says nothing of a full sync that is due."""
    if known is None or known.subscription_id != announced.subscription_id:
        return announced
    return replace(announced, full_sync_due=known.full_sync_due)


def _bound(kept: OrderedDict[Any, Any], size_max: int) -> None:
    while len(kept) > size_max:
        kept.popitem(last=False)
