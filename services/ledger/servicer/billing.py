"""BillingService over the books."""

from __future__ import annotations

from execution.ledger.v1 import billing_service_pb2 as pb
from execution.ledger.v1 import billing_service_pb2_grpc
from services.common.rpc import Context
from services.ledger.domain import fields, journals
from services.ledger.domain.journals import BooksReport, Entry, Journal, NewJournal
from services.ledger.servicer import convert
from services.ledger.store.billing import BillingStore


class BillingServicer(billing_service_pb2_grpc.BillingServiceServicer):
    """See the contract."""

    def __init__(self, books: BillingStore) -> None:
        self._books = books

    async def PostJournal(self, request: pb.PostJournalRequest, context: Context) -> pb.PostJournalResponse:
        """See the contract."""
        posted = await self._books.post(new_journal_from_pb(request))
        return pb.PostJournalResponse(journal=journal_to_pb(posted.journal), replayed=posted.replayed)

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.GetBalanceResponse:
        """See the contract."""
        as_of = convert.datetime_of(request.as_of, "as_of") if request.HasField("as_of") else None
        balance = await self._books.balance(
            journals.account_of(request.account), journals.asset_of(request.asset), as_of
        )
        return pb.GetBalanceResponse(balance_e8=balance.balance_e8, entry_count=balance.entry_count)

    async def ListJournals(
        self, request: pb.ListJournalsRequest, context: Context
    ) -> pb.ListJournalsResponse:
        """See the contract."""
        account = journals.account_of(request.account) if request.account else None
        page = await self._books.page(account, convert.page_of(request))
        return pb.ListJournalsResponse(
            journals=map(journal_to_pb, page.items), next_page_token=page.next_token
        )

    async def CheckBooks(self, request: pb.CheckBooksRequest, context: Context) -> pb.CheckBooksResponse:
        """See the contract."""
        return report_to_pb(await self._books.check())


def new_journal_from_pb(request: pb.PostJournalRequest) -> NewJournal:
    """The journal to post.

    Raises:
        InvalidInputError: a field is wrong, or the entries do not make a journal.
    """
    key = convert.key_of(request, journals.idempotency_key_of(request.idempotency_key))
    description = fields.text_of(
        request.description, "description", characters_max=journals.DESCRIPTION_CHARACTERS_MAX
    )
    entries = [Entry(entry.account, entry.asset, entry.amount_e8) for entry in request.entries]
    return NewJournal(key, description, journals.checked_entries(entries))


def journal_to_pb(journal: Journal) -> pb.Journal:
    """The journal as message."""
    return pb.Journal(
        journal_id=journal.journal_id,
        idempotency_key=journal.idempotency_key,
        description=journal.description,
        entries=(
            pb.Entry(account=entry.account, asset=entry.asset, amount_e8=entry.amount_e8)
            for entry in journal.entries
        ),
        posted_at=convert.timestamp_to_pb(journal.posted_at),
    )


def report_to_pb(report: BooksReport) -> pb.CheckBooksResponse:
    """The report as message."""
    return pb.CheckBooksResponse(
        balanced=report.balanced,
        journal_count=report.journal_count,
        unbalanced_journal_ids=report.unbalanced_journal_ids,
        totals=(
            pb.AssetTotal(asset=total.asset, sum_e8=_shown(total.sum_e8), entry_count=total.entry_count)
            for total in report.totals
        ),
    )


def _shown(sum_e8: int) -> int:
    # Sound books sum to zero; of unsound ones it is enough to see which way and that it is much.
    return max(-fields.INT64_MAX, min(sum_e8, fields.INT64_MAX))
