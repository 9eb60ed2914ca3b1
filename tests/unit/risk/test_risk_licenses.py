"""The license cache: bounded, one question at a time, never past a license's end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.common.clock import ManualClock, datetime_from_us
from services.common.errors import (
    FailedPreconditionError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from services.risk.ledger import Identity
from services.risk.licenses import CacheRules, LicenseCache

RULES = CacheRules(entries_max=3, fresh_seconds=10, refusal_seconds=2, stale_seconds=60)


class Authority:
    """Answers as ledger would, and counts the questions."""

    def __init__(self, clock: ManualClock) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.masters = frozenset({1})
        self.expires_at = datetime_from_us(clock.now_us()) + timedelta(hours=1)

    async def __call__(self, token: str) -> Identity:
        self.asked.append(token)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return Identity(UUID(int=len(token)), self.expires_at, self.masters)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000)


@pytest.fixture
def authority(clock: ManualClock) -> Authority:
    return Authority(clock)


@pytest.fixture
def cache(authority: Authority, clock: ManualClock) -> LicenseCache:
    return LicenseCache(authority, rules=RULES, clock=clock)


async def test_an_answer_is_remembered_for_its_time(
    cache: LicenseCache, authority: Authority, clock: ManualClock
):
    await cache.resolve("a")
    clock.advance(seconds=9)
    await cache.resolve("a")
    assert authority.asked == ["a"]
    clock.advance(seconds=2)
    await cache.resolve("a")
    assert authority.asked == ["a", "a"]


async def test_a_master_that_is_followed_since_a_moment_counts(
    cache: LicenseCache, authority: Authority, clock: ManualClock
):
    """A report of it would be refused for good; one who goes on naming others' masters asks no more often than that."""
    assert (await cache.resolve_for("a", {1})).masters == {1}
    authority.masters = frozenset({1, 2})
    clock.advance(seconds=3)
    assert (await cache.resolve_for("a", {1})).masters == {1}
    assert (await cache.resolve_for("a", {1, 2})).masters == {1, 2}
    assert authority.asked == ["a", "a"]
    for _ in range(5):
        assert (await cache.resolve_for("a", {9})).masters == {1, 2}
    assert authority.asked == ["a", "a"]
    clock.advance(seconds=3)
    authority.failure = UnavailableError("away")
    assert (await cache.resolve_for("a", {9})).masters == {1, 2}
    authority.failure = FailedPreconditionError("revoked", reason="LICENSE_REVOKED")
    with pytest.raises(UnauthenticatedError):
        await cache.resolve_for("a", {9})


async def test_many_callers_ask_once(cache: LicenseCache, authority: Authority):
    authority.gate = asyncio.Event()
    callers = [asyncio.create_task(cache.resolve("a")) for _ in range(5)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.sleep(0)
    authority.gate.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [type(one) for one in answers[1:]] == [Identity] * 4
    assert authority.asked == ["a"]


async def test_it_never_holds_more_than_its_bound(cache: LicenseCache):
    for n in range(10):
        await cache.resolve("x" * n)
    assert len(cache) == 3


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NotFoundError("no"), "LICENSE_UNKNOWN"),
        (FailedPreconditionError("no", reason="LICENSE_EXPIRED"), "LICENSE_EXPIRED"),
        (FailedPreconditionError("no", reason="LICENSE_REVOKED"), "LICENSE_REVOKED"),
    ],
)
async def test_a_refusal_is_remembered_shortly(
    cache: LicenseCache, authority: Authority, clock: ManualClock, failure: Exception, reason: str
):
    authority.failure = failure
    for _ in range(3):
        with pytest.raises(UnauthenticatedError) as caught:
            await cache.resolve("a")
        assert caught.value.reason == reason
    assert authority.asked == ["a"]
    clock.advance(seconds=3)
    authority.failure = None
    assert await cache.resolve("a")


async def test_a_known_license_outlives_an_outage_for_a_while(
    cache: LicenseCache, authority: Authority, clock: ManualClock
):
    known = await cache.resolve("a")
    authority.failure = UnavailableError("away")
    clock.advance(seconds=59)
    assert await cache.resolve("a") == known
    clock.advance(seconds=2)
    with pytest.raises(UnavailableError):
        await cache.resolve("a")


async def test_an_unknown_license_does_not_get_in_during_an_outage(cache: LicenseCache, authority: Authority):
    authority.failure = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await cache.resolve("a")


async def test_a_license_ends_while_it_is_remembered(
    cache: LicenseCache, authority: Authority, clock: ManualClock
):
    authority.expires_at = datetime_from_us(clock.now_us()) + timedelta(seconds=5)
    await cache.resolve("a")
    clock.advance(seconds=5)
    with pytest.raises(UnauthenticatedError) as caught:
        await cache.resolve("a")
    assert caught.value.reason == "LICENSE_EXPIRED"


async def test_a_revoked_license_replaces_what_was_known(
    cache: LicenseCache, authority: Authority, clock: ManualClock
):
    await cache.resolve("a")
    clock.advance(seconds=11)
    authority.failure = FailedPreconditionError("revoked", reason="LICENSE_REVOKED")
    with pytest.raises(UnauthenticatedError):
        await cache.resolve("a")
    authority.failure = UnavailableError("away")
    clock.advance(seconds=3)
    with pytest.raises(UnavailableError):
        await cache.resolve("a")
