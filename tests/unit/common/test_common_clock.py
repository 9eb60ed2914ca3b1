from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from services.common import clock
from services.common.clock import Clock, ManualClock, SystemClock


def test_manual_clock_stands_still_until_it_is_moved() -> None:
    manual: Clock = ManualClock(5_000_000)
    assert manual.now_us() == manual.now_us() == 5_000_000
    assert manual.now() == datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)


def test_manual_clock_advance_moves_both_clocks() -> None:
    manual = ManualClock(0)
    manual.advance(seconds=1.5, us=1)
    assert manual.now_us() == 1_500_001
    assert manual.monotonic_seconds() == pytest.approx(1.500001)


def test_manual_clock_set_back_leaves_the_monotonic_clock() -> None:
    manual = ManualClock(9_000_000)
    manual.set_us(1)
    assert manual.now_us() == 1
    assert manual.monotonic_seconds() == 0
    with pytest.raises(ValueError, match="monotonic"):
        manual.advance(seconds=-1)


def test_system_clock_agrees_with_itself() -> None:
    system: Clock = SystemClock()
    assert abs(clock.us_from_datetime(system.now()) - system.now_us()) < 60_000_000
    assert system.monotonic_seconds() <= system.monotonic_seconds()


def test_datetime_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        clock.us_from_datetime(datetime(2026, 1, 1))


def test_datetime_of_another_zone_is_the_same_instant() -> None:
    instant = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert clock.datetime_from_us(clock.us_from_datetime(instant)) == instant
