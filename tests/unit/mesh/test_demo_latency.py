"""Percentiles come from all samples, by nearest rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.demo.latency import Latencies


def test_without_samples_there_are_no_percentiles() -> None:
    assert Latencies().percentiles_ms(50, 99) == [None, None]


@given(st.lists(st.integers(0, 10_000_000), min_size=1, max_size=300), st.integers(1, 100))
def test_percentile_is_the_smallest_sample_that_covers_its_share(samples: list[int], rank: int) -> None:
    latencies = Latencies()
    for sample in samples:
        latencies.add(sample)
    [found] = latencies.percentiles_ms(rank)
    assert found is not None
    at_most = sum(sample / 1000 <= found for sample in samples)
    below = sum(sample / 1000 < found for sample in samples)
    assert at_most >= rank / 100 * len(samples) > below


def test_recent_percentiles_forget_what_was_told_before() -> None:
    latencies = Latencies()
    latencies.add(1_000)
    assert latencies.recent_percentiles_ms(50) == [1.0]
    assert latencies.recent_percentiles_ms(50) == [None]
    latencies.add(3_000)
    assert latencies.recent_percentiles_ms(50) == [3.0]
    assert latencies.percentiles_ms(100) == [3.0]


def test_a_stepped_clock_counts_as_zero() -> None:
    latencies = Latencies()
    latencies.add(-5)
    assert latencies.percentiles_ms(100) == [0.0]
