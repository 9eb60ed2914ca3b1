"""The books in PostgreSQL: posts and reads journals; it has no way to change one."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from services.common import pg, sql
from services.common.errors import NotFoundError, OutOfRangeError
from services.ledger.domain import pagination
from services.ledger.domain.fields import INT64_MAX
from services.ledger.domain.journals import AssetTotal, BooksReport, Entry, Journal, NewJournal
from services.ledger.store.pages import Page, PageRequest, page_of

_LISTING: Final = "journals"
_UNBALANCED_SHOWN_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class _Queries:
    open_accounts: str
    accounts: str
    post: str
    find: str
    entries: str
    page: str
    page_of_account: str
    balance: str
    balance_at: str
    unbalanced: str
    count_journals: str
    totals: str


_queries = sql.bind(_Queries, __package__ or "", "billing.sql")


@dataclass(frozen=True, slots=True)
class Posted:
    """A journal, and whether it had been posted before."""

    journal: Journal
    replayed: bool


@dataclass(frozen=True, slots=True)
class Balance:
    """In 1e-8 of the asset; positive is a debit balance."""

    balance_e8: int
    entry_count: int


class AccountNumbers:
    """Remembers the numbers of accounts, which never change; the least recently used ones are forgotten."""

    def __init__(self, *, accounts_max: int) -> None:
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._accounts_max = accounts_max

    def known(self, names: Iterable[str]) -> dict[str, int]:
        """Those of the names whose number is remembered."""
        found = {name: self._numbers[name] for name in names if name in self._numbers}
        for name in found:
            self._numbers.move_to_end(name)
        return found

    def remember(self, numbers: dict[str, int]) -> None:
        """Keeps numbers that are committed."""
        self._numbers.update(numbers)
        while len(self._numbers) > self._accounts_max:
            self._numbers.popitem(last=False)


class BillingStore:
    """Posts and reads journals. All calls raise UnavailableError while the database is away."""

    def __init__(self, pool: pg.Pool, *, accounts_max: int) -> None:
        self._pool = pool
        self._numbers = AccountNumbers(accounts_max=accounts_max)

    async def post(self, new: NewJournal) -> Posted:
        """Posts a checked journal, whole or not at all; a repeat returns what was posted.

        Raises:
            AbortedError: the key was used with another body.
        """
        names = {entry.account for entry in new.entries}
        numbers = self._numbers.known(names)
        if len(numbers) == len(names):
            async with self._pool.connection() as connection:
                return await _post(connection, new, numbers)
        async with self._pool.transaction() as connection:
            numbers = await _open_accounts(connection, names)
            posted = await _post(connection, new, numbers)
        self._numbers.remember(numbers)
        return posted

    async def balance(self, account: str, asset: str, as_of: datetime | None) -> Balance:
        """An account's balance, from its entries posted up to `as_of` (None: now).

        Raises:
            NotFoundError: no such account. OutOfRangeError: the balance is more than an int64 holds.
        """
        if as_of is None:
            row = await self._pool.fetchrow(_queries.balance, account, asset)
        else:
            row = await self._pool.fetchrow(_queries.balance_at, account, asset, as_of)
        if row is None:
            raise NotFoundError("no such account", reason="ACCOUNT_NOT_FOUND")
        balance_e8 = int(row["balance_e8"])
        if abs(balance_e8) > INT64_MAX:
            raise OutOfRangeError(
                f"the balance is {balance_e8}, more than its field can hold",
                reason="BALANCE_TOO_LARGE",
                metadata={"balance_e8": str(balance_e8)},
            )
        return Balance(balance_e8, row["entry_count"])

    async def page(self, account: str | None, request: PageRequest) -> Page[Journal]:
        """Journals in order of posting, or those that touch an account.

        Raises:
            InvalidInputError: the token is not one of this listing.
        """
        filters = (account or "",)
        last = pagination.key_of(request.token, _LISTING, filters) or (0,)
        after, limit = int(last[0]), request.size + 1
        async with self._pool.connection() as connection:
            if account is None:
                rows = await connection.fetch(_queries.page, after, limit)
            else:
                rows = await connection.fetch(_queries.page_of_account, after, limit, account)
            journals = await _with_entries(connection, rows)
        return page_of(journals, request.size, _LISTING, filters, lambda journal: (journal.journal_id,))

    async def check(self) -> BooksReport:
        """Recomputes all sums from the entries, as of one moment."""
        async with self._pool.transaction(isolation="repeatable_read", readonly=True) as connection:
            unbalanced = await connection.fetch(_queries.unbalanced, _UNBALANCED_SHOWN_MAX)
            totals = await connection.fetch(_queries.totals)
            journal_count = await connection.fetchval(_queries.count_journals)
        return BooksReport(
            journal_count,
            tuple(dict.fromkeys(row["journal_id"] for row in unbalanced)),
            tuple(AssetTotal(row["asset"], int(row["sum_e8"]), row["entry_count"]) for row in totals),
        )


async def post_in(connection: pg.Connection, new: NewJournal) -> Posted:
    """Posts a checked journal as part of the transaction of `connection`.

    Raises:
        AbortedError: the key was used with another body.
    """
    return await _post(
        connection, new, await _open_accounts(connection, {entry.account for entry in new.entries})
    )


async def _open_accounts(connection: pg.Connection, names: set[str]) -> dict[str, int]:
    rows = await connection.fetch(_queries.accounts, list(names))
    if len(rows) < len(names):
        await connection.execute(_queries.open_accounts, sorted(names))
        rows = await connection.fetch(_queries.accounts, list(names))
    return {row["name"]: row["account_id"] for row in rows}


async def _post(connection: pg.Connection, new: NewJournal, numbers: dict[str, int]) -> Posted:
    row = await connection.fetchrow(
        _queries.post,
        new.key.request_id,
        new.key.body_sha256,
        new.description,
        [numbers[entry.account] for entry in new.entries],
        [entry.asset for entry in new.entries],
        [entry.amount_e8 for entry in new.entries],
    )
    if row is None:
        return await _find(connection, new)
    journal = Journal(row["journal_id"], new.key.request_id, new.description, new.entries, row["posted_at"])
    return Posted(journal, replayed=False)


async def _find(connection: pg.Connection, new: NewJournal) -> Posted:
    row = await connection.fetchrow(_queries.find, new.key.request_id)
    assert row is not None, "journals are never deleted"
    new.key.require_same_body(row["body_sha256"])
    (journal,) = await _with_entries(connection, [row])
    return Posted(journal, replayed=True)


async def _with_entries(connection: pg.Connection, rows: Sequence[asyncpg.Record]) -> list[Journal]:
    found = await connection.fetch(_queries.entries, [row["journal_id"] for row in rows])
    by_journal: defaultdict[int, list[Entry]] = defaultdict(list)
    for entry in found:
        by_journal[entry["journal_id"]].append(Entry(entry["name"], entry["asset"], entry["amount_e8"]))
    return [
        Journal(
            row["journal_id"],
            row["idempotency_key"],
            row["description"],
            tuple(by_journal[row["journal_id"]]),
            row["posted_at"],
        )
        for row in rows
    ]
