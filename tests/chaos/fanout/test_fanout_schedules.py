"""Random schedules on real processes: what every follower's journal says agrees with what it should have seen.

Long runs are `ecp torture schedules`; a schedule that failed is printed, and can be played again from that.
"""

from __future__ import annotations

from collections import Counter

import pytest

from bench.torture.schedule_plan import Act, Kind, Schedule, Sizes, schedule
from bench.torture.schedules import torture

pytestmark = pytest.mark.timeout(300)

SIZES = Sizes(acts=9)
SEEDS = (2, 53, 66)
# The second time the same files come back: what had followed the first time is gone as well.
LOST_TWICE = Schedule(
    0,
    (
        Act(0.0, Kind.CONNECT, 0, place="beginning"),
        Act(0.0, Kind.CONNECT, 1, place="beginning"),
        Act(0.5, Kind.SAVE),
        Act(0.5, Kind.DROP, 1, seconds=0.8),
        Act(0.1, Kind.RESTORE),
        Act(0.5, Kind.RESTORE),
        Act(0.3, Kind.TRIM),
    ),
)


async def test_random_schedules_leave_nobody_silently_behind() -> None:
    plans = [*(schedule(seed, SIZES) for seed in SEEDS), LOST_TWICE]
    done = Counter(act.kind for plan in plans for act in plan.acts)
    assert {
        Kind.DRAIN,
        Kind.KILL,
        Kind.RESTORE,
        Kind.TRIM,
        Kind.STALL,
        Kind.DROP,
        Kind.RESYNC,
        Kind.PAUSE,
    } <= done.keys()
    report = await torture(plans, SIZES, signals_per_second=100, tell=print)
    print(*report.summary(), sep="\n")
    assert report.is_sound, "\n".join(report.summary())
    assert all(one.deliveries > 0 for one in report.outcomes)
    *_, lost_twice = report.outcomes
    # Of both masters, both times; whoever had everything is told of a new epoch, and brought in step.
    assert lost_twice.losses == 4
    assert lost_twice.full_syncs >= 4
