"""The statements of queries.sql, bound when the module is imported; it runs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.common import sql


@dataclass(frozen=True, slots=True)
class RiskQueries:
    """One field for each statement."""

    user_numbers: str
    add_user: str
    store_outcomes: str
    stored_bodies: str
    store_violations: str
    ensure_chunks: str
    drop_chunks: str
    get_trust: str
    list_at_risk: str
    get_decision: str
    list_decisions: str
    lock_check: str
    wait_for_check: str
    hold_fence: str
    detector_state: str
    pending_batches: str
    next_batches: str
    fold_outcomes: str
    fold_violations: str
    drop_folded: str
    clear_sums: str
    clear_pending: str
    rebuild_outcomes: str
    rebuild_violations: str
    set_rebuilt: str
    candidates: str
    totals: str
    evidence: str
    insert_decisions: str
    put_states: str
    put_checked_scores: str
    set_scored: str
    set_checked: str
    unapplied: str
    set_applied: str
    repair_version: str
    state_for_update: str
    forget_outcomes: str
    insert_override: str
    users_by_level: str
    users_by_score: str
    try_lead: str
    raise_token: str
    renew_lease: str


QUERIES: Final = sql.bind(RiskQueries, "services.risk")
