"""What holds of the trust model whatever users report."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.risk.domain.decisions import Candidate, Kept, agree, decide, replay
from services.risk.domain.ladder import LADDER, Level, Standing, next_level
from services.risk.domain.model import (
    PARAMETERS,
    Report,
    UserSums,
    decay,
    lower_bound,
    score_of,
    sums_of,
    terms_of,
)
from services.risk.domain.outcomes import Reason

NOW = 10_000_000.0
USERS = "abcde"
ME = "a"
ROUNDING = 1e-6

report = st.builds(
    Report,
    user=st.sampled_from(USERS),
    signal=st.integers(0, 15),
    reason=st.sampled_from(Reason),
    reported_at_seconds=st.floats(NOW - 30 * 86_400, NOW),
    event_key=st.integers(0, 3),
)
populations = st.lists(report, max_size=60)
# One report on each signal at most, so that changing one changes no other.
my_reasons = st.dictionaries(st.integers(0, 15), st.sampled_from(Reason), min_size=1, max_size=16)
scores = st.floats(0, 100)
levels = st.sampled_from(Level)
amounts = st.floats(0, 1e6)
sums = st.builds(
    lambda weight, share, excess, violations, signals, rejected: UserSums(
        weight, weight * share, weight * share * excess, violations, signals, min(signals, rejected)
    ),
    amounts, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1_000), st.integers(0, 10**6), st.integers(0, 10**6),
)  # fmt: skip


def score(of: UserSums) -> float:
    return score_of(terms_of(of))


def score_of_me(reports: list[Report]) -> float:
    return score(sums_of(reports, as_of_seconds=NOW).get(ME, UserSums()))


def with_mine(others: list[Report], mine: dict[int, Reason]) -> list[Report]:
    kept = [one for one in others if one.user != ME]
    return kept + [Report(ME, signal, reason, NOW) for signal, reason in mine.items()]


@given(populations, st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter(reports, random):
    shuffled = list(reports)
    random.shuffle(shuffled)
    one, other = (sums_of(each, as_of_seconds=NOW) for each in (reports, shuffled))
    assert one.keys() == other.keys()
    for user, before in one.items():
        assert before.signals == other[user].signals
        assert before.rejected == other[user].rejected
        assert before.excess == pytest.approx(other[user].excess)
        assert before.exposure == pytest.approx(other[user].exposure)


@given(populations, my_reasons, st.data())
def test_rejecting_what_was_copied_never_raises_trust(others, mine, data):
    signal = data.draw(st.sampled_from(sorted(mine)))
    worse = data.draw(st.sampled_from([r for r in Reason if PARAMETERS.reason_weights[r] > 0]))
    copied = score_of_me(with_mine(others, mine | {signal: Reason.EXECUTED}))
    rejected = score_of_me(with_mine(others, mine | {signal: worse}))
    assert rejected <= copied + ROUNDING


@given(populations, my_reasons, st.sampled_from([Reason.SLIPPAGE, Reason.PRICE]))
def test_one_more_rejection_of_full_weight_never_raises_trust(others, mine, reason):
    before = score_of_me(with_mine(others, mine))
    after = score_of_me([*with_mine(others, mine), Report(ME, 99, reason, NOW)])
    assert after <= before + ROUNDING


@given(populations, my_reasons)
def test_one_more_copied_signal_never_lowers_trust(others, mine):
    before = score_of_me(with_mine(others, mine))
    after = score_of_me([*with_mine(others, mine), Report(ME, 99, Reason.EXECUTED, NOW)])
    assert after >= before - ROUNDING


@given(populations, my_reasons, st.data())
def test_a_peers_rejection_never_lowers_my_trust_when_i_rejected_too(others, mine, data):
    signal = data.draw(st.sampled_from(sorted(mine)))
    mine = mine | {signal: Reason.SLIPPAGE}
    crowd = [one for one in others if one.signal != signal]
    peers = [Report(f"peer{n}", signal, Reason.EXECUTED, NOW) for n in range(5)]
    joined = [replace(peer, reason=Reason.SLIPPAGE) for peer in peers]
    assert (
        score_of_me(with_mine(crowd + joined, mine)) >= score_of_me(with_mine(crowd + peers, mine)) - ROUNDING
    )


@given(populations, st.integers(0, 15))
def test_a_filter_changes_nobodys_sums(reports, signal):
    filtered = [*reports, Report("someone new", signal, Reason.FILTER, NOW)]
    assert sums_of(filtered, as_of_seconds=NOW) == sums_of(reports, as_of_seconds=NOW)


@given(sums, st.floats(0, 1))
def test_time_alone_never_lowers_the_score(now, factor):
    assert score(now.decayed(factor)) >= score(now) - ROUNDING


@given(sums)
def test_scores_and_terms_stay_in_their_ranges(of):
    terms = terms_of(of)
    assert 0 <= score_of(terms) <= 100
    assert all(0 <= term <= 1 for term in (terms.rejection, terms.selectivity, terms.integrity))
    assert -1 < terms.rejection_lower_bound < 1


@given(amounts, st.floats(0, 1), st.floats(0, 1))
def test_the_lower_bound_rises_with_the_excess(exposure, one, other):
    less, more = sorted((one, other))
    assert lower_bound(exposure, exposure * less) <= lower_bound(exposure, exposure * more) + ROUNDING


@given(st.floats(0, 30 * 86_400), st.floats(0, 30 * 86_400))
def test_weights_fall_with_age(one, other):
    younger, older = sorted((one, other))
    assert 0 < decay(older) <= decay(younger) <= 1


@given(st.builds(Standing, scores, levels), scores, st.integers(0, 19))
def test_nobody_is_withheld_on_fewer_than_20_signals(before, score, signals):
    assert not next_level(before, score, signals).withholds


@given(st.builds(Standing, scores, levels), scores, st.integers(20, 10**6))
def test_the_ladder_keeps_its_promises(before, score, signals):
    level = next_level(before, score, signals)
    if score >= LADDER.resume_from:
        assert level is Level.GOOD
    if level.withholds and not before.level.withholds:
        assert max(score, before.checked_score) < LADDER.close_only_below
    if before.level.withholds and not level.withholds:
        assert score >= LADDER.resume_from
    if before.level is Level.PAUSED and level.withholds:
        assert level is Level.PAUSED


@given(sums, scores, scores, levels, st.booleans())
def test_every_decision_replays_to_itself(of, stored, checked, level, fresh):
    kept = Kept(3, stored, level, datetime(2026, 1, 1, tzinfo=UTC), checked)
    decision = decide(Candidate(1, UUID(int=1), of, fresh, kept))
    assert agree(replay(decision), decision)


@given(sums, scores, levels)
def test_without_fresh_evidence_a_check_never_lowers_trust(of, checked, level):
    kept = Kept(3, checked, level, datetime(2026, 1, 1, tzinfo=UTC), checked)
    assert decide(Candidate(1, UUID(int=1), of, False, kept)).score >= checked
