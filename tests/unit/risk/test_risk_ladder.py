"""Warn, close-only, pause, and back: the ladder with its hysteresis."""

from __future__ import annotations

import pytest

from services.risk.domain.ladder import NEWCOMER, Level, Standing, level_of_override, next_level

MANY = 1_000


def after(*scores: float, signals: int = MANY, start: Standing = NEWCOMER) -> list[Level]:
    """The levels after checks with these scores, one after the other."""
    levels = []
    standing = start
    for score in scores:
        level = next_level(standing, score, signals)
        levels.append(level)
        standing = Standing(score, level)
    return levels


@pytest.mark.parametrize(
    ("score", "level"), [(100, "good"), (65, "good"), (64.9, "warn"), (50, "warn"), (1, "warn")]
)
def test_one_check_warns_and_never_withholds(score: float, level: str):
    assert after(score) == [Level(level)]


@pytest.mark.parametrize(
    ("score", "level"), [(49.9, "close_only"), (25, "close_only"), (24.9, "paused"), (0, "paused")]
)
def test_the_second_check_in_a_row_withholds(score: float, level: str):
    assert after(score, score) == [Level.WARN, Level(level)]


def test_a_check_in_between_begins_again():
    assert after(40, 55, 40, 55, 40) == [Level.WARN] * 5


def test_one_check_below_25_after_one_below_50_is_close_only():
    assert after(40, 20, 20) == [Level.WARN, Level.CLOSE_ONLY, Level.PAUSED]


def test_who_is_withheld_comes_back_at_65_and_not_before():
    assert after(40, 40, 60, 64.9, 65) == [
        Level.WARN, Level.CLOSE_ONLY, Level.CLOSE_ONLY, Level.CLOSE_ONLY, Level.GOOD,
    ]  # fmt: skip


def test_a_pause_is_not_softened_on_the_way_back():
    assert after(10, 10, 40, 60, 70) == [Level.WARN, Level.PAUSED, Level.PAUSED, Level.PAUSED, Level.GOOD]


def test_nobody_is_paused_on_fewer_than_20_signals():
    assert after(0, 0, 0, signals=19) == [Level.WARN] * 3
    assert after(0, 0, signals=20) == [Level.WARN, Level.PAUSED]


def test_who_has_fewer_than_20_signals_left_is_resumed():
    assert after(10, signals=5, start=Standing(10, Level.PAUSED)) == [Level.WARN]


@pytest.mark.parametrize(("score", "level"), [(0, "warn"), (64, "warn"), (65, "good"), (100, "good")])
def test_an_override_withholds_nothing(score: float, level: str):
    assert level_of_override(score) is Level(level)
