"""Users in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from services.common import pg, sql
from services.common.clock import datetime_from_us, us_from_datetime
from services.common.errors import AlreadyExistsError, NotFoundError
from services.ledger.domain import pagination
from services.ledger.domain.requests import RequestKey
from services.ledger.domain.users import NewUser, User
from services.ledger.store import idempotency
from services.ledger.store.pages import Page, PageRequest, page_of

_LISTING: Final = "users"


@dataclass(frozen=True, slots=True)
class _Queries:
    insert: str
    get: str
    page: str


_queries = sql.bind(_Queries, __package__ or "", "users.sql")


class UserStore:
    """Makes and reads users. All calls raise UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool) -> None:
        self._pool = pool

    async def create(self, key: RequestKey, new: NewUser) -> User:
        """Makes a user with full trust; a repeat returns the one made before.

        Raises:
            AlreadyExistsError: another user has the e-mail address. AbortedError: the key was used with another body.
        """
        user_id = uuid4()
        try:
            async with self._pool.transaction() as connection:
                earlier = await idempotency.claim(connection, key, str(user_id))
                if earlier is not None:
                    return await _get(connection, UUID(earlier.result))
                await connection.execute(_queries.insert, user_id, new.email, new.display_name)
                return await _get(connection, user_id)
        except AlreadyExistsError as error:
            raise AlreadyExistsError("another user has this e-mail address", reason="EMAIL_TAKEN") from error

    async def get(self, user_id: UUID) -> User:
        """One user.

        Raises:
            NotFoundError: there is none.
        """
        async with self._pool.connection() as connection:
            return await _get(connection, user_id)

    async def page(self, request: PageRequest) -> Page[User]:
        """Users in order of creation.

        Raises:
            InvalidInputError: the token is not one of this listing.
        """
        last = pagination.key_of(request.token, _LISTING, ()) or (0, str(UUID(int=0)))
        after = (datetime_from_us(int(last[0])), UUID(str(last[1])))
        rows = await self._pool.fetch(_queries.page, *after, request.size + 1)
        users = [_user(row) for row in rows]
        return page_of(
            users, request.size, _LISTING, (), lambda u: (us_from_datetime(u.created_at), str(u.user_id))
        )


async def _get(connection: pg.Connection, user_id: UUID) -> User:
    row = await connection.fetchrow(_queries.get, user_id)
    if row is None:
        raise NotFoundError("no such user", reason="USER_NOT_FOUND")
    return _user(row)


def _user(row: asyncpg.Record) -> User:
    return User(
        row["user_id"],
        row["email"],
        row["display_name"],
        row["trust_score"],
        row["trust_version"],
        row["created_at"],
    )
