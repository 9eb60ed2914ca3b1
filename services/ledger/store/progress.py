"""How far subscribers have come, whether they are in step, and the full syncs that were asked for, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.common import pg, sql
from services.ledger.domain import pagination
from services.ledger.domain.events import FullSyncRequested
from services.ledger.domain.subscriptions import FullSyncFilter, SubscriberPosition
from services.ledger.store import outbox, transitions
from services.ledger.store.pages import Page, PageRequest, page_of
from services.ledger.store.transitions import NewTransition

_LISTING: Final = "full syncs"
_RESYNCING: Final = 3


@dataclass(frozen=True, slots=True)
class _Queries:
    record: str
    lock_for_full_sync: str
    ask_for_full_sync: str


_queries = sql.bind(_Queries, __package__ or "", "progress.sql")


class ProgressStore:
    """Both calls may be repeated, and raise UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool) -> None:
        self._pool = pool

    async def record(self, positions: Sequence[SubscriberPosition]) -> int:
        """Stores how far subscribers have come; how many of them have an active subscription. One statement.

        Of one user and master there must be one position at most.
        """
        turns = [
            (number, one) for number, position in enumerate(positions, 1) for one in position.transitions
        ]
        found = await self._pool.fetchval(
            _queries.record,
            [one.user_id for one in positions],
            [one.master_id for one in positions],
            [one.acknowledged[0] if one.acknowledged else 0 for one in positions],
            [one.acknowledged[1] if one.acknowledged else 0 for one in positions],
            [one.full_sync_done for one in positions],
            [number for number, _ in turns],
            [turn.sync_state for _, turn in turns],
            [turn.reason for _, turn in turns],
            [turn.changed_at for _, turn in turns],
            [turn.position[0] if turn.position else 0 for _, turn in turns],
            [turn.position[1] if turn.position else 0 for _, turn in turns],
        )
        return int(found)

    async def ask_for_full_syncs(
        self, wanted: FullSyncFilter, reason: str, request: PageRequest
    ) -> Page[UUID]:
        """Asks for a full sync of a page of active subscriptions, unless one is due already; their ids.

        Raises:
            InvalidInputError: the token is not one of this listing.
        """
        filters = (str(wanted.subscription_id or ""), str(wanted.user_id or ""), wanted.master_id or 0)
        last = pagination.key_of(request.token, _LISTING, filters) or (str(UUID(int=0)),)
        async with self._pool.transaction() as connection:
            rows = await connection.fetch(
                _queries.lock_for_full_sync,
                UUID(str(last[0])),
                request.size + 1,
                wanted.subscription_id,
                wanted.user_id,
                wanted.master_id,
            )
            fresh = {row["subscription_id"]: row for row in rows[: request.size] if not row["is_due"]}
            asked = await connection.fetch(_queries.ask_for_full_sync, list(fresh), reason)
            await transitions.add(
                connection,
                [
                    NewTransition(one, "sync", row["sync_state"], _RESYNCING, reason)
                    for one, row in fresh.items()
                ],
            )
            numbers = {row["subscription_id"]: row["full_sync_asked"] for row in asked}
            await outbox.add(
                connection,
                (
                    FullSyncRequested(one, row["user_id"], row["master_id"], numbers[one], reason)
                    for one, row in fresh.items()
                ),
            )
        found = [row["subscription_id"] for row in rows]
        return page_of(found, request.size, _LISTING, filters, lambda one: (str(one),))
