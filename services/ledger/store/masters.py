"""Masters and their signing keys in PostgreSQL; secrets are sealed before they get there."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from services.common import pg, sql
from services.common.errors import NotFoundError
from services.ledger.domain import masters, pagination
from services.ledger.domain.events import SigningKeyChanged
from services.ledger.domain.masters import AccountMode, Claim, Master, NewMaster, SigningKey
from services.ledger.domain.requests import RequestKey
from services.ledger.store import idempotency, outbox
from services.ledger.store.pages import Page, PageRequest, page_of
from services.ledger.store.sealing import Sealed, Sealer

_LISTING: Final = "masters"


@dataclass(frozen=True, slots=True)
class _Queries:
    next_id: str
    owner_exists: str
    insert: str
    get: str
    page: str
    lock: str
    insert_key: str
    get_key: str
    end_older_keys: str
    revoke_key: str
    authorize: str


_queries = sql.bind(_Queries, __package__ or "", "masters.sql")


@dataclass(frozen=True, slots=True)
class Authorization:
    """What a session of a master needs; it must end at `expires_at`."""

    master: Master
    secret: bytes
    license_id: UUID
    expires_at: datetime
    archived: tuple[int, int]
    """(epoch, sequence) of the last position that is archived; zeros for none."""


class MasterStore:
    """Makes masters and keys, and resolves logins. All calls raise UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool, sealer: Sealer) -> None:
        self._pool = pool
        self._sealer = sealer

    async def create(self, key: RequestKey, new: NewMaster) -> tuple[Master, SigningKey]:
        """Makes a master and its first key. A repeat returns the same; after a day without the secret.

        Raises:
            NotFoundError: no such owner. AbortedError: the key was used with another body.
        """
        async with self._pool.transaction() as connection:
            master_id = await connection.fetchval(_queries.next_id)
            earlier = await idempotency.claim(connection, key, str(master_id))
            if earlier is not None:
                master = await _get(connection, int(earlier.result))
                return master, await self._shown(connection, master.master_id, "k1", earlier.age)
            if not await connection.fetchval(_queries.owner_exists, new.owner_user_id):
                raise NotFoundError("no such owner", reason="USER_NOT_FOUND")
            await connection.execute(
                _queries.insert,
                master_id,
                new.owner_user_id,
                new.display_name,
                new.account_mode,
                new.signals_per_second_max,
                new.signal_age_us_max,
            )
            made = await self._insert_key(connection, master_id, number=1)
            return await _get(connection, master_id), made

    async def get(self, master_id: int) -> Master:
        """One master.

        Raises:
            NotFoundError: there is none.
        """
        async with self._pool.connection() as connection:
            return await _get(connection, master_id)

    async def page(self, request: PageRequest) -> Page[Master]:
        """Masters in ascending order of master_id.

        Raises:
            InvalidInputError: the token is not one of this listing.
        """
        last = pagination.key_of(request.token, _LISTING, ()) or (0,)
        rows = await self._pool.fetch(_queries.page, int(last[0]), request.size + 1)
        return page_of(
            [_master(row) for row in rows], request.size, _LISTING, (), lambda master: (master.master_id,)
        )

    async def rotate_key(self, key: RequestKey, master_id: int, *, overlap: timedelta) -> SigningKey:
        """Makes a new key and ends the others after the overlap. A repeat returns the same; after a day without secret.

        Raises:
            NotFoundError: no such master. AbortedError: the key was used with another body.
        """
        async with self._pool.transaction() as connection:
            row = await connection.fetchrow(_queries.lock, master_id)
            if row is None:
                raise NotFoundError("no such master", reason="MASTER_NOT_FOUND")
            number = row["key_count"] + 1
            earlier = await idempotency.claim(connection, key, _key_id(number))
            if earlier is not None:
                return await self._shown(connection, master_id, earlier.result, earlier.age)
            made = await self._insert_key(connection, master_id, number=number)
            ends = row["read_at"] + overlap
            ended = await connection.fetch(_queries.end_older_keys, master_id, made.key_id, ends)
            await outbox.add(
                connection,
                [SigningKeyChanged(master_id, old["key_id"], False, old["expires_at"]) for old in ended],
            )
            return made

    async def revoke_key(self, master_id: int, key_id: str) -> None:
        """Ends a key now; a repeat changes nothing.

        Raises:
            NotFoundError: no such key.
        """
        async with self._pool.transaction() as connection:
            revoked = await connection.fetchrow(_queries.revoke_key, master_id, key_id)
            if revoked is not None:
                await outbox.add(
                    connection, [SigningKeyChanged(master_id, key_id, True, revoked["expires_at"])]
                )
            elif await connection.fetchrow(_queries.get_key, master_id, key_id) is None:
                raise NotFoundError("no such master or key", reason="KEY_NOT_FOUND")

    async def authorize(self, master_id: int, key_id: str, token_sha256: bytes) -> Authorization:
        """Resolves a login's claim: master, key and license together; one statement.

        Raises:
            NotFoundError: one of them is unknown, or the license is not the owner's.
            FailedPreconditionError: with reason LICENSE_EXPIRED, LICENSE_REVOKED, KEY_REVOKED or MASTER_SUSPENDED.
        """
        row = await self._pool.fetchrow(_queries.authorize, master_id, key_id, token_sha256)
        if row is None:
            raise NotFoundError("no such master, key or license")
        ends = masters.session_end(_claim(row), row["read_at"])
        sealed = Sealed(row["sealed_secret"], row["sealing_key_id"])
        secret = self._sealer.open(sealed, master_id=master_id, key_id=key_id)
        archived = row["archived_epoch"], row["archived_sequence"]
        return Authorization(_master(row), secret, row["license_id"], ends, archived)

    async def _insert_key(self, connection: pg.Connection, master_id: int, *, number: int) -> SigningKey:
        made = SigningKey(_key_id(number), secrets.token_bytes(masters.SECRET_BYTES))
        sealed = self._sealer.seal(made.secret, master_id=master_id, key_id=made.key_id)
        await connection.execute(
            _queries.insert_key, master_id, made.key_id, sealed.ciphertext, sealed.sealing_key_id
        )
        return made

    async def _shown(
        self, connection: pg.Connection, master_id: int, key_id: str, age: timedelta
    ) -> SigningKey:
        """A key for the answer to a repeat."""
        row = await connection.fetchrow(_queries.get_key, master_id, key_id)
        if row is None or age > masters.SECRET_SHOWN_FOR:
            return SigningKey(key_id, b"")
        sealed = Sealed(row["sealed_secret"], row["sealing_key_id"])
        return SigningKey(key_id, self._sealer.open(sealed, master_id=master_id, key_id=key_id))


def _key_id(number: int) -> str:
    # Short, because people type it into a terminal's settings.
    return f"k{number}"


async def _get(connection: pg.Connection, master_id: int) -> Master:
    row = await connection.fetchrow(_queries.get, master_id)
    if row is None:
        raise NotFoundError("no such master", reason="MASTER_NOT_FOUND")
    return _master(row)


def _master(row: asyncpg.Record) -> Master:
    return Master(
        row["master_id"],
        row["owner_user_id"],
        row["display_name"],
        AccountMode(row["account_mode"]),
        row["signals_per_second_max"],
        row["signal_age_us_max"],
        row["created_at"],
    )


def _claim(row: asyncpg.Record) -> Claim:
    return Claim(
        owner_user_id=row["owner_user_id"],
        suspended_at=row["suspended_at"],
        key_expires_at=row["key_expires_at"],
        key_revoked_at=row["key_revoked_at"],
        license_user_id=row["license_user_id"],
        license_expires_at=row["license_expires_at"],
        license_revoked_at=row["license_revoked_at"],
    )
