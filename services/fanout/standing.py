"""Learns from the ledger how a subscriber that resumes stood before: in step, degraded, or in a full sync.

A full sync that one process began may end in a stream of another one. It holds up no stream: what it learns comes when
it comes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Self

from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from execution.ledger.v1 import subscription_service_pb2_grpc
from services.common import rpc
from services.common.clock import Clock
from services.common.errors import ServiceError
from services.fanout.delivery import Delivery
from services.fanout.domain.cursor import Cursor, Sync

_log = logging.getLogger(__name__)

_SYNCS: Final = {
    ledger_pb.SYNC_STATE_SYNCED: Sync.SYNCED,
    ledger_pb.SYNC_STATE_DEGRADED_GAP: Sync.DEGRADED_GAP,
    ledger_pb.SYNC_STATE_RESYNCING: Sync.RESYNCING,
}


class Standing:
    """One short look-up for each resumed cursor, few at once."""

    def __init__(
        self,
        subscriptions: subscription_service_pb2_grpc.SubscriptionServiceAsyncStub,
        clock: Clock,
        *,
        calls_max: int,
    ) -> None:
        self._subscriptions = subscriptions
        self._clock = clock
        self._calls = asyncio.Semaphore(calls_max)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def learn(self, delivery: Delivery, cursor: Cursor) -> None:
        """Tells the stream how its subscriber stood before, as soon as the ledger says so."""
        task = asyncio.create_task(self._learn(delivery, cursor), name="learn standing")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _learn(self, delivery: Delivery, cursor: Cursor) -> None:
        request = ledger_pb.GetSubscriptionRequest(subscription_id=cursor.subscription_id)
        try:
            async with self._calls:
                if delivery.stream.ended is not None:
                    return
                with rpc.peer_errors("ledger"):
                    answer = await self._subscriptions.GetSubscription(request)
        except ServiceError as error:
            _log.warning(
                "it is not known how subscription %s stood: %s", cursor.subscription_id, error.message
            )
            return
        sync = _SYNCS.get(answer.subscription.sync_state, Sync.UNKNOWN)
        delivery.stream.stood(cursor, sync, self._clock.now_us())
        delivery.pump()
