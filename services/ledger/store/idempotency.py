"""Makes changes safe to repeat: the first caller of a key does the work, later ones learn what it made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from services.common import pg, sql
from services.ledger.domain.requests import RequestKey


@dataclass(frozen=True, slots=True)
class _Queries:
    claim: str
    find: str


_queries = sql.bind(_Queries, __package__ or "", "idempotency.sql")


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier call with the same key and body made, and how long ago."""

    result: str
    age: timedelta


async def claim(connection: pg.Connection, key: RequestKey, result: str) -> Earlier | None:
    """Takes the key for this transaction, which is about to make `result`; None if it is the first to do so.

    Waits for a transaction that holds the key. Call it first in the transaction: when that rolls back, the key is free.

    Raises:
        AbortedError: the key was used with another body.
    """
    if (
        await connection.fetchval(_queries.claim, key.operation, key.request_id, key.body_sha256, result)
        is not None
    ):
        return None
    row = await connection.fetchrow(_queries.find, key.operation, key.request_id)
    if row is None:
        # Purged between the two statements; the next attempt claims it.
        return await claim(connection, key, result)
    key.require_same_body(row["body_sha256"])
    return Earlier(row["result"], row["age"])
