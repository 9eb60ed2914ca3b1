"""Licenses: their tokens, states and lifetimes; pure, random bytes and times come from outside."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final
from uuid import UUID

from services.common.errors import FailedPreconditionError

TOKEN_PREFIX: Final = "ecp_"
TOKEN_RANDOM_BYTES: Final = 32
VALIDITY_MAX: Final = timedelta(days=400)
OVERLAP_MAX: Final = timedelta(days=30)


class LicenseState(IntEnum):
    """Whether a license counts; numbered as in the contract."""

    ACTIVE = 1
    EXPIRED = 2
    REVOKED = 3


@dataclass(frozen=True, slots=True)
class License:
    """A license; its token is known to its user alone."""

    license_id: UUID
    user_id: UUID
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    rotated_from: UUID | None
    validity: timedelta
    """For how long it was issued; a rotation ends it sooner."""

    def state(self, now: datetime) -> LicenseState:
        """Whether it counts at `now`; revoked outweighs expired."""
        return license_state(self.expires_at, self.revoked_at, now)


def license_state(expires_at: datetime, revoked_at: datetime | None, now: datetime) -> LicenseState:
    """Whether a license counts at `now`; at `expires_at` it no longer does."""
    if revoked_at is not None:
        return LicenseState.REVOKED
    return LicenseState.EXPIRED if expires_at <= now else LicenseState.ACTIVE


def require_active(expires_at: datetime, revoked_at: datetime | None, now: datetime) -> None:
    """Checks that a license counts.

    Raises:
        FailedPreconditionError: with reason LICENSE_EXPIRED or LICENSE_REVOKED.
    """
    match license_state(expires_at, revoked_at, now):
        case LicenseState.REVOKED:
            raise FailedPreconditionError("the license was revoked", reason="LICENSE_REVOKED")
        case LicenseState.EXPIRED:
            raise FailedPreconditionError("the license has expired", reason="LICENSE_EXPIRED")
        case LicenseState.ACTIVE:
            return


def end_of_overlap(expires_at: datetime | None, now: datetime, overlap: timedelta) -> datetime:
    """When something that was replaced at `now` stops counting: after the overlap, never later than it would have."""
    ends = now + overlap
    return ends if expires_at is None else min(ends, expires_at)


def token_of(random_bytes: bytes) -> str:
    """The token that stands for 32 random bytes."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(random_bytes).rstrip(b"=").decode("ascii")


def token_sha256(token: str) -> bytes:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).digest()
