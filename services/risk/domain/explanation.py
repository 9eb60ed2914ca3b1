"""A decision in words; it computes nothing."""

from __future__ import annotations

from services.risk.domain.ladder import LADDER, Level
from services.risk.domain.model import Terms, UserSums

_LEVELS = {
    Level.GOOD: "nothing is withheld",
    Level.WARN: f"below the warning score of {LADDER.warn_below:g}, nothing is withheld",
    Level.CLOSE_ONLY: "close-only: nothing that opens risk is delivered",
    Level.PAUSED: "paused: only closes are delivered",
}


def explain(score: float, level: Level, sums: UserSums, terms: Terms) -> str:
    """Two or three sentences for the operator and for the user."""
    parts = [f"Trust {score:.1f}: {_LEVELS[level]}."]
    if sums.signals:
        share = 100.0 * sums.rejected / sums.signals
        excess = 100.0 * sums.excess / sums.exposure if sums.exposure else 0.0
        parts.append(
            f"Rejected {sums.rejected} of {sums.signals} signals ({share:.1f} %). Beyond what peers rejected of "
            f"the same signals: {excess:.1f} %, and with confidence at least "
            f"{max(0.0, 100.0 * terms.rejection_lower_bound):.1f} %."
        )
    else:
        parts.append("No signals to score.")
    if terms.integrity > 0:
        parts.append(f"{sums.violations:.1f} recent reports contradict others by the same user.")
    if not level.withholds and sums.signals < LADDER.signals_min and score < LADDER.close_only_below:
        parts.append(f"Not paused: fewer than {LADDER.signals_min} signals.")
    return " ".join(parts)
