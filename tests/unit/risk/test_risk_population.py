"""On a made-up population the model tells cheaters from users with bad connections far better than counting does."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from services.risk.domain.ladder import NEWCOMER, Standing, next_level
from services.risk.domain.model import Report, UserSums, decay, score_of, sums_of, terms_of
from services.risk.domain.outcomes import Reason

DAYS = 30
DAY_SECONDS = 86_400.0
SIGNALS_PER_DAY = 40
HONEST, BLATANT, SELECTIVE = 270, 20, 10
COUNT_LIMIT_PER_DAY = 4


@dataclass(slots=True)
class Subscriber:
    """One user: how often its connection and its limits make it refuse, and whether it cheats."""

    name: int
    kind: str
    follows: float
    latency_rate: float
    slippage_rate: float
    joins_on_day: int = 0
    bad_days: frozenset[int] = frozenset()
    standing: Standing = NEWCOMER
    sums: UserSums = field(default_factory=UserSums)
    was_withheld: bool = False
    rejections_per_day: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Signal:
    name: tuple[int, int]
    spread_shock: float
    will_lose: bool


def population(rng: random.Random) -> list[Subscriber]:
    kinds = ["honest"] * HONEST + ["blatant"] * BLATANT + ["selective"] * SELECTIVE
    return [
        Subscriber(
            name,
            kind,
            follows=rng.uniform(0.2, 1.0),
            # Most connections are good; some users sit far away behind a bad line.
            latency_rate=min(0.35, rng.paretovariate(1.3) * 0.01),
            slippage_rate=rng.uniform(0.0, 0.04),
            joins_on_day=rng.choice([0] * 8 + [DAYS - 2, DAYS - 1]),
            bad_days=frozenset(rng.sample(range(DAYS), rng.choice([0, 0, 1, 3]))),
        )
        for name, kind in enumerate(kinds)
    ]


def reason_of(user: Subscriber, signal: Signal, day: int, rng: random.Random) -> Reason:
    if rng.random() < signal.spread_shock:
        return Reason.SPREAD
    if (user.kind == "blatant" and rng.random() < 0.85) or (
        user.kind == "selective" and signal.will_lose and rng.random() < 0.9
    ):
        return Reason.SLIPPAGE
    if rng.random() < (0.5 if day in user.bad_days else user.latency_rate):
        return Reason.LATENCY
    return Reason.SLIPPAGE if rng.random() < user.slippage_rate else Reason.EXECUTED


def live_a_day(users: list[Subscriber], day: int, rng: random.Random) -> None:
    """Everybody reports the day's signals; then two checks, as on any two intervals in a row."""
    at = day * DAY_SECONDS
    reports: list[Report] = []
    rejected: dict[int, int] = defaultdict(int)
    for number in range(SIGNALS_PER_DAY):
        shock = rng.uniform(0.3, 0.8) if rng.random() < 0.05 else 0.0
        signal = Signal((day, number), shock, rng.random() < 0.5)
        for user in users:
            if day >= user.joins_on_day and rng.random() < user.follows:
                reason = reason_of(user, signal, day, rng)
                rejected[user.name] += reason is not Reason.EXECUTED
                reports.append(Report(user.name, signal.name, reason, at))
    today = sums_of(reports, as_of_seconds=at)
    for user in users:
        user.rejections_per_day.append(rejected[user.name])
        user.sums = added(user.sums.decayed(decay(DAY_SECONDS)), today.get(user.name, UserSums()))
        for _ in range(2):
            score = score_of(terms_of(user.sums))
            level = next_level(user.standing, score, user.sums.signals)
            user.standing = Standing(score, level)
        user.was_withheld = user.was_withheld or user.standing.level.withholds


def added(one: UserSums, other: UserSums) -> UserSums:
    return UserSums(
        one.weight + other.weight,
        one.exposure + other.exposure,
        one.excess + other.excess,
        0.0,
        one.signals + other.signals,
        one.rejected + other.rejected,
    )


def area_under_curve(bad: list[float], good: list[float]) -> float:
    """Chance that a cheater scores lower than an honest user."""
    wins = sum((b < g) + 0.5 * (b == g) for b in bad for g in good)
    return wins / (len(bad) * len(good))


@pytest.mark.parametrize("seed", [11, 12])
def test_the_model_beats_counting(seed: int):
    rng = random.Random(seed)
    users = population(rng)
    for day in range(DAYS):
        live_a_day(users, day, rng)

    honest = [user for user in users if user.kind == "honest"]
    cheaters = [user for user in users if user.kind != "honest"]
    blatant = [user for user in users if user.kind == "blatant"]

    def excess(user: Subscriber) -> float:
        return -terms_of(user.sums).rejection_lower_bound

    by_model = area_under_curve([excess(u) for u in cheaters], [excess(u) for u in honest])
    by_count = area_under_curve(
        [-u.rejections_per_day[-1] for u in cheaters], [-u.rejections_per_day[-1] for u in honest]
    )
    false_pauses = sum(user.was_withheld for user in honest) / len(honest)
    false_pauses_by_count = sum(max(u.rejections_per_day) > COUNT_LIMIT_PER_DAY for u in honest) / len(honest)
    caught = sum(user.was_withheld for user in blatant) / len(blatant)

    assert by_model >= 0.95
    assert by_model > by_count
    assert false_pauses <= 0.01
    assert false_pauses_by_count > 0.10
    assert caught >= 0.9
    # Who joined on the last day has 20 signals at most times; before that nobody may have been withheld.
    assert not any(user.was_withheld for user in users if user.sums.signals < 20)
