"""Licenses in PostgreSQL; of a token only the SHA-256 ever gets here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from services.common import pg, sql
from services.common.clock import datetime_from_us, us_from_datetime
from services.common.errors import NotFoundError
from services.ledger.domain import licenses, pagination
from services.ledger.domain.events import LicenseChanged
from services.ledger.domain.licenses import License, LicenseState
from services.ledger.domain.requests import RequestKey
from services.ledger.domain.subscriptions import Entitlement, PauseScope
from services.ledger.store import idempotency, outbox
from services.ledger.store.pages import Page, PageRequest, page_of

_LISTING: Final = "licenses"
_LATEST_US: Final = 253_402_300_799_000_000
"""The end of year 9999, behind every license."""


@dataclass(frozen=True, slots=True)
class _Queries:
    insert: str
    user_exists: str
    get: str
    lock: str
    set_expiry: str
    revoke: str
    page: str
    authenticate: str


_queries = sql.bind(_Queries, __package__ or "", "licenses.sql")


@dataclass(frozen=True, slots=True)
class StoredLicense:
    """A license with its state when it was read; `fresh` is false in the answer to a repeat."""

    license: License
    state: LicenseState
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token stands for, and what that user follows, in ascending order of master_id."""

    user_id: UUID
    license_id: UUID
    expires_at: datetime
    entitlements: tuple[Entitlement, ...]


class LicenseStore:
    """Issues, finds and ends licenses. All calls raise UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool) -> None:
        self._pool = pool

    async def issue(
        self, key: RequestKey, user_id: UUID, *, token_sha256: bytes, validity: timedelta
    ) -> StoredLicense:
        """Makes a license with this token; a repeat returns the license made before, whose token is another.

        Raises:
            NotFoundError: no such user. AbortedError: the key was used with another body.
        """
        license_id = uuid4()
        async with self._pool.transaction() as connection:
            earlier = await idempotency.claim(connection, key, str(license_id))
            if earlier is not None:
                return await _get(connection, UUID(earlier.result), fresh=False)
            if not await connection.fetchval(_queries.user_exists, user_id):
                raise NotFoundError("no such user", reason="USER_NOT_FOUND")
            await connection.execute(_queries.insert, license_id, user_id, token_sha256, validity, None)
            return await _get(connection, license_id)

    async def rotate(
        self, key: RequestKey, license_id: UUID, *, token_sha256: bytes, overlap: timedelta
    ) -> StoredLicense:
        """Makes a successor of the same validity and ends the old license after the overlap, if not sooner.

        Raises:
            NotFoundError: no such license. FailedPreconditionError: it was revoked or has expired.
            AbortedError: the key was used with another body.
        """
        successor_id = uuid4()
        async with self._pool.transaction() as connection:
            earlier = await idempotency.claim(connection, key, str(successor_id))
            if earlier is not None:
                return await _get(connection, UUID(earlier.result), fresh=False)
            old, now = await _lock(connection, license_id)
            licenses.require_active(old.expires_at, old.revoked_at, now)
            ends = licenses.end_of_overlap(old.expires_at, now, overlap)
            await connection.execute(_queries.set_expiry, license_id, ends)
            await connection.execute(
                _queries.insert, successor_id, old.user_id, token_sha256, old.validity, license_id
            )
            await outbox.add(connection, [LicenseChanged(license_id, old.user_id, False, ends)])
            return await _get(connection, successor_id)

    async def revoke(self, license_id: UUID, reason: str) -> StoredLicense:
        """Ends a license now; a repeat changes nothing.

        Raises:
            NotFoundError: no such license.
        """
        async with self._pool.transaction() as connection:
            old, _ = await _lock(connection, license_id)
            if old.revoked_at is None:
                await connection.execute(_queries.revoke, license_id, reason)
                await outbox.add(connection, [LicenseChanged(license_id, old.user_id, True, old.expires_at)])
            return await _get(connection, license_id)

    async def page(self, user_id: UUID, request: PageRequest) -> Page[StoredLicense]:
        """A user's licenses, newest first; none for a user that does not exist.

        Raises:
            InvalidInputError: the token is not one of this listing.
        """
        filters = (str(user_id),)
        last = pagination.key_of(request.token, _LISTING, filters) or (_LATEST_US, str(UUID(int=0)))
        before = (datetime_from_us(int(last[0])), UUID(str(last[1])))
        rows = await self._pool.fetch(_queries.page, user_id, *before, request.size + 1)
        found = [_stored(row) for row in rows]
        return page_of(
            found,
            request.size,
            _LISTING,
            filters,
            lambda s: (us_from_datetime(s.license.issued_at), str(s.license.license_id)),
        )

    async def authenticate(self, token_sha256: bytes) -> Identity:
        """Who shows a token with this hash; one statement.

        Raises:
            NotFoundError: nobody's. FailedPreconditionError: with reason LICENSE_EXPIRED or LICENSE_REVOKED.
        """
        row = await self._pool.fetchrow(_queries.authenticate, token_sha256)
        if row is None:
            raise NotFoundError("no such license", reason="LICENSE_NOT_FOUND")
        licenses.require_active(row["expires_at"], row["revoked_at"], row["read_at"])
        return Identity(row["user_id"], row["license_id"], row["expires_at"], _entitlements(row))


def _entitlements(row: asyncpg.Record) -> tuple[Entitlement, ...]:
    if row["master_ids"] is None:
        return ()
    names = ("subscription_ids", "master_ids", "pauses", "versions", "full_syncs_due")
    return tuple(
        Entitlement(one, master, PauseScope(pause), version, full_sync_due)
        for one, master, pause, version, full_sync_due in zip(*(row[name] for name in names), strict=True)
    )


async def _get(connection: pg.Connection, license_id: UUID, *, fresh: bool = True) -> StoredLicense:
    row = await connection.fetchrow(_queries.get, license_id)
    if row is None:
        raise NotFoundError("no such license", reason="LICENSE_NOT_FOUND")
    return _stored(row, fresh=fresh)


async def _lock(connection: pg.Connection, license_id: UUID) -> tuple[License, datetime]:
    row = await connection.fetchrow(_queries.lock, license_id)
    if row is None:
        raise NotFoundError("no such license", reason="LICENSE_NOT_FOUND")
    return _license(row), row["read_at"]


def _stored(row: asyncpg.Record, *, fresh: bool = True) -> StoredLicense:
    found = _license(row)
    return StoredLicense(found, found.state(row["read_at"]), fresh)


def _license(row: asyncpg.Record) -> License:
    return License(
        row["license_id"],
        row["user_id"],
        row["issued_at"],
        row["expires_at"],
        row["revoked_at"],
        row["rotated_from"],
        row["validity"],
    )
