"""The token bucket."""

from __future__ import annotations

from services.ingest.domain.rate import TokenBucket


def test_a_burst_passes_and_then_the_average_holds():
    bucket = TokenBucket(per_second=10, burst=20, now_seconds=0)
    assert bucket.take(25, 0) == 20
    assert bucket.take(5, 0) == 0
    assert bucket.take(5, 0.25) == 2
    assert 0 < bucket.seconds_until_next() <= 0.1


def test_no_more_than_the_burst_is_ever_saved():
    bucket = TokenBucket(per_second=10, burst=20, now_seconds=0)
    assert bucket.take(100, 1_000_000) == 20


def test_zero_is_no_limit():
    bucket = TokenBucket(per_second=0, burst=1, now_seconds=0)
    assert bucket.take(10_000, 0) == 10_000
    assert bucket.seconds_until_next() == 0


def test_a_clock_that_stands_still_gives_nothing():
    bucket = TokenBucket(per_second=10, burst=1, now_seconds=5)
    assert bucket.take(1, 5) == 1
    assert bucket.take(1, 4) == 0


def test_another_rate_keeps_what_is_left():
    bucket = TokenBucket(per_second=10, burst=20, now_seconds=0)
    bucket.set_rate(5, 10)
    assert bucket.take(100, 0) == 10
