"""Fetches what single cursors wait for behind the ring, and gives it to their streams; it makes no records."""

from __future__ import annotations

import asyncio
import logging
from typing import Self

from services.common.backoff import Backoff
from services.common.clock import Clock
from services.common.errors import ServiceError, UnavailableError
from services.fanout.backlog import Answer, Backlog, Gone
from services.fanout.delivery import Delivery
from services.fanout.domain.cursor import Cursor, Place
from services.fanout.domain.position import Position

_log = logging.getLogger(__name__)


class CatchUp:
    """One short task for each page that a cursor waits for; streams bound their number."""

    def __init__(self, backlog: Backlog, clock: Clock, *, attempts_max: int) -> None:
        self._backlog = backlog
        self._clock = clock
        self._attempts_max = attempts_max
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def fetch(self, delivery: Delivery, cursor: Cursor) -> None:
        """Gets the page that the cursor waits for; the stream ends with UNAVAILABLE when that fails for too long."""
        task = asyncio.create_task(self._fetch(delivery, cursor), name="catch up")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, delivery: Delivery, cursor: Cursor) -> None:
        position = cursor.position
        try:
            answer = await self._read(delivery, cursor)
        except ServiceError as error:
            delivery.end(error)
            return
        except Exception:
            _log.exception("older records of master %s could not be read", cursor.master_id)
            delivery.end(UnavailableError("older signals cannot be read", reason="BACKLOG_FAILED"))
            return
        now_us = self._clock.now_us()
        if cursor.position != position:
            # A full sync took the cursor elsewhere: what it waits for now is asked for anew.
            pass
        elif isinstance(answer, Gone):
            delivery.stream.skip_to(cursor, self._floor(cursor, answer), now_us)
        elif answer is not None:
            delivery.stream.feed(cursor, answer, now_us)
        delivery.fetched(cursor)

    async def _read(self, delivery: Delivery, cursor: Cursor) -> Answer | None:
        backoff = Backoff(initial_seconds=0.1, cap_seconds=2.0)
        for attempt in range(1, self._attempts_max + 1):
            if cursor.place is not Place.BEHIND or delivery.stream.ended is not None:
                return None
            try:
                return await self._backlog.read(cursor.master_id, cursor.position)
            except UnavailableError:
                if attempt == self._attempts_max:
                    raise
                await asyncio.sleep(backoff.next_delay())
        raise AssertionError("the last attempt returns or raises")

    def _floor(self, cursor: Cursor, gone: Gone) -> Position:
        """Where to go on: at the oldest place there is, at the ring's in doubt."""
        if gone.oldest is not None and cursor.position < gone.oldest < cursor.log.floor:
            return gone.oldest
        return cursor.log.floor
