"""Subscriptions in PostgreSQL: changes of their life and pause, each with its history and its event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from services.common import pg, sql
from services.common.clock import datetime_from_us, us_from_datetime
from services.common.errors import AlreadyExistsError, NotFoundError
from services.ledger.domain import pagination
from services.ledger.domain.events import LedgerEvent, SubscriptionChanged, TrustChanged
from services.ledger.domain.journals import NewJournal, fee_entries
from services.ledger.domain.requests import RequestKey
from services.ledger.domain.subscriptions import (
    NewSubscription,
    Pause,
    PauseScope,
    Subscription,
    SyncState,
    TrustDecision,
)
from services.ledger.store import billing, idempotency, outbox, transitions
from services.ledger.store.pages import Page, PageRequest, page_of
from services.ledger.store.transitions import NewTransition

_LISTING: Final = "subscriptions"


@dataclass(frozen=True, slots=True)
class _Queries:
    lock_user: str
    lock_user_for_trust: str
    set_trust: str
    master_owner: str
    insert: str
    insert_progress: str
    get: str
    get_many: str
    lock: str
    lock_active_of_user: str
    update_many: str
    cancel: str
    page: str
    page_of_user: str
    page_of_master: str
    page_of_both: str


_queries = sql.bind(_Queries, __package__ or "", "subscriptions.sql")


class SubscriptionStore:
    """Makes, changes and reads subscriptions. All calls raise UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool) -> None:
        self._pool = pool

    async def create(self, key: RequestKey, new: NewSubscription) -> Subscription:
        """Makes a subscription and posts its first fee, together or not at all; a repeat returns the one made before.

        It begins with what risk withholds from the user, so a new subscription is no way around a pause.

        Raises:
            NotFoundError: no such user or master. AlreadyExistsError: the user follows the master already.
            AbortedError: the key was used with another body.
        """
        subscription_id = uuid4()
        try:
            async with self._pool.transaction() as connection:
                earlier = await idempotency.claim(connection, key, str(subscription_id))
                if earlier is not None:
                    return await _get(connection, UUID(earlier.result))
                await _insert(connection, subscription_id, key, new)
                made = await _get(connection, subscription_id)
                await transitions.add(
                    connection,
                    [NewTransition(subscription_id, "created", 0, made.pause.scope, made.pause.reason)],
                )
                await outbox.add(connection, [SubscriptionChanged(made, "created")])
                return made
        except AlreadyExistsError as error:
            raise AlreadyExistsError(
                "the user follows this master already", reason="SUBSCRIPTION_EXISTS"
            ) from error

    async def get(self, subscription_id: UUID) -> Subscription:
        """One subscription.

        Raises:
            NotFoundError: there is none.
        """
        async with self._pool.connection() as connection:
            return await _get(connection, subscription_id)

    async def get_many(self, subscription_ids: Sequence[UUID]) -> tuple[Subscription, ...]:
        """Those of the subscriptions that there are, in order of their ids."""
        rows = await self._pool.fetch(_queries.get_many, subscription_ids)
        return tuple(_subscription(row) for row in rows)

    async def page(
        self, user_id: UUID | None, master_id: int | None, request: PageRequest
    ) -> Page[Subscription]:
        """Subscriptions in order of creation, of a user and of a master where given.

        Raises:
            InvalidInputError: the token is not one of this listing.
        """
        filters = (str(user_id or ""), master_id or 0)
        last = pagination.key_of(request.token, _LISTING, filters) or (0, str(UUID(int=0)))
        after = (datetime_from_us(int(last[0])), UUID(str(last[1])))
        limit = request.size + 1
        if user_id is not None and master_id is not None:
            rows = await self._pool.fetch(_queries.page_of_both, *after, limit, user_id, master_id)
        elif user_id is not None:
            rows = await self._pool.fetch(_queries.page_of_user, *after, limit, user_id)
        elif master_id is not None:
            rows = await self._pool.fetch(_queries.page_of_master, *after, limit, master_id)
        else:
            rows = await self._pool.fetch(_queries.page, *after, limit)
        found = [_subscription(row) for row in rows]
        return page_of(
            found,
            request.size,
            _LISTING,
            filters,
            lambda s: (us_from_datetime(s.created_at), str(s.subscription_id)),
        )

    async def pause(self, subscription_id: UUID, scope: PauseScope, reason: str) -> Subscription:
        """Pauses on an operator's word; a repeat changes nothing.

        Raises:
            NotFoundError: no such subscription. FailedPreconditionError: it was cancelled.
        """
        return await self._change(subscription_id, reason, lambda s, _: s.paused(scope, reason))

    async def resume(self, subscription_id: UUID, reason: str) -> Subscription:
        """Ends all pauses; a repeat changes nothing.

        Raises:
            NotFoundError: no such subscription. FailedPreconditionError: it was cancelled.
        """
        return await self._change(subscription_id, reason, lambda s, _: s.resumed())

    async def cancel(self, subscription_id: UUID, reason: str) -> Subscription:
        """Ends it for good; a repeat changes nothing.

        Raises:
            NotFoundError: no such subscription.
        """
        return await self._change(subscription_id, reason, lambda s, now: s.cancelled(now))

    async def apply_trust(self, decision: TrustDecision) -> tuple[bool, tuple[Subscription, ...]]:
        """Sets a user's score and risk's pause of all its subscriptions: whether it was new, and what changed.

        Raises:
            NotFoundError: no such user.
        """
        async with self._pool.transaction() as connection:
            stored = await connection.fetchval(_queries.lock_user_for_trust, decision.user_id)
            if stored is None:
                raise NotFoundError("no such user", reason="USER_NOT_FOUND")
            if decision.version <= stored:
                return False, ()
            await connection.execute(
                _queries.set_trust,
                decision.user_id,
                decision.trust_score,
                decision.version,
                decision.pause.scope,
                decision.pause.reason,
            )
            rows = await connection.fetch(_queries.lock_active_of_user, decision.user_id)
            before = [_subscription(row) for row in rows]
            after = [one.with_risk_pause(decision.pause) for one in before]
            trust = TrustChanged(decision.user_id, decision.trust_score, decision.version)
            changed = await _write_pauses(connection, before, after, decision.reason, also=[trust])
            return True, changed

    async def _change(
        self, subscription_id: UUID, reason: str, rule: Callable[[Subscription, datetime], Subscription]
    ) -> Subscription:
        async with self._pool.transaction() as connection:
            row = await connection.fetchrow(_queries.lock, subscription_id)
            if row is None:
                raise NotFoundError("no such subscription", reason="SUBSCRIPTION_NOT_FOUND")
            before = _subscription(row)
            after = rule(before, row["read_at"])
            if after.cancelled_at != before.cancelled_at:
                await connection.execute(
                    _queries.cancel, subscription_id, after.cancelled_at, reason, after.version
                )
                await transitions.add(
                    connection, [NewTransition(subscription_id, "cancelled", before.pause.scope, 0, reason)]
                )
                await outbox.add(connection, [SubscriptionChanged(after, reason)])
            else:
                await _write_pauses(connection, [before], [after], reason)
            return after


