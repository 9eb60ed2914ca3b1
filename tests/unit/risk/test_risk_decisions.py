"""What a check makes of a user, what it keeps, and that what is kept can be computed again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.risk.domain.decisions import (
    Candidate,
    KeepingRules,
    Kept,
    agree,
    decide,
    is_worth_keeping,
    replay,
)
from services.risk.domain.explanation import explain
from services.risk.domain.ladder import Level
from services.risk.domain.model import Terms, UserSums

NOW = datetime(2026, 3, 1, tzinfo=UTC)
USER = UUID(int=7)
CHEATER = UserSums(weight=200.0, exposure=190.0, excess=170.0, signals=200, rejected=180)
HONEST = UserSums(weight=200.0, exposure=190.0, excess=2.0, signals=200, rejected=5)
RULES = KeepingRules(score_delta=1.0, heartbeat_seconds=86_400.0)


def candidate(sums: UserSums, kept: Kept | None = None, *, fresh: bool = True) -> Candidate:
    return Candidate(7, USER, sums, fresh, kept)


def kept(
    score: float = 100.0, level: Level = Level.GOOD, *, checked: float | None = None, version: int = 4
) -> Kept:
    return Kept(version, score, level, NOW - timedelta(hours=1), score if checked is None else checked)


def test_versions_rise_from_one():
    assert decide(candidate(HONEST)).version == 1
    assert decide(candidate(HONEST, kept(version=4))).version == 5


def test_two_checks_on_the_same_evidence_withhold():
    first = decide(candidate(CHEATER))
    assert first.level is Level.WARN
    second = decide(candidate(CHEATER, kept(first.score, first.level), fresh=False))
    assert second.level.withholds


def test_time_alone_never_lowers_trust():
    before = kept(80.0, Level.GOOD)
    assert decide(candidate(CHEATER, before, fresh=False)).score == 80.0
    assert decide(candidate(CHEATER, before, fresh=True)).score < 50.0


def test_time_alone_may_raise_trust():
    before = kept(30.0, Level.CLOSE_ONLY)
    assert decide(candidate(HONEST, before, fresh=False)).score == 100.0


def test_who_has_nothing_to_be_scored_keeps_what_an_operator_set():
    overridden = kept(70.0, Level.GOOD)
    decision = decide(candidate(UserSums(), overridden))
    assert (decision.score, decision.level) == (70.0, Level.GOOD)
    assert not is_worth_keeping(decision, overridden, NOW, RULES)


@pytest.mark.parametrize(
    ("stored", "keeps"),
    [
        (None, True),
        (kept(100.0), False),
        (kept(99.5), True),  # back to the top
        (kept(90.0), True),
        (kept(100.0, Level.WARN), True),
    ],
)
def test_only_news_is_kept(stored: Kept | None, keeps: bool):
    decision = decide(candidate(HONEST, stored))
    assert is_worth_keeping(decision, stored, NOW, RULES) is keeps


def test_an_old_decision_is_kept_again():
    old = replace(kept(100.0), decided_at=NOW - timedelta(days=1))
    assert is_worth_keeping(decide(candidate(HONEST, old)), old, NOW, RULES)


@pytest.mark.parametrize("sums", [CHEATER, HONEST, UserSums()])
@pytest.mark.parametrize("before", [kept(), kept(20.0, Level.PAUSED), kept(70.0, Level.GOOD)])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_stored_decision_replays_to_itself(sums: UserSums, before: Kept, fresh: bool):
    decision = decide(candidate(sums, before, fresh=fresh))
    assert agree(replay(decision), decision)


def test_a_replay_notices_another_score_or_level():
    decision = decide(candidate(CHEATER))
    assert not agree(replay(decision), replace(decision, score=decision.score + 0.001))
    assert not agree(replay(decision), replace(decision, level=Level.GOOD))


def test_an_explanation_names_numbers_and_consequence():
    decision = decide(candidate(CHEATER, kept(30.0, Level.WARN)))
    text = explain(decision.score, decision.level, decision.sums, decision.terms)
    assert "180 of 200 signals (90.0 %)" in text
    assert "close-only" in text


def test_an_explanation_says_why_a_newcomer_is_not_paused():
    few = UserSums(weight=15.0, exposure=14.0, excess=14.0, signals=15, rejected=15)
    text = explain(40.0, Level.WARN, few, Terms(0.8, 0.0, 0.0, 0.5))
    assert "fewer than 20 signals" in text


def test_an_explanation_without_signals_says_so():
    assert "No signals" in explain(100.0, Level.GOOD, UserSums(), Terms(0.0, 0.0, 0.0, -0.1))
