"""What became of subscriptions, line by line, in PostgreSQL; lines are added with the change and never altered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from services.common import pg, sql
from services.common.errors import NotFoundError
from services.ledger.domain import pagination
from services.ledger.domain.fields import INT64_MAX
from services.ledger.domain.subscriptions import Transition, TransitionKind
from services.ledger.store.pages import Page, PageRequest, page_of

_LISTING: Final = "transitions"


@dataclass(frozen=True, slots=True)
class _Queries:
    add: str
    exists: str
    page: str


_queries = sql.bind(_Queries, __package__ or "", "transitions.sql")


@dataclass(frozen=True, slots=True)
class NewTransition:
    """One line to add; the values are SyncStates for sync, PauseScopes else."""

    subscription_id: UUID
    change: Literal["created", "pause", "cancelled", "sync"]
    before: int
    after: int
    reason: str


async def add(connection: pg.Connection, lines: Sequence[NewTransition]) -> None:
    """Adds lines, as of now, in the transaction of `connection`."""
    if not lines:
        return
    await connection.execute(
        _queries.add,
        [one.subscription_id for one in lines],
        [one.change for one in lines],
        [one.before for one in lines],
        [one.after for one in lines],
        [one.reason for one in lines],
    )


class TransitionStore:
    """Reads the lines. Raises UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool) -> None:
        self._pool = pool

    async def page(self, subscription_id: UUID, request: PageRequest) -> Page[Transition]:
        """The transitions of one subscription, newest first.

        Raises:
            NotFoundError: no such subscription. InvalidInputError: the token is not one of this listing.
        """
        filters = (str(subscription_id),)
        last = pagination.key_of(request.token, _LISTING, filters) or (INT64_MAX,)
        async with self._pool.connection() as connection:
            if not await connection.fetchval(_queries.exists, subscription_id):
                raise NotFoundError("no such subscription", reason="SUBSCRIPTION_NOT_FOUND")
            rows = await connection.fetch(_queries.page, subscription_id, int(last[0]), request.size + 1)
        found = [
            Transition(
                row["history_id"],
                row["changed_at"],
                TransitionKind[row["change"].upper()],
                row["old_value"],
                row["new_value"],
                row["reason"],
            )
            for row in rows
        ]
        return page_of(found, request.size, _LISTING, filters, lambda one: (one.history_id,))
