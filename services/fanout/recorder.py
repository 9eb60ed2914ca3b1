"""Carries acknowledged positions and sync states to the ledger in batches, the newest of each; it decides neither."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from execution.ledger.v1 import subscription_service_pb2_grpc
from services.common import rpc
from services.common.backoff import Backoff
from services.common.errors import ResourceExhaustedError, ServiceError
from services.fanout import metrics
from services.fanout.domain.codec import position_pb
from services.fanout.domain.cursor import Sync
from services.fanout.domain.position import ZERO, Position
from services.fanout.domain.stream import Turn

_log = logging.getLogger(__name__)

_REASON_CHARACTERS_MAX: Final = 200

_SYNC_STATES: Final = {
    Sync.SYNCED: ledger_pb.SYNC_STATE_SYNCED,
    Sync.DEGRADED_GAP: ledger_pb.SYNC_STATE_DEGRADED_GAP,
    Sync.RESYNCING: ledger_pb.SYNC_STATE_RESYNCING,
}


@dataclass(slots=True)
class _Pending:
    acknowledged: Position = ZERO
    turns: list[Turn] = field(default_factory=list)
    full_sync_done: int = 0


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """How often positions are sent, how many at once, and how many may wait."""

    interval_seconds: float
    batch_max: int
    pending_max: int
    timeout_seconds: float
    transitions_max: int
    """Changes of one subscription's sync state that may wait."""


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

    def turned(self, user_id: str, turn: Turn) -> None:
        """The subscription's sync state changed; dropped, and counted, when too much waits already."""
        pending = self._take_in(user_id, turn.cursor.master_id)
        if pending is not None:
            pending.turns.append(turn)
            self._bound(pending)
            pending.full_sync_done = max(pending.full_sync_done, turn.full_sync_done)

    def full_sync_done(self, user_id: str, master_id: int, number: int) -> None:
        """The full sync of that number was told whole; dropped, and counted, when too much waits already."""
        pending = self._take_in(user_id, master_id)
        if pending is not None:
            pending.full_sync_done = max(pending.full_sync_done, number)

    def _take_in(self, user_id: str, master_id: int) -> _Pending | None:
        if len(self._pending) >= self._limits.pending_max and (user_id, master_id) not in self._pending:
            metrics.RECORDED.labels("dropped").inc()
            return None
        return self._pending.setdefault((user_id, master_id), _Pending())

    def _bound(self, pending: _Pending) -> None:
        excess = len(pending.turns) - self._limits.transitions_max
        if excess > 0:
            del pending.turns[:excess]
            metrics.RECORDED.labels("dropped_transition").inc(excess)

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
                newer.full_sync_done = max(newer.full_sync_done, older.full_sync_done)
                newer.turns[:0] = older.turns
                self._bound(newer)


def _position(user_id: str, master_id: int, pending: _Pending) -> ledger_pb.SubscriberPosition:
    position = ledger_pb.SubscriberPosition(
        user_id=user_id, master_id=master_id, full_sync_done=pending.full_sync_done
    )
    for turn in pending.turns:
        one = position.transitions.add(
            sync_state=_SYNC_STATES[turn.sync], reason=turn.reason[:_REASON_CHARACTERS_MAX]
        )
        one.changed_at.FromMicroseconds(turn.at_us)
        if turn.position != ZERO:
            one.position.CopyFrom(position_pb(turn.position))
    if pending.turns:
        # For a ledger that knows no transitions yet.
        position.sync_state, position.reason = one.sync_state, one.reason
    if pending.acknowledged != ZERO:
        position.acknowledged.CopyFrom(position_pb(pending.acknowledged))
    return position
