"""Publishes the outbox on the stream of events, at least once and in order; it makes no events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from services.common import pg, stream
from services.common.backoff import Backoff
from services.common.errors import ServiceError
from services.ledger import metrics
from services.ledger.settings import LedgerSettings
from services.ledger.store import outbox
from services.ledger.store.outbox import OutboxStore, Waiting

_log = logging.getLogger(__name__)


class EventPublisher:
    """The one that moves events from the outbox to `ledger:events`, while its process leads.

    An event is numbered and committed, then published, then forgotten. A crash in between publishes it again under the
    same number; a former leader that is still at it does no harm either, since both begin with the oldest.
    """

    def __init__(self, store: OutboxStore, redis: stream.Redis, settings: LedgerSettings) -> None:
        self._store = store
        self._redis = redis
        self._batch_max = settings.outbox_batch_max
        self._poll_seconds = settings.outbox_poll_seconds
        self._length_max = settings.ledger_events_length_max
        self._wake = asyncio.Event()
        self.is_up = True
        """Whether the last round went well; true while another process leads."""

    async def run(self, connection: pg.Connection) -> NoReturn:
        """Publishes until cancelled. `connection` listens for commits that add events.

        Raises:
            UnavailableError: `connection` is lost.
        """
        with pg.translating():
            await connection.add_listener(outbox.CHANNEL, self._on_notify)
        try:
            await self._publish_for_ever()
        finally:
            with contextlib.suppress(ServiceError), pg.translating():
                await connection.remove_listener(outbox.CHANNEL, self._on_notify)

    async def _publish_for_ever(self) -> NoReturn:
        backoff = Backoff(initial_seconds=0.05, cap_seconds=2.0, floor_seconds=0.02)
        while True:
            self._wake.clear()
            try:
                published = await self.publish_once()
            except ServiceError as error:
                self._set_up(error)
                await self._try_to_measure()
                await asyncio.sleep(backoff.next_delay())
                continue
            self._set_up(None)
            backoff.reset()
            if published == 0:
                await self._wait()

    async def publish_once(self) -> int:
        """One round: how many events it published, at most a batch.

        Raises:
            UnavailableError, AbortedError: the database or Redis is away, or a lock was not to be had; the events wait.
        """
        await self._store.number_new(count=self._batch_max)
        waiting = await self._store.oldest(count=self._batch_max)
        if not waiting:
            metrics.OUTBOX_WAITING.set(0)
            metrics.OUTBOX_AGE.set(0)
            return 0
        await self._add(waiting)
        await self._store.forget(waiting[-1].event_id)
        metrics.OUTBOX_PUBLISHED.inc(len(waiting))
        return len(waiting)

    async def _add(self, waiting: Sequence[Waiting]) -> None:
        # All or none: were an event added without the one before it, readers would skip that one when it comes.
        pipeline = self._redis.pipeline(transaction=True)
        for event in waiting:
            pipeline.xadd(
                stream.LEDGER_EVENTS, {stream.FIELD: event.payload}, maxlen=self._length_max, approximate=True
            )
        with stream.translating():
            await pipeline.execute()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._poll_seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _try_to_measure(self) -> None:
        """Sets the metrics of what waits, where the database can be asked."""
        with contextlib.suppress(ServiceError):
            backlog = await self._store.backlog()
            metrics.OUTBOX_WAITING.set(backlog.events)
            metrics.OUTBOX_AGE.set(backlog.age_seconds)

    def _on_notify(self, *_: Any) -> None:
        self._wake.set()

    def _set_up(self, error: ServiceError | None) -> None:
        if error is not None and self.is_up:
            _log.warning("events wait in the outbox: %s", error.message)
        elif error is None and not self.is_up:
            _log.info("events are published again")
        self.is_up = error is None
