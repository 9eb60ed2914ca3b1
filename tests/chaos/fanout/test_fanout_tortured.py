"""Short versions of `ecp torture fanout`: rolling restarts and kills under load lose and double nothing."""

from __future__ import annotations

import pytest

from bench.torture.fanout import FanoutTortureOptions, torture


@pytest.mark.parametrize("edge", ["h2", "aio"])
async def test_a_rolling_restart_of_three_processes_loses_and_doubles_nothing(edge: str) -> None:
    report = await torture(
        FanoutTortureOptions(subscribers=40, signals_per_second=200, rounds=1, edge=edge, seed=5), print
    )
    assert report.is_sound, report.outcome
    assert report.restarts == 3
    # Every stream was sent elsewhere by word, none was cut.
    assert report.outcome.drains >= 40
    assert set(report.outcome.ends) <= {"grpc-status 14", "no connection"}
    assert report.outcome.deliveries == 40 * report.outcome.signals


async def test_killed_workers_and_restarts_lose_and_double_nothing() -> None:
    report = await torture(
        FanoutTortureOptions(
            processes=2, workers=2, subscribers=30, signals_per_second=200, rounds=1, kills=2, seed=6
        ),
        print,
    )
    assert report.is_sound, report.outcome
    assert (report.restarts, report.kills) == (2, 2)
    assert report.outcome.deliveries == 30 * report.outcome.signals
