"""Follows a stream across reconnects and says when entries may be missing; it interprets no payload."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from services.common import stream
from services.common.backoff import Backoff
from services.common.blocking_read import BlockingRead
from services.common.errors import UnavailableError
from services.common.stream import Entry, EntryId, Redis

_log = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Connected:
    """Redis answers, for the first time or again. The log may be another one: read its meta data again."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Redis does not answer; the tail goes on trying. Told once per outage."""

    error: UnavailableError


@dataclass(frozen=True, slots=True)
class Entries:
    """The next entries, oldest first, at least one. `caught_up` says that none were waiting behind them."""

    entries: tuple[Entry, ...]
    caught_up: bool


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Entries after `cursor` may have gone unread; the tail goes on at `first` (None: none is left)."""

    cursor: EntryId
    first: EntryId | None


@dataclass(frozen=True, slots=True)
class Restored:
    """The stream went back behind `cursor` (restored or deleted); the tail goes on after `last`."""

    cursor: EntryId
    last: EntryId


Event = Connected | Disconnected | Entries | Trimmed | Restored


async def tail(
    client: Redis,
    name: str,
    after: EntryId,
    *,
    block_ms: int = 1_000,
    count: int = 500,
    check_seconds: float = _CHECK_SECONDS,
    on_entries: Callable[[tuple[Entry, ...]], None] | None = None,
) -> AsyncIterator[Event]:
    """Yields the entries after `after` for ever, and what the reader must know about them.

    Never raises for Redis's sake: an outage is Disconnected, then Connected, and reading goes on where it
    stopped. Whether something was lost is looked at on connecting, when the reader lags, and about every
    `check_seconds`: exactly while the count of entries is known, and otherwise cautiously (Trimmed may be
    told although nothing was lost). `block_ms` is cut to fit the client's time-out. `on_entries` gets entries in
    the moment in which they come, just before they are yielded. Close it with `aclose` (or contextlib.aclosing).
    """
    reading = BlockingRead(client, name, block_ms=block_ms, count=count, on_entries=on_entries)
    follower = _Follower(client, name, after, reading, count, check_seconds)
    backoff = Backoff(initial_seconds=0.05, cap_seconds=2.0, floor_seconds=0.02)
    connected: bool | None = None
    try:
        while True:
            entries = None
            try:
                lost = await follower.check_when_due(now=not connected)
                # What is told first may keep the reader busy, so the stream is looked at again before it is read.
                if connected and lost is None:
                    entries = await follower.read()
                    # Who may look may not be allowed to read: only now it is known that the outage is over.
                    backoff.reset()
            except UnavailableError as error:
                if connected is not False:
                    yield Disconnected(error)
                connected = False
                await asyncio.sleep(backoff.next_delay())
                continue
            if not connected:
                connected = True
                yield Connected()
            if lost is not None:
                yield lost
            if entries is not None:
                yield entries
    finally:
        await follower.close()


class _Follower:
    """The cursor of one tail and what is known about the stream around it."""

    def __init__(
        self,
        client: Redis,
        name: str,
        after: EntryId,
        reading: BlockingRead,
        count: int,
        check_seconds: float,
    ) -> None:
        self._client = client
        self._name = name
        self._cursor = after
        self._reading = reading
        self._count = count
        self._check_seconds = check_seconds
        self._checked_at = 0.0
        self._lagging = False
        # How many entries the stream had had when the one at the cursor was added; None while unknown.
        self._ordinal: int | None = 0 if after == stream.BEGINNING else None

    async def close(self) -> None:
        """Lets go of its connection."""
        await self._reading.close()

    async def read(self) -> Entries | None:
        """The next entries, or None when there were none for `block_ms`."""
        entries = await self._reading.after(self._cursor)
        if not entries:
            # Redis 7.0 also wakes a reader for what was trimmed before it could be read; the next check tells what
            # is lost.
            return None
        self._cursor = entries[-1].id
        if self._ordinal is not None:
            self._ordinal += len(entries)
        self._lagging = len(entries) >= self._count
        return Entries(entries, caught_up=not self._lagging)

    async def check_when_due(self, *, now: bool) -> Trimmed | Restored | None:
        """`_check`, if it is to be now, the reader lags, or the last check is old."""
        if now or self._lagging or time.monotonic() - self._checked_at >= self._check_seconds:
            return await self._check()
        return None

    async def _check(self) -> Trimmed | Restored | None:
        """Compares cursor and stream; moves the cursor when it no longer fits."""
        state = await stream.read_state(self._client, self._name)
        self._checked_at = time.monotonic()
        if state is None:
            state = stream.StreamState(stream.BEGINNING, None, 0, 0)
        cursor = self._cursor
        if state.last < cursor or (self._ordinal is not None and state.added < self._ordinal):
            self._cursor, self._ordinal = state.last, state.added
            return Restored(cursor, state.last)
        if state.last == cursor:
            self._ordinal = state.added
            return None
        if not await self._has_lost(state):
            return None
        self._ordinal = state.trimmed
        # Reading goes on at the first entry; after the last id when all are gone.
        if state.first is None:
            self._cursor, self._ordinal = state.last, state.added
        return Trimmed(cursor, state.first)

    async def _has_lost(self, state: stream.StreamState) -> bool:
        if self._ordinal is not None:
            return state.trimmed > self._ordinal
        if state.first is not None and state.first <= self._cursor:
            return False
        return state.trimmed > 0
