"""Carries changes of licenses and subscriptions to open streams; it asks nobody but who keeps them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from services.common.backoff import Backoff
from services.common.clock import Clock
from services.common.errors import ServiceError, UnauthenticatedError
from services.fanout import metrics
from services.fanout.delivery import Delivery
from services.fanout.domain import errors
from services.fanout.domain.filter import Pause
from services.fanout.entitlements import Entitlement, Entitlements, FullSyncAsked, Identity
from services.fanout.full_syncs import FullSyncs
from services.fanout.hub import Hub

_log = logging.getLogger(__name__)

_CALLS_AT_ONCE = 16
_RETRY_SECONDS_MAX = 2.0


class LiveEntitlements:
    """What announced changes, and what is read again when some may have been missed, mean for open streams."""

    def __init__(
        self,
        hub: Hub,
        entitlements: Entitlements,
        full_syncs: FullSyncs,
        clock: Clock,
        *,
        refresh_interval_seconds: float,
    ) -> None:
        self._hub = hub
        self._entitlements = entitlements
        self._full_syncs = full_syncs
        self._clock = clock
        self._refresh_interval_seconds = refresh_interval_seconds
        self._tokens: dict[int, str] = {}
        self._unsure = asyncio.Event()

    def opened(self, delivery: Delivery, token: str) -> None:
        """A stream was opened with this token."""
        self._tokens[delivery.stream.stream_id] = token

    def closed(self, delivery: Delivery) -> None:
        """The stream is over."""
        self._tokens.pop(delivery.stream.stream_id, None)

    def on_subscription(self, user_id: str, entitlement: Entitlement) -> None:
        """A subscription was made, paused, resumed or cancelled."""
        for delivery in self._hub.of_user(user_id):
            if self._apply(delivery, entitlement):
                metrics.CHANGES.labels("cancelled" if entitlement.cancelled else "pause").inc()
                delivery.pump()

    def on_license(self, user_id: str, license_id: str, revoked: bool, expires_at_us: int) -> None:
        """A license was revoked, or its end was moved."""
        for delivery in self._hub.of_user(user_id):
            if delivery.stream.reader.license_id != license_id:
                continue
            metrics.CHANGES.labels("license").inc()
            delivery.stream.expires_at_us = expires_at_us
            if revoked:
                delivery.end(errors.license_revoked())

    def on_full_sync(self, asked: FullSyncAsked) -> None:
        """A full sync of a subscription was asked for."""
        for delivery in self._hub.of_user(asked.user_id):
            cursor = delivery.stream.cursors.get(asked.master_id)
            if cursor is not None and cursor.subscription_id == asked.subscription_id:
                self._full_syncs.asked(delivery, cursor, asked.number, asked.reason)

    def on_unsure(self) -> None:
        """Changes may have been missed: everything is read again."""
        self._unsure.set()

    async def refresh_forever(self) -> None:
        """Reads the entitlements of all open streams again when changes may have been missed, and now and then."""
        while True:
            try:
                async with asyncio.timeout(self._refresh_interval_seconds):
                    await self._unsure.wait()
            except TimeoutError:
                pass
            self._unsure.clear()
            await self._refresh_all()

    async def _refresh_all(self) -> None:
        """Asks again for those whom the ledger could not look up, until it is time to ask for all."""
        backoff = Backoff(initial_seconds=0.2, cap_seconds=_RETRY_SECONDS_MAX, floor_seconds=0.05)
        now = asyncio.get_running_loop().time
        until = now() + self._refresh_interval_seconds
        due = await self._refresh_each(list(self._hub))
        while due and now() < until and not self._unsure.is_set():
            await asyncio.sleep(backoff.next_delay())
            due = await self._refresh_each(due)

    async def _refresh_each(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those that are still to be looked up; a ledger that answers for none of a few is not asked for the rest."""
        failed: list[Delivery] = []
        for start in range(0, len(deliveries), _CALLS_AT_ONCE):
            batch = deliveries[start : start + _CALLS_AT_ONCE]
            done = await asyncio.gather(*(self._refresh(delivery) for delivery in batch))
            failed += (delivery for delivery, was_done in zip(batch, done, strict=True) if not was_done)
            if not any(done):
                return [*failed, *deliveries[start + _CALLS_AT_ONCE :]]
        return failed

    async def _refresh(self, delivery: Delivery) -> bool:
        token = self._tokens.get(delivery.stream.stream_id)
        if token is None:
            return True
        try:
            identity = await self._entitlements.authenticate(token, fresh=True)
        except UnauthenticatedError as error:
            delivery.end(error)
        except ServiceError as error:
            _log.warning(
                "entitlements of stream %s were not read again: %s", delivery.stream.stream_id, error.message
            )
            return False
        else:
            self.reconcile(delivery, identity)
            delivery.pump()
            self._ask_for_full_syncs(delivery, identity)
        return True

    def _ask_for_full_syncs(self, delivery: Delivery, identity: Identity) -> None:
        for master_id, cursor in tuple(delivery.stream.cursors.items()):
            entitlement = identity.entitlements.get(master_id)
            if entitlement is not None and entitlement.subscription_id == cursor.subscription_id:
                self._full_syncs.asked(delivery, cursor, entitlement.full_sync_due)

    def reconcile(self, delivery: Delivery, identity: Identity) -> None:
        """Brings a stream in line with what its user may read now."""
        delivery.stream.expires_at_us = identity.expires_at_us
        for master_id, cursor in tuple(delivery.stream.cursors.items()):
            entitlement = identity.entitlements.get(master_id)
            if entitlement is None or entitlement.subscription_id != cursor.subscription_id:
                # One that replaced it is another one: its pauses and full syncs are told to streams of its own.
                self._cancel(delivery, master_id, "the subscription ended")
            elif entitlement.version != cursor.version:
                # A lower one is that of a ledger which was restored to an earlier state.
                cursor.version = min(cursor.version, entitlement.version - 1)
                self._apply(delivery, entitlement)

    def _apply(self, delivery: Delivery, entitlement: Entitlement) -> bool:
        cursor = delivery.stream.cursors.get(entitlement.master_id)
        if cursor is None or cursor.subscription_id != entitlement.subscription_id:
            return False
        if entitlement.cancelled:
            return self._cancel(delivery, entitlement.master_id, entitlement.reason)
        is_news = delivery.stream.pause(
            entitlement.master_id,
            entitlement.pause,
            entitlement.version,
            entitlement.reason,
            self._clock.now_us(),
        )
        if is_news and cursor.pause is Pause.NONE:
            self._full_syncs.pause_ended(delivery, cursor)
        return is_news

    def _cancel(self, delivery: Delivery, master_id: int, reason: str) -> bool:
        cursor = delivery.stream.cancel(master_id, reason, self._clock.now_us())
        if cursor is not None:
            self._hub.unfollow(cursor)
        return cursor is not None
