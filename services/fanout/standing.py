"""Learns from the ledger how a subscriber stood before its stream: in step, degraded, in a full sync, or due for one.

A full sync that one process began may end in a stream of another one, and one that was asked for while the subscriber
was away begins with its next stream. It holds up no stream: what it learns comes when it comes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from execution.ledger.v1 import subscription_service_pb2_grpc
from services.common import rpc
from services.common.backoff import Backoff
from services.common.clock import Clock
from services.common.errors import ServiceError
from services.fanout.delivery import Delivery
from services.fanout.domain.cursor import Cursor, Sync
from services.fanout.domain.request import Begin
from services.fanout.full_syncs import FullSyncs
from services.fanout.stream_tasks import StreamTasks

_log = logging.getLogger(__name__)

_SYNCS: Final = {
    ledger_pb.SYNC_STATE_SYNCED: Sync.SYNCED,
    ledger_pb.SYNC_STATE_DEGRADED_GAP: Sync.DEGRADED_GAP,
    ledger_pb.SYNC_STATE_RESYNCING: Sync.RESYNCING,
}


class Standing:
    """One short look-up for each cursor of a new stream, few at once."""

    def __init__(
        self,
        subscriptions: subscription_service_pb2_grpc.SubscriptionServiceAsyncStub,
        full_syncs: FullSyncs,
        tasks: StreamTasks,
        clock: Clock,
        *,
        calls_max: int,
        retry_seconds_max: float,
    ) -> None:
        self._subscriptions = subscriptions
        self._full_syncs = full_syncs
        self._tasks = tasks
        self._clock = clock
        self._calls = asyncio.Semaphore(calls_max)
        self._retry_seconds_max = retry_seconds_max

    def learn(self, delivery: Delivery, cursor: Cursor, begin: Begin) -> None:
        """Tells the stream how its subscriber stood before, as soon as the ledger says so."""
        self._tasks.begin(delivery, self._learn(delivery, cursor, begin), "learn standing")

    async def _learn(self, delivery: Delivery, cursor: Cursor, begin: Begin) -> None:
        backoff = Backoff(
            initial_seconds=min(0.5, self._retry_seconds_max), cap_seconds=self._retry_seconds_max
        )
        while delivery.stream.ended is None:
            try:
                subscription = await self._ask(cursor.subscription_id)
            except ServiceError as error:
                _log.warning(
                    "it is not known how subscription %s stood: %s", cursor.subscription_id, error.message
                )
                if not error.retryable:
                    # A full sync that is due is found when entitlements are read again.
                    return
                await asyncio.sleep(backoff.next_delay())
            else:
                self._tell(delivery, cursor, begin, subscription)
                return

    async def _ask(self, subscription_id: str) -> ledger_pb.Subscription:
        request = ledger_pb.GetSubscriptionRequest(subscription_id=subscription_id)
        async with self._calls:
            with rpc.peer_errors("ledger"):
                return (await self._subscriptions.GetSubscription(request)).subscription

    def _tell(
        self, delivery: Delivery, cursor: Cursor, begin: Begin, subscription: ledger_pb.Subscription
    ) -> None:
        number = subscription.full_sync_due
        if number and begin is Begin.SNAPSHOT:
            self._full_syncs.answered(delivery, cursor, number)
        elif number:
            self._full_syncs.asked(delivery, cursor, number, subscription.sync_reason)
        elif begin is Begin.AFTER:
            sync = _SYNCS.get(subscription.sync_state, Sync.UNKNOWN)
            delivery.stream.stood(cursor, sync, self._clock.now_us())
            delivery.pump()
