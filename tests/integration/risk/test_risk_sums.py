"""The sums that PostgreSQL keeps are those of the pure model, however reports arrive and however they are folded."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.common import pg
from services.common.errors import AbortedError
from services.risk.detector_store import DetectorStore, FencedError
from services.risk.domain.model import Report, UserSums, decay, peer_rate, sums_of
from services.risk.domain.outcomes import Reason
from services.risk.intake import NewOutcomes
from services.risk.store import OverrideOrder, RiskStore

pytestmark = pytest.mark.parametrize("seed", [1, 2, 3])


@pytest.fixture
async def pool(fresh_database: str) -> AsyncIterator[pg.Pool]:
    async with pg.pool(fresh_database, role="risk_service", size_max=4) as pool:
        yield pool


@pytest.fixture
def store(pool: pg.Pool) -> RiskStore:
    return RiskStore(pool, outcome_age_days_max=3, user_cache_entries_max=100, check_lock_timeout_seconds=2.0)


def columns(rng: random.Random, signals: list[int], now) -> NewOutcomes:
    made = NewOutcomes()
    for signal in signals:
        made.event_keys.append(rng.getrandbits(62))
        made.body_keys.append(rng.getrandbits(62))
        made.master_ids.append(1 + signal % 2)
        made.epochs.append(1)
        made.sequences.append(1 + signal // 2)
        made.reasons.append(rng.choice([0, 0, 0, 1, 2, 3, 4, 5, 6]))
        made.prices_e8.append(1)
        made.latencies_us.append(1)
        made.occurred_at.append(now)
        made.event_ids.append(f"e{signal}")
    return made


async def report_at_random(rng: random.Random, store: RiskStore, users: list[UUID], now) -> None:
    for user in rng.sample(users, rng.randint(1, len(users))):
        await store.store_outcomes(user, columns(rng, sorted(rng.sample(range(40), rng.randint(1, 25))), now))
        if rng.random() < 0.2:
            await store.store_violations(user, conflicts=rng.randint(0, 3), doubled=1, unmatched=2)


async def expected(connection: asyncpg.Connection, at) -> dict[int, UserSums]:
    """From the stored rows, by the pure model, as of `at`."""
    rows = await connection.fetch("select * from risk.outcomes")
    reports = [
        Report(
            row["user_no"], (row["master_id"], row["epoch"], row["sequence"]), Reason(row["reason"]),
            row["reported_at"].timestamp(), row["event_key"],
        )
        for row in rows
    ]  # fmt: skip
    violations: dict[int, float] = {}
    for row in await connection.fetch("select * from risk.integrity_violations"):
        count = row["conflicts"] + row["doubled"]
        weight = decay((at - row["reported_at"]).total_seconds())
        violations[row["user_no"]] = violations.get(row["user_no"], 0.0) + count * weight
    return sums_of(reports, as_of_seconds=at.timestamp(), violations=violations)


async def kept(connection: asyncpg.Connection, at) -> dict[int, UserSums]:
    reference_at = await connection.fetchval("select reference_at from risk.detector_state")
    factor = decay((at - reference_at).total_seconds())
    rows = await connection.fetch("select * from risk.user_sums")
    return {
        row["user_no"]: UserSums(
            row["weight"], row["exposure"], row["excess"], row["violations"], row["signals"], row["rejected"]
        ).decayed(factor)
        for row in rows
    }


def same(one: dict[int, UserSums], other: dict[int, UserSums]) -> None:
    nothing = UserSums()
    for user in one.keys() | other.keys():
        a, b = one.get(user, nothing), other.get(user, nothing)
        assert (a.signals, a.rejected) == (b.signals, b.rejected)
        for name in ("weight", "exposure", "excess", "violations"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-6), name


async def test_folding_in_any_portions_gives_the_models_sums(seed: int, store: RiskStore, pool: pg.Pool):
    rng = random.Random(seed)
    users = [uuid4() for _ in range(7)]
    now = await pool.fetchval("select now()")
    detector = DetectorStore(pool)
    for _ in range(6):
        await report_at_random(rng, store, users, now)
        async with detector.check() as check:
            state = await check.state()
            # Small portions leave batches waiting that touch the same signals.
            while await check.fold(None, state.reference_at, outcomes_max=rng.choice([1, 20, 1_000])):
                if rng.random() < 0.3:
                    break
    async with detector.check() as check:
        state = await check.state()
        while await check.fold(None, state.reference_at, outcomes_max=1_000):
            pass
    async with pool.connection() as connection:
        same(await kept(connection, now), await expected(connection, now))


async def test_a_rebuild_gives_the_same_sums(seed: int, store: RiskStore, pool: pg.Pool):
    rng = random.Random(seed)
    users = [uuid4() for _ in range(5)]
    now = await pool.fetchval("select now()")
    detector = DetectorStore(pool)
    for turn in range(3):
        await report_at_random(rng, store, users, now)
        async with detector.check() as check:
            state = await check.state()
            if turn == 0:
                await check.fold(None, state.reference_at, outcomes_max=30)
            await check.rebuild(None, state.now, timeout_seconds=30)
        async with pool.connection() as connection:
            same(await kept(connection, now), await expected(connection, now))
            assert await connection.fetchval("select count(*) from risk.pending_batches") == 0


async def test_evidence_weighs_what_the_model_counts(seed: int, store: RiskStore, pool: pg.Pool):
    rng = random.Random(seed)
    users = [uuid4() for _ in range(6)]
    now = await pool.fetchval("select now()")
    for _ in range(3):
        await report_at_random(rng, store, users, now)
    detector = DetectorStore(pool)
    async with detector.check() as check:
        state = await check.state()
        while await check.fold(None, state.reference_at, outcomes_max=1_000):
            pass
        async with check.scoring(None) as scoring:
            for user in users:
                number = await store.user_number(user)
                evidence = await scoring.evidence(number, 100, 1_000)
                model = (await expected(check._connection, scoring.state.now)).get(number, UserSums())
                assert sum(one.weight for one in evidence) == pytest.approx(model.excess, abs=1e-6)
                assert len(evidence) == model.rejected
                assert [one.weight for one in evidence] == sorted(
                    (one.weight for one in evidence), reverse=True
                )
                assert all(peer_rate(0, 0) / 10 < one.peer_rate < 1 for one in evidence)


async def test_what_an_operator_forgave_does_not_count_again(seed: int, store: RiskStore, pool: pg.Pool):
    rng = random.Random(seed)
    users = [uuid4() for _ in range(4)]
    now = await pool.fetchval("select now()")
    detector = DetectorStore(pool)
    await report_at_random(rng, store, users, now)
    await store.store_outcomes(users[0], columns(rng, [100, 101], now))
    await store.override(OverrideOrder(users[0], 80.0, "an operator", "a broken line"))
    await store.store_outcomes(users[0], columns(rng, [200, 201, 202], now))
    number = await store.user_number(users[0])
    for rebuild in (False, True):
        async with detector.check() as check:
            state = await check.state()
            await check.fold(None, state.reference_at, outcomes_max=10_000)
            if rebuild:
                await check.rebuild(None, state.now, timeout_seconds=30)
        signals = await pool.fetchval("select signals from risk.user_sums where user_no = $1", number)
        filtered = await pool.fetchval(
            "select count(*) from risk.outcomes where user_no = $1 and sequence > 100 and reason <> 6", number
        )
        assert signals == filtered


async def test_a_deposed_leader_writes_nothing(seed: int, store: RiskStore, pool: pg.Pool):
    rng = random.Random(seed)
    now = await pool.fetchval("select now()")
    await store.store_outcomes(uuid4(), columns(rng, [1, 2, 3], now))
    detector = DetectorStore(pool)
    token = (await detector.state()).fencing_token
    await pool.execute("update risk.detector_lease set fencing_token = fencing_token + 1")
    async with detector.check() as check:
        state = await check.state()
        with pytest.raises(FencedError):
            await check.fold(token, state.reference_at, outcomes_max=1_000)
        with pytest.raises(FencedError):
            await check.rebuild(token, state.now, timeout_seconds=30)
        with pytest.raises(FencedError):
            async with check.scoring(token):
                pass
        assert (await check.pending_batches())[0] == 1
        assert await check.fold(token + 1, state.reference_at, outcomes_max=1_000) == 1


async def test_only_one_checks_at_a_time(seed: int, pool: pg.Pool):
    detector = DetectorStore(pool)
    async with detector.check():
        with pytest.raises(AbortedError, match="running"):
            async with detector.check():
                pass
    async with detector.check():
        pass


async def test_a_check_folds_what_was_there_when_it_began(seed: int, store: RiskStore, pool: pg.Pool):
    rng = random.Random(seed)
    now = await pool.fetchval("select now()")
    detector = DetectorStore(pool)
    await store.store_outcomes(uuid4(), columns(rng, [1, 2, 3], now))
    async with detector.check() as check:
        state = await check.state()
        waiting, newest = await check.pending_batches()
        assert waiting == 1
        await store.store_outcomes(uuid4(), columns(rng, [1, 2, 3], now))
        assert await check.fold(None, state.reference_at, 1_000, newest) == 1
        # Otherwise a check would run for as long as reports come.
        assert await check.fold(None, state.reference_at, 1_000, newest) == 0
        assert (await check.pending_batches())[0] == 1
