"""What the ledger reads from its environment; it opens no connection."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Final

from pydantic import Field, SecretStr, model_validator

from services.common.settings import ServiceSettings

_CONNECTIONS_MIN: Final = 3
"""For the events' leader, and for calls."""


class LedgerSettings(ServiceSettings):
    """Settings of the ledger, on top of those common to all services."""

    service_name: ClassVar[str] = "ledger"

    database_role: str | None = Field(default="ledger_service", min_length=1, max_length=63)
    database_pool_size_max: int = Field(default=16, ge=4, le=1_000)

    key_encryption_key: SecretStr | None = None
    """Base64 of the 32 bytes under which masters' signing secrets are sealed."""

    license_validity_days: int = Field(default=30, ge=1, le=400)
    license_overlap_seconds: int = Field(default=86_400, ge=0, le=30 * 86_400)
    signing_key_overlap_seconds: int = Field(default=86_400, ge=0, le=30 * 86_400)

    lease_seconds: float = Field(default=10.0, ge=3, le=600)
    """A leader that PostgreSQL does not hear of for longer loses the lead; one whose process ends loses it at once."""

    accounts_cached_max: int = Field(default=100_000, ge=1, le=10_000_000)
    """Account numbers kept in memory, about 200 bytes each."""

    log_retention_seconds: float = Field(default=3_600.0, ge=0, le=30 * 86_400)
    """How long the log keeps what is archived; readers that are further behind are served from the archive."""
    log_trim_interval_seconds: float = Field(default=10.0, gt=0, le=3_600)
    log_trim_entries_per_step_max: int = Field(default=500, ge=100, le=100_000)
    """Entries that Redis lets go of in one command; nothing else is served meanwhile."""
    log_trim_steps_max: int = Field(default=1_000, ge=1, le=1_000_000)
    """Steps of one round; what is left waits for the next."""
    archive_entries_per_read_max: int = Field(default=256, ge=1, le=10_000)
    archive_rows_per_transaction_max: int = Field(default=5_000, ge=1, le=100_000)
    """An entry of the log is never split, so a transaction may exceed this by one entry."""
    archive_block_ms: int = Field(default=1_000, ge=1, le=60_000)
    """How long one read waits for new entries; less than REDIS_TIMEOUT_SECONDS."""
    archive_claim_idle_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """Entries that another consumer took and left for so long are taken over."""
    archive_rewind_interval_seconds: float = Field(default=600.0, gt=0, le=30 * 86_400)
    """When positions are missing the log is read again from its beginning, at most this often."""
    archive_page_rows: int = Field(default=5_000, ge=1_000, le=100_000)
    """Rows that one query of ReadSignals fetches."""
    archive_days_ahead: int = Field(default=7, ge=1, le=365)
    archive_retention_days: int = Field(default=180, ge=1, le=36_500)

    outbox_batch_max: int = Field(default=500, ge=1, le=10_000)
    outbox_poll_seconds: float = Field(default=0.25, gt=0, le=60)
    """The publisher is woken at each commit; it looks by itself this often, should a wake-up be lost."""
    ledger_events_length_max: int = Field(default=100_000, ge=1_000, le=100_000_000)

    idempotency_retention_days: int = Field(default=180, ge=2, le=36_500)
    history_retention_days: int = Field(default=180, ge=1, le=36_500)
    housekeeping_interval_seconds: float = Field(default=3_600.0, gt=0, le=86_400)
    housekeeping_rows_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Rows that one statement of the housekeeping deletes."""

    @model_validator(mode="after")
    def _fits(self) -> LedgerSettings:
        if self.database_pool_size_max < self.log_shards + _CONNECTIONS_MIN:
            raise ValueError(
                f"DATABASE_POOL_SIZE_MAX must be LOG_SHARDS and {_CONNECTIONS_MIN} more: leading holds connections"
            )
        return self

    @property
    def license_validity(self) -> timedelta:
        """How long a license counts unless its issuer says otherwise."""
        return timedelta(days=self.license_validity_days)

    @property
    def license_overlap(self) -> timedelta:
        """How long a rotated license still counts unless the caller says otherwise."""
        return timedelta(seconds=self.license_overlap_seconds)

    @property
    def signing_key_overlap(self) -> timedelta:
        """How long replaced signing keys still count unless the caller says otherwise."""
        return timedelta(seconds=self.signing_key_overlap_seconds)
