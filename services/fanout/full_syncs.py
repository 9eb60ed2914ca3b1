"""Brings live streams the full syncs that were asked for at the ledger; snapshots it has found for it.

The stream goes on while a snapshot is looked for, and however long that takes: nobody is cut off because somebody asked
for a full sync while the master is away. A paused subscription has its turn when the pause ends: a snapshot would show
what the pause withholds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from services.common.backoff import Backoff
from services.common.clock import Clock
from services.common.errors import ServiceError
from services.fanout import metrics
from services.fanout.delivery import Delivery
from services.fanout.domain.cursor import Cursor, Place, Sync
from services.fanout.domain.filter import Pause
from services.fanout.snapshots import Snapshots
from services.fanout.stream_tasks import StreamTasks

_log = logging.getLogger(__name__)

_PENDING = "a full sync was asked for"


class FullSyncs:
    """At most one search for each cursor, as long as its stream lives."""

    def __init__(
        self,
        snapshots: Snapshots,
        tasks: StreamTasks,
        clock: Clock,
        *,
        retry_seconds_max: float,
        on_done: Callable[[str, int, int], None],
    ) -> None:
        """`on_done(user_id, master_id, number)`: the full sync of that number had come to its end before."""
        self._snapshots = snapshots
        self._tasks = tasks
        self._clock = clock
        self._retry_seconds_max = retry_seconds_max
        self._on_done = on_done
        self._searching: set[Cursor] = set()

    def asked(self, delivery: Delivery, cursor: Cursor, number: int, reason: str = _PENDING) -> None:
        """A full sync with this number is due; one that this stream knows of changes nothing."""
        if number > cursor.full_sync:
            metrics.CHANGES.labels("full_sync").inc()
            cursor.full_sync = number
            self._begin(delivery, cursor, reason)

    def answered(self, delivery: Delivery, cursor: Cursor, number: int) -> None:
        """The full sync with this number was due when the stream began, and it began with a snapshot."""
        if number <= cursor.full_sync:
            return
        cursor.full_sync = number
        if cursor.place is not Place.SNAPSHOT:
            cursor.full_sync_told = number
        if cursor.full_sync_told == number and cursor.sync is Sync.SYNCED:
            self._on_done(delivery.stream.reader.user_id, cursor.master_id, number)

    def pause_ended(self, delivery: Delivery, cursor: Cursor) -> None:
        """What was asked for meanwhile has its turn."""
        if cursor.full_sync > cursor.full_sync_told:
            self._begin(delivery, cursor, _PENDING)

    def _begin(self, delivery: Delivery, cursor: Cursor, reason: str) -> None:
        if cursor.pause is not Pause.NONE or cursor.place is Place.SNAPSHOT or cursor in self._searching:
            return
        delivery.stream.resync(cursor, reason, self._clock.now_us())
        delivery.pump()
        self._searching.add(cursor)
        task = self._tasks.begin(delivery, self._bring(delivery, cursor), "full sync")
        task.add_done_callback(lambda _: self._searching.discard(cursor))

    async def _bring(self, delivery: Delivery, cursor: Cursor) -> None:
        """Finds a snapshot, sooner or later, and gives it to the stream."""
        backoff = Backoff(
            initial_seconds=min(1.0, self._retry_seconds_max), cap_seconds=self._retry_seconds_max
        )
        while delivery.stream.ended is None and delivery.stream.cursors.get(cursor.master_id) is cursor:
            try:
                snapshot = await self._snapshots.find(cursor.log, even_holed=False)
            except ServiceError as error:
                _log.warning(
                    "the full sync of subscription %s waits: %s", cursor.subscription_id, error.message
                )
                await asyncio.sleep(backoff.next_delay())
                continue
            except Exception:
                # It stays due, so it is tried again like any other that did not come.
                _log.exception("no snapshot for subscription %s could be looked for", cursor.subscription_id)
                await asyncio.sleep(backoff.next_delay())
                continue
            if cursor.pause is Pause.NONE and delivery.stream.ended is None:
                delivery.stream.begin_with(cursor, snapshot, self._clock.now_us())
                delivery.pump()
            return
