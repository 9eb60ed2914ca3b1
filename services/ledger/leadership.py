"""Lets one process at a time do a duty, by an advisory lock of PostgreSQL; what is done must survive two doing it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Final, NoReturn

from services.common import pg
from services.common.backoff import Backoff
from services.common.errors import UnavailableError
from services.ledger import metrics

_log = logging.getLogger(__name__)

# First key of the advisory locks: "ecpl".
_LOCK_SPACE: Final = 0x6563_706C
_TRY_SECONDS: Final = 1.0
_WATCH_SECONDS: Final = 1.0


class Duty(IntEnum):
    """What is done by one process at a time; the value is the lock's second key (plus the shard)."""

    EVENTS = 1
    ARCHIVE = 1_000_000


async def lead(
    pool: pg.Pool,
    duty: Duty,
    work: Callable[[pg.Connection], Awaitable[None]],
    *,
    lease_seconds: float,
    shard: int = 0,
) -> NoReturn:
    """Does `work` while this process holds the duty's lock, and tries to get it otherwise, for ever.

    The lock is held by the session of the connection that `work` gets. When that session ends, however it does, `work`
    is cancelled here within about a second, and another process may have begun before: leadership keeps the order of
    things and saves work, and is no fence. PostgreSQL itself ends a session that is silent for `lease_seconds`: that of
    a process that hangs, or whose host is gone. `work` handles its own failures; what it raises ends this call too.
    """
    name = f"{duty.name.lower()} {shard}" if shard else duty.name.lower()
    # There before the first term, or a duty that nobody does could not be told from one that there is not.
    metrics.LEADER.labels(name)
    backoff = Backoff(initial_seconds=0.1, cap_seconds=_TRY_SECONDS, floor_seconds=0.05)
    while True:
        try:
            # Each term is a task of its own: in Python 3.11 a TaskGroup in which a task failed leaves the task
            # around it marked as being cancelled for good, and outages would be taken for that cancellation.
            term = _term(pool, duty + shard, name, work, lease_seconds)
            if await asyncio.create_task(term, name=f"term of {name}"):
                backoff.reset()
        except* UnavailableError as group:
            _log.debug("cannot lead %s: %s", name, group.exceptions[0])
        await asyncio.sleep(backoff.next_delay())


async def _term(
    pool: pg.Pool,
    lock: int,
    name: str,
    work: Callable[[pg.Connection], Awaitable[None]],
    lease_seconds: float,
) -> bool:
    """Leads for as long as it lasts; False at once if another process leads."""
    async with pool.connection() as connection:
        # The pool's reset of a connection that comes back releases the lock and the setting.
        await connection.execute(f"set idle_session_timeout = {int(lease_seconds * 1_000)}")
        if not await connection.fetchval("select pg_try_advisory_lock($1, $2)", _LOCK_SPACE, lock):
            return False
        await _holding(connection, name, work, lease_seconds)
    return True


async def _holding(
    connection: pg.Connection,
    name: str,
    work: Callable[[pg.Connection], Awaitable[None]],
    lease_seconds: float,
) -> None:
    _log.info("leads %s", name)
    metrics.LEADER.labels(name).set(1)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch(connection, lease_seconds), name=f"watch the lock of {name}")
            group.create_task(_as_coroutine(work(connection)), name=name)
    finally:
        metrics.LEADER.labels(name).set(0)
        _log.info("no longer leads %s", name)


async def _watch(connection: pg.Connection, lease_seconds: float) -> NoReturn:
    """Keeps the session that holds the lock; raises UnavailableError once it is gone, or may be."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        with pg.translating():
            await connection.fetchval("select 1", timeout=lease_seconds)


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work
