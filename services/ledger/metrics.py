"""What the ledger measures; it decides nothing."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

LEADER: Final = Gauge("ledger_leader", "1 while this process leads the named duty, else 0.", ("duty",))

ARCHIVED_SIGNALS: Final = Counter("ledger_archived_signals_total", "Signals committed to the archive.")
ARCHIVED_GAPS: Final = Counter(
    "ledger_archived_gaps_total", "Gaps and epoch starts committed to the archive."
)
ARCHIVED_ENTRIES: Final = Counter("ledger_archived_entries_total", "Entries of the log acknowledged.")
ARCHIVE_DUPLICATES: Final = Counter(
    "ledger_archive_duplicates_total", "Positions that came again with the same content."
)
ARCHIVE_CONFLICTS: Final = Counter(
    "ledger_archive_conflicts_total",
    "Positions that came again with other content; kept apart for a person to look at.",
)
ARCHIVE_POISON: Final = Counter(
    "ledger_archive_poison_total",
    "Entries or runs that could not be understood; kept apart for a person to look at.",
)
ARCHIVE_HOLES: Final = Counter(
    "ledger_archive_holes_total",
    "Runs of positions that the log did not hold any more when they were to be archived.",
)
ARCHIVE_LOST_ENTRIES: Final = Counter(
    "ledger_archive_lost_entries_total",
    "Entries that were trimmed from the log while they waited to be archived.",
)
ARCHIVE_LAG: Final = Gauge(
    "ledger_archive_lag_seconds",
    "From the front door's check of the last archived signal to its commit here, or since when nothing could be"
    " archived; the slowest of the shards that this process archives.",
)
LOG_ENTRIES: Final = Gauge("ledger_log_entries", "Entries in a shard of the log.", ("shard",))
LOG_TRIMMED: Final = Counter(
    "ledger_log_trimmed_entries_total",
    "Archived entries that were removed from the log after their retention.",
    ("shard",),
)
LOG_VALVE_CUT: Final = Counter(
    "ledger_log_valve_entries_total",
    "Entries that left the log otherwise, by its greatest length: the archive or the trimming is behind.",
    ("shard",),
)
LOG_VALVE_UNARCHIVED: Final = Counter(
    "ledger_log_valve_unarchived_entries_total",
    "Entries that left the log by its greatest length before they were archived: they are lost to the archive.",
    ("shard",),
)
ARCHIVE_TRANSACTION: Final = Histogram(
    "ledger_archive_transaction_seconds",
    "Time of one archive transaction.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
ARCHIVE_BATCH: Final = Histogram(
    "ledger_archive_batch_rows",
    "Signals in one archive transaction.",
    buckets=(1, 10, 100, 500, 1_000, 2_500, 5_000, 10_000),
)

OUTBOX_PUBLISHED: Final = Counter("ledger_outbox_published_total", "Events written to the stream of events.")
OUTBOX_WAITING: Final = Gauge("ledger_outbox_waiting", "Events that wait for publication.")
OUTBOX_AGE: Final = Gauge("ledger_outbox_age_seconds", "Age of the oldest event that waits for publication.")

HOUSEKEEPING_FAILURES: Final = Counter(
    "ledger_housekeeping_failures_total", "Rounds of housekeeping that failed."
)
HOUSEKEEPING_LAST: Final = Gauge("ledger_housekeeping_last_seconds", "Unix time of the last complete round.")

_lags: dict[int, float] = {}


def archive_lag(shard: int, seconds: float) -> None:
    """How far behind a shard's archive is."""
    _lags[shard] = seconds
    ARCHIVE_LAG.set(max(_lags.values()))
