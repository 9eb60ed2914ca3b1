"""Double entry: what a journal must be, and which journal a subscription's fee makes; pure, money is int in 1e-8."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from services.common.errors import InvalidInputError
from services.ledger.domain import fields
from services.ledger.domain.requests import RequestKey

ENTRIES_MIN: Final = 2
ENTRIES_MAX: Final = 100
IDEMPOTENCY_KEY_BYTES_MAX: Final = 128
DESCRIPTION_CHARACTERS_MAX: Final = 200
BASIS_POINTS: Final = 10_000
PLATFORM_REVENUE: Final = "platform:revenue"
_ACCOUNT: Final = re.compile(r"[a-z0-9:._-]{1,100}")
_ASSET: Final = re.compile(r"[A-Z0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Entry:
    """Moves an amount in 1e-8 of an asset: positive debits, negative credits."""

    account: str
    asset: str
    amount_e8: int


@dataclass(frozen=True, slots=True)
class NewJournal:
    """A journal to be posted; checked by `checked`."""

    key: RequestKey
    description: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal that was posted."""

    journal_id: int
    idempotency_key: str
    description: str
    entries: tuple[Entry, ...]
    posted_at: datetime


@dataclass(frozen=True, slots=True)
class AssetTotal:
    """The sum over all entries of one asset; 0 in sound books."""

    asset: str
    sum_e8: int
    entry_count: int


@dataclass(frozen=True, slots=True)
class BooksReport:
    """What a check of the books found."""

    journal_count: int
    unbalanced_journal_ids: tuple[int, ...]
    totals: tuple[AssetTotal, ...]

    @property
    def balanced(self) -> bool:
        """Whether every journal and every asset sums to zero."""
        return not self.unbalanced_journal_ids and all(total.sum_e8 == 0 for total in self.totals)


def checked_entries(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries of one journal, if they make one.

    Raises:
        InvalidInputError: fewer than 2 or more than 100, a bad account, asset or amount, or a sum that is not zero.
    """
    if not ENTRIES_MIN <= len(entries) <= ENTRIES_MAX:
        raise InvalidInputError.of_field("entries", f"are not {ENTRIES_MIN} to {ENTRIES_MAX}")
    for number, entry in enumerate(entries):
        account_of(entry.account, f"entries[{number}].account")
        asset_of(entry.asset, f"entries[{number}].asset")
        if entry.amount_e8 == 0:
            raise InvalidInputError.of_field(f"entries[{number}].amount_e8", "is zero")
    for asset, sum_e8 in sums(entries).items():
        if sum_e8 != 0:
            raise InvalidInputError.of_field(
                "entries",
                f"do not sum to zero in {asset}: {sum_e8} is left over",
                reason="JOURNAL_UNBALANCED",
            )
    return tuple(entries)


def sums(entries: Iterable[Entry]) -> dict[str, int]:
    """The sum per asset."""
    by_asset: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        by_asset[entry.asset] += entry.amount_e8
    return dict(by_asset)


def account_of(name: str, field: str = "account") -> str:
    """An account's name."""
    if _ACCOUNT.fullmatch(name) is None:
        raise InvalidInputError.of_field(field, "is not 1 to 100 of a-z, 0-9 and :._-")
    return name


def asset_of(name: str, field: str = "asset") -> str:
    """An asset's name."""
    if _ASSET.fullmatch(name) is None:
        raise InvalidInputError.of_field(field, "is not 1 to 12 of A-Z and 0-9")
    return name


def idempotency_key_of(text: str) -> str:
    """A journal's idempotency key."""
    return fields.request_id_of(text, "idempotency_key", bytes_max=IDEMPOTENCY_KEY_BYTES_MAX)


def fee_entries(
    *, subscriber: UUID, owner: UUID, fee_e8: int, asset: str, platform_share_bps: int
) -> tuple[Entry, ...]:
    """The entries of a subscription's fee: the subscriber owes it, the platform and the master's owner share it.

    The platform's share is rounded down to 1e-8; what rounding leaves is the owner's.
    """
    platform_e8 = fee_e8 * platform_share_bps // BASIS_POINTS
    entries = (
        Entry(f"user:{subscriber}:receivable", asset, fee_e8),
        Entry(PLATFORM_REVENUE, asset, -platform_e8),
        Entry(f"user:{owner}:payable", asset, platform_e8 - fee_e8),
    )
    return tuple(entry for entry in entries if entry.amount_e8 != 0)