async def _insert(
    connection: pg.Connection, subscription_id: UUID, key: RequestKey, new: NewSubscription
) -> None:
    user = await connection.fetchrow(_queries.lock_user, new.user_id)
    if user is None:
        raise NotFoundError("no such user", reason="USER_NOT_FOUND")
    owner = await connection.fetchval(_queries.master_owner, new.master_id)
    if owner is None:
        raise NotFoundError("no such master", reason="MASTER_NOT_FOUND")
    await connection.execute(
        _queries.insert,
        subscription_id,
        new.user_id,
        new.master_id,
        user["risk_pause"],
        user["risk_pause_reason"],
    )
    await connection.execute(_queries.insert_progress, subscription_id)
    if new.fee_e8:
        await billing.post_in(connection, _fee_journal(subscription_id, owner, key, new))


def _fee_journal(subscription_id: UUID, owner: UUID, key: RequestKey, new: NewSubscription) -> NewJournal:
    entries = fee_entries(
        subscriber=new.user_id,
        owner=owner,
        fee_e8=new.fee_e8,
        asset=new.fee_asset,
        platform_share_bps=new.platform_share_bps,
    )
    journal_key = RequestKey("PostJournal", f"subscription:{subscription_id}:fee:1", key.body_sha256)
    return NewJournal(journal_key, f"First fee for following master {new.master_id}", entries)


async def _write_pauses(
    connection: pg.Connection,
    before: Sequence[Subscription],
    after: Sequence[Subscription],
    reason: str,
    *,
    also: Sequence[LedgerEvent] = (),
) -> tuple[Subscription, ...]:
    """Writes what differs, with history and events; those whose pause that counts changed."""
    pairs = [(old, new) for old, new in zip(before, after, strict=True) if old is not new]
    if pairs:
        written = [new for _, new in pairs]
        await connection.execute(
            _queries.update_many,
            [one.subscription_id for one in written],
            [one.operator_pause.scope for one in written],
            [one.operator_pause.reason for one in written],
            [one.risk_pause.scope for one in written],
            [one.risk_pause.reason for one in written],
            [one.version for one in written],
        )
    changed = [(old, new) for old, new in pairs if new.version != old.version]
    await transitions.add(
        connection,
        [
            NewTransition(new.subscription_id, "pause", old.pause.scope, new.pause.scope, reason)
            for old, new in changed
        ],
    )
    await outbox.add(connection, [*also, *(SubscriptionChanged(new, reason) for _, new in changed)])
    return tuple(new for _, new in changed)


async def _get(connection: pg.Connection, subscription_id: UUID) -> Subscription:
    row = await connection.fetchrow(_queries.get, subscription_id)
    if row is None:
        raise NotFoundError("no such subscription", reason="SUBSCRIPTION_NOT_FOUND")
    return _subscription(row)


def _subscription(row: asyncpg.Record) -> Subscription:
    return Subscription(
        subscription_id=row["subscription_id"],
        user_id=row["user_id"],
        master_id=row["master_id"],
        operator_pause=Pause(PauseScope(row["operator_pause"]), row["operator_pause_reason"]),
        risk_pause=Pause(PauseScope(row["risk_pause"]), row["risk_pause_reason"]),
        version=row["version"],
        created_at=row["created_at"],
        cancelled_at=row["cancelled_at"],
        acknowledged=(row["acknowledged_epoch"], row["acknowledged_sequence"]),
        sync_state=SyncState(row["sync_state"]),
        sync_reason=row["sync_reason"],
        sync_changed_at=row["sync_changed_at"],
        full_sync_due=row["full_sync_asked"] if row["full_sync_asked"] > row["full_sync_done"] else 0,
    )
