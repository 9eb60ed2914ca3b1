from __future__ import annotations

import pytest

from services.common.backoff import Backoff


def test_delays_double_up_to_the_cap() -> None:
    backoff = Backoff(initial_seconds=1, cap_seconds=5, uniform=lambda low, high: high)
    assert [backoff.next_delay() for _ in range(5)] == [1, 2, 4, 5, 5]


def test_reset_starts_over() -> None:
    backoff = Backoff(initial_seconds=1, cap_seconds=5, uniform=lambda low, high: high)
    backoff.next_delay()
    backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() == 1


def test_jitter_is_full_and_the_floor_holds() -> None:
    assert Backoff(initial_seconds=1, uniform=lambda low, high: low).next_delay() == 0
    assert Backoff(initial_seconds=1, floor_seconds=0.5, uniform=lambda low, high: low).next_delay() == 0.5


@pytest.mark.parametrize(
    "bad",
    [
        {"initial_seconds": 0},
        {"initial_seconds": 2, "cap_seconds": 1},
        {"floor_seconds": 1, "initial_seconds": 0.5},
        {"factor": 0.5},
    ],
)
def test_senseless_parameters_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="back-off"):
        Backoff(**bad)
