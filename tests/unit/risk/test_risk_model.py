"""The trust model's formulas, against values computed by hand, and what each rule of it promises."""

from __future__ import annotations

import math

import pytest

from services.risk.domain.model import (
    PARAMETERS,
    Report,
    Terms,
    UserSums,
    decay,
    lower_bound,
    peer_rate,
    score_of,
    sums_of,
    terms_of,
)
from services.risk.domain.outcomes import Reason

NOW = 1_000_000.0


def reports(user: str, reasons: list[Reason], *, first_signal: int = 0, at: float = NOW) -> list[Report]:
    return [Report(user, first_signal + n, reason, at) for n, reason in enumerate(reasons)]


def score(sums: UserSums) -> float:
    return score_of(terms_of(sums))


def test_a_report_weighs_half_after_seven_days():
    assert decay(0.0) == 1.0
    assert decay(7 * 86_400.0) == 0.5
    assert decay(14 * 86_400.0) == 0.25


def test_a_signal_without_peers_is_expected_to_be_rejected_at_the_prior_rate():
    assert peer_rate(0, 0) == pytest.approx(0.04)
    assert peer_rate(10, 0) == pytest.approx(0.02)
    assert peer_rate(10, 10) == pytest.approx(10.4 / 20)


def test_the_lower_bound_is_the_mean_less_1_645_deviations_of_the_beta_posterior():
    # A = 0.8 + 30, B = 19.2 + 30.
    mean = 30.8 / 80
    deviation = math.sqrt(30.8 * 49.2 / (80**2 * 81))
    assert lower_bound(60.0, 30.0) == pytest.approx(mean - 1.645 * deviation)


def test_nothing_reported_is_full_trust():
    assert score(UserSums()) == 100.0
    assert lower_bound(0.0, 0.0) < 0


def test_the_excess_never_exceeds_the_exposure():
    assert lower_bound(10.0, 50.0) == lower_bound(10.0, 10.0)


def test_rejecting_everything_that_peers_take_costs_four_fifths_of_the_trust():
    assert score(UserSums(weight=1e6, exposure=1e6, excess=1e6, signals=10**6)) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("violations", "expected"), [(5.0, 100.0), (27.5, 55.0), (50.0, 10.0), (500.0, 10.0)]
)
def test_violations_count_from_the_sixth_on(violations: float, expected: float):
    assert score(UserSums(violations=violations)) == pytest.approx(expected)


def test_the_terms_multiply():
    terms = Terms(rejection=0.5, selectivity=0.5, integrity=0.5, rejection_lower_bound=0.0)
    assert score_of(terms) == pytest.approx(100 * 0.6 * 0.65 * 0.55)


def test_peers_rejections_excuse():
    crowd = [
        Report(f"u{n}", s, Reason.SLIPPAGE if s % 2 else Reason.EXECUTED, NOW)
        for n in range(30)
        for s in range(200)
    ]
    alone = [
        Report(f"v{n}", s, Reason.SLIPPAGE if n == 0 and s % 2 else Reason.EXECUTED, NOW)
        for n in range(30)
        for s in range(200)
    ]
    assert score(sums_of(crowd, as_of_seconds=NOW)["u0"]) > 95.0
    assert score(sums_of(alone, as_of_seconds=NOW)["v0"]) < 65.0


@pytest.mark.parametrize(
    ("reason", "share"),
    [
        (Reason.SLIPPAGE, 1.0),
        (Reason.PRICE, 1.0),
        (Reason.SPREAD, 0.6),
        (Reason.LATENCY, 0.4),
        (Reason.MARGIN, 0.4),
    ],
)
def test_a_reason_weighs_what_the_model_says(reason: Reason, share: float):
    sums = sums_of(reports("u", [reason] * 10), as_of_seconds=NOW)["u"]
    assert sums.excess == pytest.approx(share * sums.exposure)
    assert sums.exposure == pytest.approx(10 * 0.96)


def test_filters_count_neither_for_the_user_nor_for_peers():
    honest = reports("u", [Reason.EXECUTED] * 50)
    filtering = [Report("f", n, Reason.FILTER, NOW) for n in range(50)]
    with_filters = sums_of(honest + filtering, as_of_seconds=NOW)
    assert "f" not in with_filters
    assert with_filters["u"] == sums_of(honest, as_of_seconds=NOW)["u"]


def test_of_two_reports_on_one_signal_the_first_counts():
    twice = [Report("u", 1, Reason.EXECUTED, NOW - 10), Report("u", 1, Reason.SLIPPAGE, NOW)]
    for order in (twice, twice[::-1]):
        sums = sums_of(order, as_of_seconds=NOW)["u"]
        assert (sums.signals, sums.rejected) == (1, 0)


def test_decaying_the_sums_is_the_same_as_scoring_later():
    some = reports("u", [Reason.SLIPPAGE, Reason.EXECUTED, Reason.LATENCY] * 20)
    now = sums_of(some, as_of_seconds=NOW)["u"]
    later = sums_of(some, as_of_seconds=NOW + 86_400)["u"]
    decayed = now.decayed(decay(86_400))
    assert decayed.exposure == pytest.approx(later.exposure)
    assert decayed.excess == pytest.approx(later.excess)
    assert decayed.weight == pytest.approx(later.weight)


def test_the_version_says_which_terms_are_scored():
    assert "rejection" in PARAMETERS.version
    assert "selectivity" not in PARAMETERS.version
    assert terms_of(UserSums(exposure=100.0, excess=90.0, signals=100)).selectivity == 0.0
