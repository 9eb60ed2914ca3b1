"""Finds the snapshot that a stream begins with: the stored one if the log goes on from it, else a new one.

It asks the front door and waits, bounded; it never makes or changes a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Self

from google.protobuf.message import DecodeError

from execution.common.v1 import snapshot_pb2
from services.common.clock import Clock
from services.common.errors import ResourceExhaustedError, ServiceError, UnavailableError
from services.common.log import SignalLog
from services.fanout import metrics
from services.fanout.backlog import Backlog, Gone
from services.fanout.delivery import Delivery
from services.fanout.domain import errors
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.position import Position
from services.fanout.domain.ring import MasterLog, SignalRecord

_log = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS: Final = 2.0
"""The master may have connected meanwhile."""

Ask = Callable[[int], Awaitable[None]]
"""Asks the front door for a new snapshot of a master; failures are its own affair."""


@dataclass(frozen=True, slots=True)
class SnapshotLimits:
    """How long is waited, how often is looked, and for how many masters at once."""

    wait_seconds: float
    poll_seconds: float
    waits_max: int


@dataclass(frozen=True, slots=True)
class _Found:
    snapshot: snapshot_pb2.Snapshot
    is_holed: bool = False


class Snapshots:
    """One search per master, whoever waits for it."""

    def __init__(
        self, signal_log: SignalLog, backlog: Backlog, ask: Ask, clock: Clock, limits: SnapshotLimits
    ) -> None:
        self._signal_log = signal_log
        self._backlog = backlog
        self._ask = ask
        self._clock = clock
        self._limits = limits
        self._searches: dict[int, asyncio.Task[_Found]] = {}
        self._stored: dict[int, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks, *self._searches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stored(self, master_id: int) -> None:
        """The log says that a newer snapshot of the master can be read."""
        event = self._stored.get(master_id)
        if event is not None:
            event.set()

    def begin(self, delivery: Delivery, cursor: Cursor) -> None:
        """Lets the cursor begin with a snapshot as soon as there is one; ends the stream when none comes in time."""
        task = asyncio.create_task(self._begin(delivery, cursor), name="begin with a snapshot")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, delivery: Delivery, cursor: Cursor) -> None:
        try:
            snapshot = await self.find(cursor.log)
        except ServiceError as error:
            delivery.end(error)
            return
        except Exception:
            # Without an end the reader would wait for ever, and not know it.
            _log.exception("no snapshot of master %s could be looked for", cursor.master_id)
            delivery.end(UnavailableError("snapshots cannot be read", reason="SNAPSHOT_FAILED"))
            return
        delivery.stream.begin_with(cursor, snapshot, self._clock.now_us())
        delivery.pump()

    async def find(self, log: MasterLog, *, even_holed: bool = True) -> snapshot_pb2.Snapshot:
        """A snapshot of the log's master from which the log goes on without a hole.

        When none comes in time, an older one that a hole follows is better than nothing if `even_holed`.

        Raises:
            UnavailableError: there is none and none came in time, or Redis is away.
            ResourceExhaustedError: snapshots of too many masters are being waited for.
        """
        found = await self._find(log)
        if found.is_holed and not even_holed:
            raise errors.snapshot_unavailable(log.master_id, self._limits.wait_seconds)
        return found.snapshot

    async def _find(self, log: MasterLog) -> _Found:
        search = self._searches.get(log.master_id)
        if search is None:
            if len(self._searches) >= self._limits.waits_max:
                raise ResourceExhaustedError(
                    "snapshots of too many masters are being waited for", reason="TOO_MANY_SNAPSHOTS"
                )
            search = asyncio.create_task(self._search(log), name="find a snapshot")
            self._searches[log.master_id] = search
            search.add_done_callback(lambda _: self._searches.pop(log.master_id, None))
        return await asyncio.shield(search)

    async def _search(self, log: MasterLog) -> _Found:
        event = self._stored[log.master_id] = asyncio.Event()
        try:
            return await self._search_until(
                log, event, asyncio.get_running_loop().time() + self._limits.wait_seconds
            )
        finally:
            del self._stored[log.master_id]

    async def _search_until(self, log: MasterLog, event: asyncio.Event, until: float) -> _Found:
        loop = asyncio.get_running_loop()
        fallback = await self._stored_snapshot(log)
        if fallback is not None and not _has_hole_after(log, _as_of(fallback)):
            metrics.SNAPSHOTS.labels("stored").inc()
            return _Found(fallback)
        ask_again_at = 0.0
        while (remaining_seconds := until - loop.time()) > 0:
            if loop.time() >= ask_again_at:
                await self._ask(log.master_id)
                ask_again_at = loop.time() + _ASK_AGAIN_SECONDS
            try:
                async with asyncio.timeout(min(remaining_seconds, self._limits.poll_seconds)):
                    await event.wait()
            except TimeoutError:
                pass
            event.clear()
            snapshot = await self._stored_snapshot(log)
            if snapshot is not None and not _has_hole_after(log, _as_of(snapshot)):
                metrics.SNAPSHOTS.labels("asked").inc()
                return _Found(snapshot)
        if fallback is not None:
            # The hole that follows it is told after it.
            metrics.SNAPSHOTS.labels("holed").inc()
            return _Found(fallback, is_holed=True)
        metrics.SNAPSHOTS.labels("missing").inc()
        raise errors.snapshot_unavailable(log.master_id, self._limits.wait_seconds)

    async def _stored_snapshot(self, log: MasterLog) -> snapshot_pb2.Snapshot | None:
        """The stored snapshot, if what follows it can still be had."""
        try:
            snapshot = await self._signal_log.read_snapshot(log.master_id)
        except DecodeError:
            _log.error("the snapshot of master %s cannot be parsed", log.master_id)
            return None
        if snapshot is None:
            return None
        as_of = _as_of(snapshot)
        if snapshot.master_id != log.master_id or await self._is_beyond(log, as_of):
            # One who began there would wait for what never comes.
            _log.error("the snapshot of master %s is of another one, or lies beyond its log", log.master_id)
            return None
        if log.covers(as_of):
            return snapshot
        try:
            page = await self._backlog.read(log.master_id, as_of)
        except UnavailableError as error:
            _log.warning(
                "what follows the snapshot of master %s cannot be read: %s", log.master_id, error.message
            )
            return None
        return None if isinstance(page, Gone) else snapshot

    async def _is_beyond(self, log: MasterLog, as_of: Position) -> bool:
        """Whether the log has not come to this place, not even where this process has not read it yet."""
        if as_of <= log.head:
            return False
        stored = await self._signal_log.read_head(log.master_id)
        return stored is None or as_of > Position(*stored.position)


def _as_of(snapshot: snapshot_pb2.Snapshot) -> Position:
    return Position(snapshot.as_of.epoch, snapshot.as_of.sequence)


def _has_hole_after(log: MasterLog, position: Position) -> bool:
    """Whether the ring knows a hole or a new epoch behind the position: one who begins there would be told of it."""
    if position.epoch != log.head.epoch:
        return position < log.head
    offset = log.offset_after(position)
    return any(not isinstance(record, SignalRecord) for record in log.records(offset))
