"""Masters, their signing keys, and who may open a session as one; pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final
from uuid import UUID

from services.common.errors import FailedPreconditionError, NotFoundError
from services.ledger.domain import licenses

SECRET_BYTES: Final = 32
SIGNALS_PER_SECOND_MAX: Final = 1_000_000
SIGNAL_AGE_MAX: Final = timedelta(days=30)
OVERLAP_MAX: Final = timedelta(days=30)
SECRET_SHOWN_FOR: Final = timedelta(days=1)


class AccountMode(IntEnum):
    """Mode of a trading account; numbered as in the contract."""

    HEDGING = 1
    NETTING = 2


@dataclass(frozen=True, slots=True)
class NewMaster:
    """A master to be made; its fields are checked."""

    owner_user_id: UUID
    display_name: str
    account_mode: AccountMode
    signals_per_second_max: int
    signal_age_us_max: int | None


@dataclass(frozen=True, slots=True)
class Master:
    """A trading account whose signals are copied."""

    master_id: int
    owner_user_id: UUID
    display_name: str
    account_mode: AccountMode
    signals_per_second_max: int
    signal_age_us_max: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A signing key with its secret; the secret is empty where it may not be shown again."""

    key_id: str
    secret: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """What the ledger holds of a login's claim: all of it was found; whether it counts is for `session_end`."""

    owner_user_id: UUID
    suspended_at: datetime | None
    key_expires_at: datetime | None
    key_revoked_at: datetime | None
    license_user_id: UUID
    license_expires_at: datetime
    license_revoked_at: datetime | None


def session_end(claim: Claim, now: datetime) -> datetime:
    """When a session that begins at `now` must end: with its license or with its key, whichever ends first.

    Raises:
        NotFoundError: the license is not the master's owner's.
        FailedPreconditionError: with reason MASTER_SUSPENDED, KEY_REVOKED (also when its overlap is over),
            LICENSE_REVOKED or LICENSE_EXPIRED.
    """
    if claim.license_user_id != claim.owner_user_id:
        raise NotFoundError("no such master, key or license")
    if claim.suspended_at is not None:
        raise FailedPreconditionError("the master is suspended", reason="MASTER_SUSPENDED")
    if claim.key_revoked_at is not None:
        raise FailedPreconditionError("the signing key was revoked", reason="KEY_REVOKED")
    if claim.key_expires_at is not None and claim.key_expires_at <= now:
        raise FailedPreconditionError(
            "the signing key was replaced and its overlap is over", reason="KEY_REVOKED"
        )
    licenses.require_active(claim.license_expires_at, claim.license_revoked_at, now)
    if claim.key_expires_at is None:
        return claim.license_expires_at
    return min(claim.license_expires_at, claim.key_expires_at)
