"""The books: what the calls do, and what the database refuses whoever asks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from execution.ledger.v1 import billing_service_pb2 as pb
from services.common.errors import AbortedError, NotFoundError, OutOfRangeError
from tests.integration.ledger.ledger_service import LedgerClient, refused, superuser, unique


def journal(
    key: str, *entries: tuple[str, int], asset: str = "USD", description: str = "a journal"
) -> pb.PostJournalRequest:
    return pb.PostJournalRequest(
        idempotency_key=key,
        description=description,
        entries=[pb.Entry(account=account, asset=asset, amount_e8=amount) for account, amount in entries],
    )


async def post(ledger: LedgerClient, request: pb.PostJournalRequest) -> pb.PostJournalResponse:
    return await ledger.call("BillingService/PostJournal", request)


async def balance(ledger: LedgerClient, account: str, asset: str = "USD", as_of: datetime | None = None):
    request = pb.GetBalanceRequest(account=account, asset=asset)
    if as_of is not None:
        request.as_of.FromDatetime(as_of)
    answer = await ledger.call("BillingService/GetBalance", request)
    return answer.balance_e8, answer.entry_count


async def test_a_posted_journal_moves_the_balances_of_its_accounts(ledger: LedgerClient) -> None:
    answer = await post(
        ledger, journal(unique(), ("user:a", 700), ("platform:revenue", -500), ("user:b", -200))
    )
    assert not answer.replayed
    assert answer.journal.journal_id > 0
    assert await balance(ledger, "user:a") == (700, 1)
    assert await balance(ledger, "platform:revenue") == (-500, 1)
    assert await balance(ledger, "user:a", "EUR") == (0, 0)


async def test_one_account_may_have_several_entries_and_several_assets(ledger: LedgerClient) -> None:
    request = journal(unique(), ("user:a", 5), ("user:a", 6), ("user:b", -11))
    request.entries.extend(
        [
            pb.Entry(account="user:a", asset="BTC", amount_e8=-1),
            pb.Entry(account="user:b", asset="BTC", amount_e8=1),
        ]
    )
    await post(ledger, request)
    assert await balance(ledger, "user:a") == (11, 2)
    assert await balance(ledger, "user:a", "BTC") == (-1, 1)


async def test_a_retry_with_the_same_key_posts_once_even_at_the_same_moment(ledger: LedgerClient) -> None:
    request = journal("key", ("user:a", 1), ("user:b", -1))
    answers = await asyncio.gather(*(post(ledger, request) for _ in range(10)))
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 9
    assert len({answer.journal.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert await balance(ledger, "user:a") == (1, 1)


async def test_the_same_key_with_another_body_is_aborted(ledger: LedgerClient) -> None:
    await post(ledger, journal("key", ("user:a", 1), ("user:b", -1)))
    error = await refused(post(ledger, journal("key", ("user:a", 2), ("user:b", -2))))
    assert (type(error), error.retryable) == (AbortedError, False)
    assert await balance(ledger, "user:a") == (1, 1)


async def test_balances_can_be_asked_for_a_moment_in_the_past(ledger: LedgerClient) -> None:
    first = (await post(ledger, journal(unique(), ("user:a", 1), ("user:b", -1)))).journal
    await post(ledger, journal(unique(), ("user:a", 10), ("user:b", -10)))
    at_first = first.posted_at.ToDatetime(UTC)
    assert await balance(ledger, "user:a", as_of=at_first) == (1, 1)
    assert await balance(ledger, "user:a", as_of=at_first - timedelta(microseconds=1)) == (0, 0)
    assert await balance(ledger, "user:a", as_of=datetime.now(UTC) + timedelta(days=1)) == (11, 2)


async def test_an_account_that_was_never_opened_has_no_balance(ledger: LedgerClient) -> None:
    assert isinstance(await refused(balance(ledger, "user:nobody")), NotFoundError)


async def test_amounts_of_the_whole_range_balance(ledger: LedgerClient) -> None:
    largest = 2**63 - 1
    await post(ledger, journal(unique(), ("user:a", largest), ("user:b", -largest)))
    assert await balance(ledger, "user:b") == (-largest, 1)
    report = await ledger.call("BillingService/CheckBooks", pb.CheckBooksRequest())
    assert report.balanced


async def test_a_balance_beyond_an_int64_is_told_in_the_error(ledger: LedgerClient) -> None:
    largest = 2**63 - 1
    for _ in range(2):
        await post(ledger, journal(unique(), ("user:a", largest), ("user:b", -largest)))
    error = await refused(balance(ledger, "user:b"))
    assert (type(error), error.reason) == (OutOfRangeError, "BALANCE_TOO_LARGE")
    assert error.metadata["balance_e8"] == str(-2 * largest)
    report = await ledger.call("BillingService/CheckBooks", pb.CheckBooksRequest())
    assert report.balanced


async def test_journals_are_listed_in_order_of_posting_and_by_account(ledger: LedgerClient) -> None:
    made = []
    for number in range(6):
        account = "user:even" if number % 2 == 0 else "user:odd"
        posted = await post(ledger, journal(unique(), (account, 1), (account, 1), ("platform:revenue", -2)))
        made.append(posted.journal)

    async def listed(account: str = "") -> list[pb.Journal]:
        found, token = [], ""
        while True:
            request = pb.ListJournalsRequest(page_size=2, page_token=token, account=account)
            page = await ledger.call("BillingService/ListJournals", request)
            found += page.journals
            token = page.next_page_token
            if not token:
                return found

    assert await listed() == made
    assert await listed("user:odd") == made[1::2]
    assert await listed("platform:revenue") == made
    assert await listed("user:nobody") == []


async def test_the_check_counts_everything_there_is(ledger: LedgerClient) -> None:
    for number in range(1, 4):
        await post(ledger, journal(unique(), ("user:a", number), ("user:b", -number)))
    await post(ledger, journal(unique(), ("user:a", 5), ("user:b", -5), asset="EUR"))
    report = await ledger.call("BillingService/CheckBooks", pb.CheckBooksRequest())
    assert (report.balanced, report.journal_count) == (True, 4)
    assert list(report.unbalanced_journal_ids) == []
    assert [(one.asset, one.sum_e8, one.entry_count) for one in report.totals] == [
        ("EUR", 0, 2),
        ("USD", 0, 6),
    ]


async def test_the_check_finds_a_journal_that_was_forged_in_the_database(
    ledger: LedgerClient, fresh_database: str
) -> None:
    posted = (await post(ledger, journal(unique(), ("user:a", 3), ("user:b", -3)))).journal
    async with superuser(fresh_database) as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute("update ledger.billing_ledger set amount_e8 = 4 where amount_e8 = 3")
    report = await ledger.call("BillingService/CheckBooks", pb.CheckBooksRequest())
    assert not report.balanced
    assert list(report.unbalanced_journal_ids) == [posted.journal_id]
    assert report.totals[0].sum_e8 == 1


async def test_the_check_tells_of_forged_sums_beyond_an_int64(
    ledger: LedgerClient, fresh_database: str
) -> None:
    for _ in range(2):
        await post(ledger, journal(unique(), ("user:a", 3), ("user:b", -3)))
    async with superuser(fresh_database) as connection:
        await connection.execute("set session_replication_role = replica")
        await connection.execute("update ledger.billing_ledger set amount_e8 = 9223372036854775807")
    report = await ledger.call("BillingService/CheckBooks", pb.CheckBooksRequest())
    assert not report.balanced
    assert report.totals[0].sum_e8 == 2**63 - 1


INSERT_JOURNAL = """
insert into ledger.journals (idempotency_key, body_sha256, description)
values ($1, decode(repeat('00', 32), 'hex'), 'by hand') returning journal_id
"""
INSERT_ENTRY = """
insert into ledger.billing_ledger (journal_id, entry_number, account_id, asset, amount_e8)
values ($1, $2, (select min(account_id) from ledger.accounts), $3, $4)
"""


async def post_by_hand(connection: asyncpg.Connection, entries: list[tuple[str, int]]) -> None:
    async with connection.transaction():
        journal_id = await connection.fetchval(INSERT_JOURNAL, unique())
        for number, (asset, amount) in enumerate(entries, 1):
            await connection.execute(INSERT_ENTRY, journal_id, number, asset, amount)


@pytest.mark.parametrize(
    ("entries", "constraint"),
    [
        ([], "journal_has_entries"),
        ([("USD", 1)], "journal_has_entries"),
        ([("USD", 1), ("USD", -2)], "journal_sums_to_zero"),
        ([("USD", 1), ("EUR", -1)], "journal_sums_to_zero"),
    ],
)
@pytest.mark.parametrize("role", ["ledger_service", "ledger_owner", "postgres"])
async def test_the_database_refuses_a_journal_that_is_none(
    ledger: LedgerClient, fresh_database: str, entries: list[tuple[str, int]], constraint: str, role: str
) -> None:
    await post(ledger, journal(unique(), ("user:a", 1), ("user:b", -1)))
    async with superuser(fresh_database) as connection:
        await connection.execute(f"set role {role if role != 'postgres' else 'none'}")
        with pytest.raises(asyncpg.CheckViolationError) as raised:
            await post_by_hand(connection, entries)
        assert raised.value.constraint_name == constraint


async def test_the_database_refuses_entries_in_a_journal_that_is_posted(
    ledger: LedgerClient, fresh_database: str
) -> None:
    posted = (await post(ledger, journal(unique(), ("user:a", 1), ("user:b", -1)))).journal
    async with superuser(fresh_database) as connection:
        with pytest.raises(asyncpg.CheckViolationError) as raised:
            await connection.execute(
                "insert into ledger.billing_ledger select journal_id, entry_number + 10, account_id, asset, amount_e8"
                " from ledger.billing_ledger where journal_id = $1",
                posted.journal_id,
            )
        assert raised.value.constraint_name == "journal_is_closed"


@pytest.mark.parametrize("table", ["journals", "billing_ledger", "accounts"])
@pytest.mark.parametrize("statement", ["delete from ledger.{}", "truncate ledger.{} cascade"])
async def test_the_books_are_append_only_for_everybody(
    ledger: LedgerClient, fresh_database: str, table: str, statement: str
) -> None:
    await post(ledger, journal(unique(), ("user:a", 1), ("user:b", -1)))
    async with superuser(fresh_database) as connection:
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute(statement.format(table))
        await connection.execute("set role ledger_service")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "update ledger.journals set description = 'changed'",
        "update ledger.billing_ledger set amount_e8 = 1",
        "update ledger.accounts set name = 'changed'",
    ],
)
async def test_nothing_in_the_books_can_be_changed(
    ledger: LedgerClient, fresh_database: str, statement: str
) -> None:
    await post(ledger, journal(unique(), ("user:a", 1), ("user:b", -1)))
    async with superuser(fresh_database) as connection:
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute(statement)


async def test_an_unset_time_is_now_and_a_set_one_is_not(ledger: LedgerClient) -> None:
    await post(ledger, journal(unique(), ("user:a", 1), ("user:b", -1)))
    request = pb.GetBalanceRequest(account="user:a", asset="USD", as_of=Timestamp())
    answer = await ledger.call("BillingService/GetBalance", request)
    assert (answer.balance_e8, answer.entry_count) == (0, 0)
