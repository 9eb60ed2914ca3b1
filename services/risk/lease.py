"""Who leads: an advisory lock on its own connection, and a fencing token; what the leader does it does not know."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from services.common import pg
from services.common.errors import UnavailableError
from services.risk.queries import QUERIES

_log = logging.getLogger(__name__)

LEADER_LOCK: Final = 0x7269_736B_6C65_6164
_RENEWALS_PER_LEASE: Final = 3
_CLOSE_SECONDS: Final = 2.0
_TOKEN_SECONDS: Final = 60.0


class Lease:
    """The lead, as long as it is held. `token` is higher than that of every leader before."""

    def __init__(
        self, connection: asyncpg.Connection[asyncpg.Record], token: int, lease_seconds: float
    ) -> None:
        self._connection = connection
        self._lease_seconds = lease_seconds
        self.token = token

    async def hold(self) -> None:
        """Renews the lease until that fails; never returns.

        Raises:
            UnavailableError: the lead is lost, or may be: the database did not answer within the lease.
        """
        while True:
            await asyncio.sleep(self._lease_seconds / _RENEWALS_PER_LEASE)
            with pg.translating():
                async with asyncio.timeout(self._lease_seconds / _RENEWALS_PER_LEASE):
                    renewed = await self._connection.fetchval(QUERIES.renew_lease, self.token)
            if renewed is None:
                raise UnavailableError("another process leads", reason="FENCED")


@asynccontextmanager
async def leading(
    url: str, *, role: str | None, lease_seconds: float, retry_seconds: float
) -> AsyncIterator[Lease]:
    """Waits for the lead and keeps it for the block.

    A leader whose process ends loses the lock with its connection, at once. One that hangs or is cut off loses it when
    PostgreSQL ends its silent session, after `lease_seconds`. Raising the token waits until no transaction of the
    leader before holds it.

    Raises:
        UnavailableError: the database does not answer.
    """
    with pg.translating():
        connection = await asyncpg.connect(
            url,
            timeout=lease_seconds,
            command_timeout=lease_seconds,
            server_settings=_session(role, lease_seconds),
        )
        try:
            while True:
                if await connection.fetchval(QUERIES.try_lead, LEADER_LOCK):
                    break
                # The lock is another process's: nothing here could wake us.
                await asyncio.sleep(min(retry_seconds, lease_seconds / 2) * random.uniform(0.5, 1.0))
            # May wait for a transaction of the leader before, which PostgreSQL ends when it is idle for long.
            token = await connection.fetchval(QUERIES.raise_token, _holder(), timeout=_TOKEN_SECONDS)
            yield Lease(connection, token, lease_seconds)
        finally:
            await _close(connection)


def _session(role: str | None, lease_seconds: float) -> dict[str, str]:
    session = {
        "application_name": "risk detector lease",
        "idle_session_timeout": str(int(lease_seconds * 1_000)),
        "tcp_keepalives_idle": str(max(1, int(lease_seconds))),
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
    }
    return session | ({"role": role} if role else {})


def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


async def _close(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        _log.debug("the lease's connection did not close in order: %s", error)
        connection.terminate()
