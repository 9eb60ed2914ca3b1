"""One check of one user: from sums to a decision, when it is worth keeping, and whether a kept one can be replayed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from services.risk.domain.ladder import LADDER, NEWCOMER, Ladder, Level, Standing, next_level
from services.risk.domain.model import PARAMETERS, Parameters, Terms, UserSums, score_of, terms_of

REPLAY_TOLERANCE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Kept:
    """The latest kept decision on a user, and what the last check saw."""

    version: int
    score: float
    level: Level
    decided_at: datetime
    checked_score: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A user to be scored. `is_fresh`: reports that touch the user were counted since the check before."""

    user_no: int
    user_id: UUID
    sums: UserSums
    is_fresh: bool
    kept: Kept | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a check found about one user."""

    user_no: int
    user_id: UUID
    version: int
    score: float
    level: Level
    before: Standing
    is_fresh: bool
    sums: UserSums
    terms: Terms


@dataclass(frozen=True, slots=True)
class KeepingRules:
    """When a decision is stored: a new level always, a new score when it moved enough, and now and then anyway."""

    score_delta: float
    heartbeat_seconds: float


def decide(candidate: Candidate, parameters: Parameters = PARAMETERS, ladder: Ladder = LADDER) -> Decision:
    """Scores one user.

    Time alone never lowers trust: without fresh evidence the score does not fall below that of the check before. And a
    user with no signals to score (after an override, say) keeps the score that was given.
    """
    kept = candidate.kept
    before = NEWCOMER if kept is None else Standing(kept.checked_score, kept.level)
    terms = terms_of(candidate.sums, parameters)
    score = _held(score_of(terms, parameters), candidate, before)
    return Decision(
        user_no=candidate.user_no,
        user_id=candidate.user_id,
        version=1 if kept is None else kept.version + 1,
        score=score,
        level=next_level(before, score, candidate.sums.signals, ladder),
        before=before,
        is_fresh=candidate.is_fresh,
        sums=candidate.sums,
        terms=terms,
    )


def is_worth_keeping(decision: Decision, kept: Kept | None, now: datetime, rules: KeepingRules) -> bool:
    """Whether the decision says something that the kept one does not."""
    if kept is None or decision.level is not kept.level:
        return True
    if abs(decision.score - kept.score) >= rules.score_delta:
        return True
    # Back to the exact top: otherwise 99.6 would stay for ever.
    if decision.score == 100.0 and kept.score != 100.0:
        return True
    return (now - kept.decided_at).total_seconds() >= rules.heartbeat_seconds


def replay(stored: Decision, parameters: Parameters = PARAMETERS, ladder: Ladder = LADDER) -> Decision:
    """Computes a stored decision again from its stored inputs. Only meaningful for one that a check made, with the
    parameters of its model version.
    """
    kept = Kept(
        version=stored.version - 1,
        score=stored.before.checked_score,
        level=stored.before.level,
        decided_at=datetime.min,
        checked_score=stored.before.checked_score,
    )
    candidate = Candidate(stored.user_no, stored.user_id, stored.sums, stored.is_fresh, kept)
    return decide(candidate, parameters, ladder)


def agree(one: Decision, other: Decision) -> bool:
    """Whether two decisions say the same, but for rounding."""
    return one.level is other.level and abs(one.score - other.score) < REPLAY_TOLERANCE


def _held(score: float, candidate: Candidate, before: Standing) -> float:
    if candidate.kept is not None and candidate.sums.signals == 0 and candidate.sums.violations == 0:
        return before.checked_score
    return score if candidate.is_fresh else max(score, before.checked_score)
