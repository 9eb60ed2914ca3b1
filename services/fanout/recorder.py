"""Carries acknowledged positions and sync states to the ledger in batches, the newest of each; it decides neither."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from execution.common.v1 import position_pb2
from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from execution.ledger.v1 import subscription_service_pb2_grpc
from services.common import rpc
from services.common.backoff import Backoff
from services.common.errors import ResourceExhaustedError, ServiceError
from services.fanout import metrics
from services.fanout.domain.cursor import Sync
from services.fanout.domain.position import ZERO, Position

_log = logging.getLogger(__name__)

_SYNC_STATES = {
    Sync.UNKNOWN: ledger_pb.SYNC_STATE_UNSPECIFIED,
    Sync.SYNCED: ledger_pb.SYNC_STATE_SYNCED,
    Sync.DEGRADED_GAP: ledger_pb.SYNC_STATE_DEGRADED_GAP,
    Sync.RESYNCING: ledger_pb.SYNC_STATE_RESYNCING,
}


@dataclass(slots=True)
class _Pending:
    acknowledged: Position = ZERO
    sync: Sync = Sync.UNKNOWN
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """How often positions are sent, how many at once, and how many may wait."""

    interval_seconds: float
    batch_max: int
    pending_max: int
    timeout_seconds: float


class Recorder:
    """What waits for the ledger, one record per subscriber and master."""

    def __init__(
        self, subscriptions: subscription_service_pb2_grpc.SubscriptionServiceAsyncStub, limits: RecordLimits
    ) -> None:
        self._subscriptions = subscriptions
        self._limits = limits
        self._pending: dict[tuple[str, int], _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def acknowledge(self, user_id: str, positions: Sequence[tuple[int, Position]]) -> None:
        """The user has processed everything up to these places.

        Raises:
            ResourceExhaustedError: too much waits already, since the ledger does not take it.
        """
        if len(self._pending) + len(positions) > self._limits.pending_max:
            raise ResourceExhaustedError(
                "too many positions wait for the ledger", reason="TOO_MANY_POSITIONS", retry_after_seconds=1
            )
        for master_id, position in positions:
            pending = self._pending.setdefault((user_id, master_id), _Pending())
            pending.acknowledged = max(pending.acknowledged, position)

    def turned(self, user_id: str, master_id: int, sync: Sync, reason: str) -> None:
        """The subscription's sync state changed; dropped, and counted, when too much waits already."""
        if len(self._pending) >= self._limits.pending_max and (user_id, master_id) not in self._pending:
            metrics.RECORDED.labels("dropped").inc()
            return
        pending = self._pending.setdefault((user_id, master_id), _Pending())
        pending.sync, pending.reason = sync, reason

    async def run(self) -> None:
        """Sends what waits, in each interval, until cancelled; then once more."""
        backoff = Backoff(initial_seconds=self._limits.interval_seconds, cap_seconds=10.0, floor_seconds=0.05)
        delay_seconds = self._limits.interval_seconds
        try:
            while True:
                await asyncio.sleep(delay_seconds)
                if await self._send_all():
                    backoff.reset()
                    delay_seconds = self._limits.interval_seconds
                else:
                    delay_seconds = self._limits.interval_seconds + backoff.next_delay()
        finally:
            await self._send_all()

    async def _send_all(self) -> bool:
        metrics.RECORD_PENDING.set(len(self._pending))
        while self._pending:
            keys = list(self._pending)[: self._limits.batch_max]
            batch = {key: self._pending.pop(key) for key in keys}
            try:
                await self._send(batch)
            except BaseException as error:
                self._put_back(batch)
                if not isinstance(error, ServiceError):
                    raise
                metrics.RECORDED.labels("failed").inc(len(batch))
                _log.warning("the ledger does not take positions: %s", error.message)
                return False
            metrics.RECORDED.labels("recorded").inc(len(batch))
        return True

    async def _send(self, batch: dict[tuple[str, int], _Pending]) -> None:
        request = ledger_pb.RecordPositionsRequest(
            positions=[
                _position(user_id, master_id, pending) for (user_id, master_id), pending in batch.items()
            ]
        )
        with rpc.peer_errors("ledger"):
            await self._subscriptions.RecordPositions(request, timeout=self._limits.timeout_seconds)

    def _put_back(self, batch: dict[tuple[str, int], _Pending]) -> None:
        """What came in meanwhile is newer."""
        for key, older in batch.items():
            newer = self._pending.setdefault(key, older)
            if newer is not older:
                newer.acknowledged = max(newer.acknowledged, older.acknowledged)
                if newer.sync is Sync.UNKNOWN:
                    newer.sync, newer.reason = older.sync, older.reason


def _position(user_id: str, master_id: int, pending: _Pending) -> ledger_pb.SubscriberPosition:
    position = ledger_pb.SubscriberPosition(
        user_id=user_id,
        master_id=master_id,
        sync_state=_SYNC_STATES[pending.sync],
        reason=pending.reason[:200],
    )
    if pending.acknowledged != ZERO:
        position.acknowledged.CopyFrom(
            position_pb2.StreamPosition(
                epoch=pending.acknowledged.epoch, sequence=pending.acknowledged.sequence
            )
        )
    return position
