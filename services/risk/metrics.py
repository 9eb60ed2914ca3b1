"""What risk tells Prometheus; it computes nothing."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

OUTCOMES: Final = Counter("risk_outcomes_total", "Outcomes reported, by what became of them.", ("result",))
PROTECTIONS: Final = Counter(
    "risk_protections_total", "Signals that subscribers refused, by reason.", ("reason",)
)
DECISIONS: Final = Counter("risk_decisions_total", "Decisions stored, by level.", ("level",))
APPLIED: Final = Counter("risk_trust_applied_total", "Decisions sent to ledger, by result.", ("result",))
USERS: Final = Gauge("risk_users", "Users by level of the ladder.", ("level",))
TRUST_SCORE: Final = Gauge("risk_trust_score_users", "Users whose trust is at most this.", ("le",))
CHECK_SECONDS: Final = Histogram(
    "risk_check_duration_seconds",
    "Time of a whole check, without sending decisions to ledger.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
CHECKS: Final = Counter("risk_checks_total", "Checks, by result.", ("result",))
LAST_SUCCESS: Final = Gauge(
    "risk_detector_last_success_timestamp_seconds", "When the last check of this process ended."
)
LEADER: Final = Gauge("risk_detector_leader", "1 while this process leads the detector, else 0.")
FENCING_TOKEN: Final = Gauge("risk_detector_fencing_token", "Token of this process's last lead.")
PENDING_BATCHES: Final = Gauge(
    "risk_pending_batches", "Batches of outcomes not folded yet when the last check began."
)
HEADS_UNREAD: Final = Counter(
    "risk_log_heads_unread_total",
    "Batches taken without comparing positions with the log, as Redis was away.",
)
LICENSES_CACHED: Final = Gauge("risk_licenses_cached", "Licenses in the cache.")

# The increase from nothing to 1 is none to Prometheus.
for _result in ("applied", "seen", "repaired", "unknown_user", "failed"):
    APPLIED.labels(_result)

SCORE_BOUNDS: Final = (10, 25, 50, 65, 80, 90, 99, 100)
