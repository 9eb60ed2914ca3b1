"""What the risk service reads from its environment; every bound of the service is named here."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from services.common.settings import Address, ServiceSettings


class RiskSettings(ServiceSettings):
    """Settings of the risk service."""

    service_name: ClassVar[str] = "risk"

    database_role: str | None = Field(default="risk_service", min_length=1, max_length=63)
    ledger_address: Address = Address("127.0.0.1", 50051)

    check_interval_seconds: float = Field(default=300.0, ge=0.1, le=86_400)
    """From the start of one check to the start of the next; a check is also followed by a rest as long as itself."""
    rebuild_interval_seconds: float = Field(default=86_400.0, ge=1, le=30 * 86_400)
    """How often the sums are computed from nothing, which drops what is past retention."""
    rebuild_timeout_seconds: float = Field(default=300.0, ge=1, le=3_600)
    fold_outcomes_max: int = Field(default=100_000, ge=1_000, le=10_000_000)
    """Reports folded into the sums in one transaction (a call's batch is never split)."""
    score_page_size: int = Field(default=5_000, ge=1, le=100_000)
    """Users scored between two looks at the event loop."""
    decision_score_delta: float = Field(default=1.0, gt=0, le=100)
    """A score that moved less is not stored as a new decision."""
    decision_heartbeat_seconds: float = Field(default=7 * 86_400.0, ge=60, le=366 * 86_400)
    """An unchanged decision is stored again after this long."""
    evidence_signals_max: int = Field(default=100, ge=1, le=100)
    evidence_candidates_max: int = Field(default=1_000, ge=100, le=100_000)
    """Newest rejections that the heaviest are picked from."""

    lease_seconds: float = Field(default=10.0, ge=1, le=600)
    """A leader that is silent for longer loses the lead; one whose process ends loses it at once."""
    lease_retry_seconds: float = Field(default=1.0, ge=0.05, le=60)
    check_lock_timeout_seconds: float = Field(default=10.0, ge=0.1, le=300)
    """How long an override waits for a running check."""

    apply_concurrency_max: int = Field(default=8, ge=1, le=256)
    apply_users_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Decisions sent to ledger after one check; the rest follow after the next."""
    apply_retry_seconds: float = Field(default=1.0, ge=0.05, le=300)
    """Wait before decisions that ledger could not take are sent again between two checks."""

    outcomes_per_call_max: int = Field(default=1_000, ge=1, le=10_000)
    outcome_age_seconds_max: float = Field(default=3 * 86_400.0, ge=60, le=7 * 86_400)
    """Outcomes that happened longer ago are refused."""
    outcome_skew_seconds_max: float = Field(default=60.0, ge=0, le=3_600)
    """How far an outcome's time may be ahead of our clock."""

    license_cache_entries_max: int = Field(default=20_000, ge=1, le=10_000_000)
    license_cache_seconds: float = Field(default=15.0, ge=0, le=3_600)
    license_refusal_cache_seconds: float = Field(default=3.0, ge=0, le=60)
    license_stale_seconds_max: float = Field(default=600.0, ge=0, le=86_400)
    """How long a known license goes on while ledger does not answer."""
    user_cache_entries_max: int = Field(default=100_000, ge=1, le=10_000_000)

    masters_cached_max: int = Field(default=100_000, ge=1, le=10_000_000)
    """Masters whose last position is remembered. Positions are compared with the log where REDIS_URL is set."""

    outcome_retention_days: int = Field(default=30, ge=8, le=366)
    protection_log_retention_days: int = Field(default=30, ge=1, le=366)
    decision_retention_days: int = Field(default=400, ge=180, le=3_650)
    chunk_upkeep_seconds: float = Field(default=3_600.0, ge=1, le=86_400)
    """How often the leader makes the chunks of the coming days and drops old ones."""

    @property
    def outcome_age_days_max(self) -> int:
        """The age of outcomes that are taken, in whole days."""
        return math.ceil(self.outcome_age_seconds_max / 86_400)
