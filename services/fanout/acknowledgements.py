"""Takes what subscribers acknowledge to their streams, in whatever process these are; the ledger hears it elsewhere.

A client may send Acknowledge over another connection than its stream's, and a load balancer, or the kernel between the
workers of one machine, then brings it to any process. What did not come over the connection of a stream of that master
is therefore told to all processes, through a short stream in Redis. Losing some of it does no harm: positions are
cumulative, and what they are for here is to tell a slow reader after minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, cast

from google.protobuf.message import DecodeError

from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from services.common import stream, tail
from services.common.backoff import Backoff
from services.common.clock import Clock
from services.common.errors import UnavailableError
from services.common.stream import EntryId, Redis
from services.fanout import metrics
from services.fanout.domain.codec import position_pb
from services.fanout.domain.position import Position
from services.fanout.hub import Hub

_log = logging.getLogger(__name__)

# In a cluster on the node that holds the ledger's events, which every process follows anyway.
NAME: Final = f"{{{stream.LEDGER_EVENTS}}}:acknowledged"


@dataclass(frozen=True, slots=True)
class AcknowledgementLimits:
    """How often positions are told to other processes, how many at once, how many may wait, and how many are kept."""

    interval_seconds: float
    batch_max: int
    pending_max: int
    entries_max: int
    block_ms: int


class Acknowledgements:
    """What came here, and what came elsewhere for the streams that are here."""

    def __init__(self, client: Redis, hub: Hub, clock: Clock, limits: AcknowledgementLimits) -> None:
        self._client = client
        self._hub = hub
        self._clock = clock
        self._limits = limits
        self._pending: dict[tuple[str, int], Position] = {}
        self._something = asyncio.Event()

    def take(self, user_id: str, positions: Sequence[tuple[int, Position]], peer_address: str) -> None:
        """The user has processed everything up to these places, and said so from this address."""
        self._acknowledge(user_id, positions)
        here = {
            master_id
            for delivery in self._hub.of_user(user_id)
            if delivery.stream.reader.peer_address == peer_address
            for master_id in delivery.stream.cursors
        }
        for master_id, position in positions:
            if master_id not in here:
                self._tell(user_id, master_id, position)

    def _acknowledge(self, user_id: str, positions: Sequence[tuple[int, Position]]) -> None:
        now_us = self._clock.now_us()
        for delivery in self._hub.of_user(user_id):
            for master_id, position in positions:
                delivery.stream.acknowledge(master_id, position, now_us)

    def _tell(self, user_id: str, master_id: int, position: Position) -> None:
        key = user_id, master_id
        known = self._pending.get(key)
        if known is None and len(self._pending) >= self._limits.pending_max:
            metrics.ACKNOWLEDGEMENTS.labels("dropped").inc()
            return
        self._pending[key] = position if known is None else max(known, position)
        self._something.set()

    async def tell_forever(self) -> None:
        """Tells other processes what waits, in each interval, until cancelled."""
        while True:
            await self._something.wait()
            await asyncio.sleep(self._limits.interval_seconds)
            self._something.clear()
            while self._pending:
                batch = list(self._pending.items())[: self._limits.batch_max]
                try:
                    await self._send(batch)
                except UnavailableError as error:
                    _log.warning("other processes are not told of acknowledgements: %s", error.message)
                    self._something.set()
                    break
                for key, position in batch:
                    if self._pending[key] == position:
                        del self._pending[key]
                metrics.ACKNOWLEDGEMENTS.labels("told").inc(len(batch))

    async def _send(self, batch: Sequence[tuple[tuple[str, int], Position]]) -> None:
        message = ledger_pb.RecordPositionsRequest(
            positions=[
                ledger_pb.SubscriberPosition(
                    user_id=user_id, master_id=master_id, acknowledged=position_pb(position)
                )
                for (user_id, master_id), position in batch
            ]
        )
        with stream.translating():
            await self._client.xadd(
                NAME,
                {stream.FIELD: message.SerializeToString()},
                maxlen=self._limits.entries_max,
                approximate=True,
            )

    async def follow(self) -> None:
        """Takes what came to other processes, until cancelled; outages are waited out."""
        following = tail.tail(self._client, NAME, await self._begin(), block_ms=self._limits.block_ms)
        async with aclosing(cast(AsyncGenerator[tail.Event, None], following)) as events:
            async for event in events:
                if isinstance(event, tail.Entries):
                    for entry in event.entries:
                        self._hear(entry.payload)

    async def _begin(self) -> EntryId:
        backoff = Backoff(initial_seconds=0.1, cap_seconds=2.0, floor_seconds=0.05)
        while True:
            try:
                return await stream.last_id(self._client, NAME)
            except UnavailableError:
                await asyncio.sleep(backoff.next_delay())

    def _hear(self, payload: bytes | None) -> None:
        try:
            told = ledger_pb.RecordPositionsRequest.FromString(payload or b"")
        except DecodeError:
            metrics.UNREADABLE.labels(NAME).inc()
            return
        for one in told.positions:
            position = Position(one.acknowledged.epoch, one.acknowledged.sequence)
            self._acknowledge(one.user_id, ((one.master_id, position),))
