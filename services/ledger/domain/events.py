"""What the ledger tells the other services after a change; pure values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from services.ledger.domain.subscriptions import Subscription


@dataclass(frozen=True, slots=True)
class SubscriptionChanged:
    """A subscription was made, paused, resumed or cancelled; the reason is for people."""

    subscription: Subscription
    reason: str


@dataclass(frozen=True, slots=True)
class LicenseChanged:
    """A license was revoked, or its end was moved by a rotation."""

    license_id: UUID
    user_id: UUID
    revoked: bool
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SigningKeyChanged:
    """A signing key was revoked, or its end was moved by a rotation."""

    master_id: int
    key_id: str
    revoked: bool
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class TrustChanged:
    """A user's trust score changed."""

    user_id: UUID
    trust_score: float
    version: int


@dataclass(frozen=True, slots=True)
class FullSyncRequested:
    """A subscription's streams are to be brought in step anew."""

    subscription_id: UUID
    user_id: UUID
    master_id: int
    full_sync: int
    reason: str


LedgerEvent: TypeAlias = (
    SubscriptionChanged | LicenseChanged | SigningKeyChanged | TrustChanged | FullSyncRequested
)
