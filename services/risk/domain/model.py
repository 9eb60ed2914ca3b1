"""The trust model: from what users did with signals to a score of 0 to 100; it decides nothing and reads no clock.

docs/trust-model.md explains it. The store computes the same sums in SQL; tests hold the two together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from services.risk.domain.outcomes import Reason


@dataclass(frozen=True, slots=True)
class Parameters:
    """The model's constants; a change of any of them is a new `version`."""

    version: str = "trust-1 (rejection, integrity)"
    half_life_seconds: float = 7 * 86_400.0
    prior_rejection_rate: float = 0.04
    peer_pseudo_signals: float = 10.0
    prior_signals: float = 20.0
    lower_bound_deviations: float = 1.645
    rejection_free: float = 0.10
    rejection_span: float = 0.55
    violations_free: float = 5.0
    violations_span: float = 45.0
    rejection_share: float = 0.8
    selectivity_share: float = 0.7
    integrity_share: float = 0.9
    # By Reason. A filter is the user's own choice and never counts; margin is weighed like latency.
    reason_weights: tuple[float, ...] = (0.0, 1.0, 0.4, 0.6, 1.0, 0.4, 0.0)


PARAMETERS: Final = Parameters()


@dataclass(frozen=True, slots=True)
class Report:
    """One user's outcome for one signal. `event_key` only breaks ties between two reports on the same signal."""

    user: Hashable
    signal: Hashable
    reason: Reason
    reported_at_seconds: float
    event_key: int = 0


@dataclass(frozen=True, slots=True)
class UserSums:
    """All that the score of one user depends on, decayed to the moment of scoring.

    `weight` is the sum of w over the user's signals, `exposure` of w (1 - p), `excess` of w c y (1 - p), `violations`
    the decayed count; `signals` and `rejected` are plain counts.
    """

    weight: float = 0.0
    exposure: float = 0.0
    excess: float = 0.0
    violations: float = 0.0
    signals: int = 0
    rejected: int = 0

    def decayed(self, factor: float) -> UserSums:
        """The same sums with every weight times `factor`; rounding never leaves a negative one."""
        return UserSums(
            weight=max(0.0, self.weight * factor),
            exposure=max(0.0, self.exposure * factor),
            excess=max(0.0, self.excess * factor),
            violations=max(0.0, self.violations * factor),
            signals=self.signals,
            rejected=self.rejected,
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What the score is made of; each term is 0 (nothing held against the user) to 1."""

    rejection: float
    selectivity: float
    integrity: float
    rejection_lower_bound: float


def decay(age_seconds: float, parameters: Parameters = PARAMETERS) -> float:
    """The weight of a report of that age: 1 when new, 1/2 after a half-life. Negative ages give more than 1."""
    return math.exp2(-age_seconds / parameters.half_life_seconds)


def peer_rate(peers: int, peers_rejected: int, parameters: Parameters = PARAMETERS) -> float:
    """The rate at which the other users rejected a signal, drawn towards the prior rate while they are few."""
    pseudo = parameters.peer_pseudo_signals
    return (peers_rejected + pseudo * parameters.prior_rejection_rate) / (peers + pseudo)


def lower_bound(exposure: float, excess: float, parameters: Parameters = PARAMETERS) -> float:
    """Lower bound of the excess rejection rate: mean minus 1.645 standard deviations of the Beta posterior."""
    excess = min(excess, exposure)
    alpha = parameters.prior_signals * parameters.prior_rejection_rate + excess
    beta = parameters.prior_signals * (1.0 - parameters.prior_rejection_rate) + max(exposure - excess, 0.0)
    total = alpha + beta
    deviation = math.sqrt(alpha * beta / (total * total * (total + 1.0)))
    return alpha / total - parameters.lower_bound_deviations * deviation


def terms_of(sums: UserSums, parameters: Parameters = PARAMETERS) -> Terms:
    """The terms that the sums give. Selectivity is 0: this version of the model does not look at results."""
    bound = lower_bound(sums.exposure, sums.excess, parameters)
    return Terms(
        rejection=_clip((bound - parameters.rejection_free) / parameters.rejection_span),
        selectivity=0.0,
        integrity=_clip((sums.violations - parameters.violations_free) / parameters.violations_span),
        rejection_lower_bound=bound,
    )


def score_of(terms: Terms, parameters: Parameters = PARAMETERS) -> float:
    """Trust, 0 to 100."""
    score = (
        100.0
        * (1.0 - parameters.rejection_share * terms.rejection)
        * (1.0 - parameters.selectivity_share * terms.selectivity)
        * (1.0 - parameters.integrity_share * terms.integrity)
    )
    return min(100.0, max(0.0, score))


def sums_of(
    reports: Iterable[Report],
    *,
    as_of_seconds: float,
    violations: Mapping[Hashable, float] | None = None,
    parameters: Parameters = PARAMETERS,
) -> dict[Hashable, UserSums]:
    """The sums of every user in `reports`, from nothing; the order of the reports does not matter.

    Of two reports of one user on one signal the earlier counts. FILTER reports count for nobody. `violations` are
    decayed already.
    """
    violations = violations or {}
    by_signal = _first_reports(reports)
    totals: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0, 0])
    for members in by_signal.values():
        rejections = sum(report.reason is not Reason.EXECUTED for report in members)
        for report in members:
            rejected = report.reason is not Reason.EXECUTED
            rate = peer_rate(len(members) - 1, rejections - rejected, parameters)
            weight = decay(as_of_seconds - report.reported_at_seconds, parameters)
            total = totals[report.user]
            total[0] += weight
            total[1] += weight * (1.0 - rate)
            total[2] += weight * parameters.reason_weights[report.reason] * (1.0 - rate)
            total[3] += 1
            total[4] += rejected
    return {
        user: UserSums(
            weight=total[0],
            exposure=total[1],
            excess=total[2],
            violations=violations.get(user, 0.0),
            signals=int(total[3]),
            rejected=int(total[4]),
        )
        for user in totals.keys() | violations.keys()
        for total in (totals[user],)
    }


def _first_reports(reports: Iterable[Report]) -> dict[Hashable, list[Report]]:
    """By signal: each user's first report, FILTER left out."""
    first: dict[tuple[Hashable, Hashable], Report] = {}
    for report in reports:
        if report.reason is Reason.FILTER:
            continue
        key = (report.signal, report.user)
        kept = first.get(key)
        if kept is None or _order(report) < _order(kept):
            first[key] = report
    by_signal: dict[Hashable, list[Report]] = defaultdict(list)
    for (signal, _), report in first.items():
        by_signal[signal].append(report)
    return by_signal


def _order(report: Report) -> tuple[float, int, int]:
    return (report.reported_at_seconds, report.event_key, report.reason)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
