"""What the fan-out reads from its environment; it opens nothing."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field

from services.common.h2grpc import Http2Settings
from services.common.settings import Address
from services.common.worker import WorkerSettings

_STREAM_ID_BITS: Final = 46
"""So many streams for each worker, and still no number beyond what a double holds exactly."""


class FanoutSettings(WorkerSettings, Http2Settings):
    """Addresses and bounds of the fan-out, from environment variables of the same names in upper case."""

    service_name: ClassVar[str] = "fanout"

    edge: Literal["aio", "h2"] = "h2"
    """What serves: our own HTTP/2 edge (`services.common.h2grpc`), or grpc.aio, which writes a fraction as fast."""

    ledger_address: Address = Address("127.0.0.1", 50051)
    ingest_address: Address | None = None
    """Where masters are asked for snapshots; every process behind the name is asked. Unset: they never are."""

    # The ring: what is shared by all streams and never read twice.
    ring_records_per_master_max: int = Field(default=50_000, ge=16, le=10_000_000)
    ring_memory_bytes_max: int = Field(default=128 * 1024 * 1024, ge=65_536, le=2**40)
    ring_masters_max: int = Field(default=20_000, ge=1, le=10_000_000)
    """Beyond this, masters whom nobody follows are forgotten until they are asked for again."""
    fill_entries_max: int = Field(default=20_000, ge=0, le=10_000_000)
    """Entries of the log that are read at start."""
    fill_bytes_max: int = Field(default=16 * 1024 * 1024, ge=0, le=2**40)
    tracked_positions_per_master_max: int = Field(default=2_000, ge=1, le=1_000_000)
    """Open positions whose stops are known, to tell a tightened stop from a loosened one."""

    # The tail of the log.
    tail_block_ms: int = Field(default=1_000, ge=1, le=60_000)
    tail_entries_max: int = Field(default=500, ge=1, le=100_000)
    audit_interval_seconds: float = Field(default=2.0, gt=0, le=3_600)
    """How often the heads that the log tells are compared with what was read."""
    coalescing_delay_seconds_max: float = Field(default=0.004, ge=0, le=1)
    """The longest rest between two rounds of writing; the busier the process, the nearer to it."""
    load_max: float = Field(default=0.6, gt=0, le=1)
    """The share of its time that the process spends writing before it begins to rest between rounds."""

    # Messages and streams.
    message_bytes_max: int = Field(default=16_000, ge=1_024, le=1_048_576)
    """So that a message fits into one HTTP/2 frame of 16,384 bytes, which all who are sent it share."""
    message_signals_max: int = Field(default=1_000, ge=1, le=100_000)
    progress_interval_seconds: float = Field(default=0.8, gt=0, le=1)
    streams_max: int = Field(default=10_000, ge=1, le=1_000_000)
    streams_per_user_max: int = Field(default=20, ge=1, le=1_000_000)
    stream_age_seconds_max: float | None = Field(default=None, gt=0, le=31_536_000)
    """Streams older than this, a tenth more or less, are drained. Unset: never.

    With GRPC_CONNECTION_AGE_SECONDS_MAX streams are drained together with their connection, which clients must open
    anew to reach new processes: prefer that. Only EDGE=aio needs both, the same: its connections end without a Drain.
    """

    # When a reader is too slow.
    lag_signals_max: int = Field(default=500_000, ge=1, le=10**9)
    lag_bytes_max: int = Field(default=128 * 1024 * 1024, ge=1, le=2**40)
    lag_seconds_max: float = Field(default=30.0, gt=0, le=31_536_000)
    catch_up_seconds_max: float = Field(default=900.0, gt=0, le=31_536_000)
    unacknowledged_seconds_max: float = Field(default=600.0, gt=0, le=31_536_000)

    # Behind the ring.
    index_marks_max: int = Field(default=100_000, ge=1, le=10_000_000)
    """How much is remembered of where positions lie in the log, at about 200 bytes each."""
    index_block_entries: int = Field(default=64, ge=1, le=100_000)
    walk_entries_max: int = Field(default=100_000, ge=1, le=10_000_000)
    """Entries of the log that one request may make us look through backwards."""
    page_records_max: int = Field(default=1_000, ge=1, le=10_000)
    pages_cached_max: int = Field(default=32, ge=1, le=10_000)
    backlog_reads_max: int = Field(default=4, ge=1, le=1_000)
    """Pages that are read at once, from the log and from the archive each."""
    backlog_timeout_seconds: float = Field(default=10.0, gt=0, le=600)
    backlog_attempts_max: int = Field(default=5, ge=1, le=1_000)

    # Snapshots.
    snapshot_wait_seconds: float = Field(default=10.0, gt=0, le=600)
    snapshot_poll_seconds: float = Field(default=0.5, gt=0, le=60)
    snapshot_waits_max: int = Field(default=1_000, ge=1, le=1_000_000)
    ingest_processes_max: int = Field(default=16, ge=1, le=1_000)

    # Entitlements.
    authenticate_cached_max: int = Field(default=20_000, ge=1, le=10_000_000)
    authenticate_cached_seconds: float = Field(default=30.0, ge=0, le=3_600)
    authenticate_refused_seconds: float = Field(default=1.0, ge=0, le=60)
    """How long a refusal is remembered."""
    authenticate_calls_max: int = Field(default=32, ge=1, le=10_000)
    recent_changes_max: int = Field(default=20_000, ge=1, le=10_000_000)
    refresh_interval_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """How often the entitlements of open streams are read again, whatever was announced."""

    # Positions on their way to the ledger.
    record_interval_seconds: float = Field(default=0.5, gt=0, le=10)
    record_batch_max: int = Field(default=10_000, ge=1, le=10_000)
    record_pending_max: int = Field(default=200_000, ge=1, le=10_000_000)
    record_transitions_max: int = Field(default=32, ge=2, le=32)
    """Changes of one subscription's sync state that may wait; of more the newest are kept."""

    warm_up_seconds_max: float = Field(default=5.0, ge=0, le=600)
    """How long one of several workers waits for the log before it takes connections; others can have them meanwhile."""

    # What is acknowledged over another connection than the stream's, on its way to the process that has the stream.
    acknowledge_batch_max: int = Field(default=1_000, ge=1, le=10_000)
    acknowledge_entries_max: int = Field(default=256, ge=16, le=100_000)
    """The length, about, of the stream in Redis that tells it."""

    standing_calls_max: int = Field(default=8, ge=1, le=10_000)
    """Subscriptions that are looked up at the ledger at once, to learn how the subscriber of a new stream stands."""
    standing_retry_seconds_max: float = Field(default=10.0, gt=0, le=3_600)
    """The longest wait before a look-up that failed is tried again, while its stream lives."""
    full_sync_retry_seconds_max: float = Field(default=10.0, gt=0, le=3_600)
    """The same for the snapshot of a full sync that somebody asked for."""

    drain_jitter_seconds: float = Field(default=5.0, ge=0, le=600)
    """A draining process ends its streams at moments spread over this time, or over half of DRAIN_GRACE_SECONDS."""

    @property
    def first_stream_id(self) -> int:
        """Where the numbers of this process's streams begin, so that no two workers use the same."""
        return ((self.worker_number or 0) << _STREAM_ID_BITS) + 1
