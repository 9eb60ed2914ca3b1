"""ReportOutcomes against real PostgreSQL: what is stored, once, and what is refused."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from execution.risk.v1 import risk_service_pb2 as pb
from services.common import stream
from tests.integration.risk.risk_service import RiskClient, outcome, risk_running, risk_settings
from tests.integration.risk.stand_in_ledger import StandInLedger, standing_in

DAY_US = 86_400 * 1_000_000
SLIPPAGE = pb.PROTECTION_REASON_SLIPPAGE


@pytest.fixture
async def database(fresh_database: str):
    connection = await asyncpg.connect(fresh_database)
    yield connection
    await connection.close()


def counts(response: pb.ReportOutcomesResponse) -> tuple[int, int, int, int]:
    return response.stored, response.duplicates, response.conflicts, len(response.refused)


async def test_a_batch_is_stored_with_every_field(
    risk: RiskClient, ledger: StandInLedger, database: asyncpg.Connection
):
    user = ledger.add_user()
    now_us = time.time_ns() // 1_000
    protected = outcome(
        9, master=2, epoch=3, reason=SLIPPAGE, event_id="E-9", price_e8=5, latency_us=7, occurred_at_us=now_us
    )
    assert counts(await risk.report(user.token, outcome(1), protected)) == (2, 0, 0, 0)

    row = await database.fetchrow("select * from risk.protection_logs")
    assert row["user_id"] == user.user_id
    assert row["event_id"] == "E-9"
    assert row["reason"] == "slippage"
    assert (row["master_id"], row["epoch"], row["sequence"]) == (2, 3, 9)
    assert (row["price_e8"], row["latency_us"]) == (5, 7)
    assert row["occurred_at"] == datetime.fromtimestamp(0, UTC) + timedelta(microseconds=now_us)
    rows = await database.fetch("select * from risk.outcomes order by sequence")
    assert [(r["sequence"], r["reason"], r["price_e8"], r["latency_us"]) for r in rows] == [
        (1, 0, 107_000_000, 1_500),
        (9, 1, 5, 7),
    ]


async def test_a_repeat_is_a_duplicate_and_changes_nothing(
    risk: RiskClient, ledger: StandInLedger, database: asyncpg.Connection
):
    user = ledger.add_user()
    batch = [outcome(n, reason=SLIPPAGE) for n in range(1, 11)]
    assert counts(await risk.report(user.token, *batch)) == (10, 0, 0, 0)
    assert counts(await risk.report(user.token, *batch, outcome(11))) == (1, 10, 0, 0)
    assert await database.fetchval("select count(*) from risk.outcomes") == 11
    assert await database.fetchval("select count(*) from risk.protection_logs") == 10
    assert await database.fetchval("select count(*) from risk.integrity_violations") == 0


async def test_the_same_event_with_another_body_is_a_conflict(
    risk: RiskClient, ledger: StandInLedger, database: asyncpg.Connection
):
    user = ledger.add_user()
    first = outcome(1)
    await risk.report(user.token, first)
    changed = pb.Outcome()
    changed.CopyFrom(first)
    changed.price_e8 += 1
    assert counts(await risk.report(user.token, changed)) == (0, 0, 1, 0)
    assert await database.fetchval("select price_e8 from risk.outcomes") == first.price_e8
    row = await database.fetchrow("select conflicts, doubled from risk.integrity_violations")
    assert tuple(row) == (1, 0)


async def test_a_conflict_is_seen_across_days(risk: RiskClient, ledger: StandInLedger):
    user = ledger.add_user()
    now_us = time.time_ns() // 1_000
    await risk.report(user.token, outcome(1, event_id="same", occurred_at_us=now_us - DAY_US))
    again = outcome(1, event_id="same", occurred_at_us=now_us)
    assert counts(await risk.report(user.token, again)) == (0, 0, 1, 0)


async def test_a_late_repeat_is_a_duplicate(risk: RiskClient, ledger: StandInLedger):
    user = ledger.add_user()
    late = outcome(1, occurred_at_us=time.time_ns() // 1_000 - 2 * DAY_US)
    assert counts(await risk.report(user.token, late)) == (1, 0, 0, 0)
    assert counts(await risk.report(user.token, late)) == (0, 1, 0, 0)


async def test_a_second_event_on_a_signal_is_refused_and_remembered(
    risk: RiskClient, ledger: StandInLedger, database: asyncpg.Connection
):
    user = ledger.add_user()
    await risk.report(user.token, outcome(1, event_id="one"))
    response = await risk.report(user.token, outcome(1, event_id="two"), outcome(2))
    assert counts(response) == (1, 0, 0, 1)
    assert response.refused[0].event_id == "two"
    assert "already" in response.refused[0].message
    assert await database.fetchval("select doubled from risk.integrity_violations") == 1


async def test_two_events_on_one_signal_in_one_batch_store_one(risk: RiskClient, ledger: StandInLedger):
    user = ledger.add_user()
    response = await risk.report(user.token, outcome(1, event_id="one"), outcome(1, event_id="two"))
    assert counts(response) == (1, 0, 0, 1)


async def test_event_ids_are_each_users_own(risk: RiskClient, ledger: StandInLedger):
    for user in (ledger.add_user(), ledger.add_user()):
        assert counts(await risk.report(user.token, outcome(1))) == (1, 0, 0, 0)


async def test_bad_outcomes_are_refused_one_by_one(risk: RiskClient, ledger: StandInLedger):
    user = ledger.add_user(1)
    response = await risk.report(
        user.token, outcome(1), outcome(2, master=9), outcome(3, kind=pb.OUTCOME_KIND_UNSPECIFIED), outcome(4)
    )
    assert counts(response) == (2, 0, 0, 2)
    assert [one.event_id for one in response.refused] == ["9-1-2", "1-1-3"]


async def test_concurrent_repeats_store_each_event_once(risk: RiskClient, ledger: StandInLedger):
    user = ledger.add_user()
    batch = [outcome(n) for n in range(1, 201)]
    responses = await asyncio.gather(*(risk.report(user.token, *batch) for _ in range(8)))
    assert sum(response.stored for response in responses) == 200
    assert sum(response.duplicates for response in responses) == 7 * 200
    assert all(response.conflicts == 0 and not response.refused for response in responses)


async def test_a_missing_chunk_is_made(risk: RiskClient, ledger: StandInLedger, database: asyncpg.Connection):
    await database.execute(f"drop table risk.outcomes_{datetime.now(UTC):%Y%m%d}")
    await database.execute(f"drop table risk.protection_logs_{datetime.now(UTC):%Y%m%d}")
    user = ledger.add_user()
    assert counts(await risk.report(user.token, outcome(1, reason=SLIPPAGE))) == (1, 0, 0, 0)


async def test_ledger_is_asked_once_for_many_calls_at_a_time(fresh_database: str):
    async with standing_in() as ledger:
        configured = risk_settings(fresh_database, ledger.port, license_cache_seconds=60.0)
        async with risk_running(configured) as risk:
            user = ledger.add_user()
            await asyncio.gather(*(risk.report(user.token, outcome(n)) for n in range(1, 21)))
            assert ledger.authentications == 1


async def test_a_known_license_goes_on_while_ledger_is_away(risk: RiskClient, ledger: StandInLedger):
    user = ledger.add_user()
    await risk.report(user.token, outcome(1))
    ledger.is_away = True
    assert counts(await risk.report(user.token, outcome(2))) == (1, 0, 0, 0)


@pytest.fixture
async def risk_with_log(fresh_database: str, ledger: StandInLedger, redis_url: str):
    async with risk_running(risk_settings(fresh_database, ledger.port, redis_url=redis_url)) as client:
        yield client


async def set_head(redis_url: str, master: int, epoch: int, sequence: int) -> None:
    async with stream.connect(redis_url) as client:
        await client.hset(stream.heads_name(), str(master), f"{epoch} {sequence} 1 - 0 0")


async def test_a_signal_that_never_was_is_refused(
    risk_with_log: RiskClient, ledger: StandInLedger, redis_url: str, database: asyncpg.Connection
):
    user = ledger.add_user()
    await set_head(redis_url, 1, 2, 10)
    response = await risk_with_log.report(
        user.token,
        outcome(10, epoch=2),
        outcome(11, epoch=2),
        outcome(1, epoch=3),
        outcome(99, epoch=1),
        outcome(1, master=2),
    )
    assert counts(response) == (2, 0, 0, 3)
    assert {one.event_id for one in response.refused} == {"1-2-11", "1-3-1", "2-1-1"}
    assert "no such signal" in response.refused[0].message
    row = await database.fetchrow("select conflicts, doubled, unmatched from risk.integrity_violations")
    assert tuple(row) == (0, 0, 3)
    assert await database.fetchval("select violations from risk.pending_batches where sequences = '{}'") == 0

    await set_head(redis_url, 1, 2, 11)
    assert counts(await risk_with_log.report(user.token, outcome(11, epoch=2))) == (1, 0, 0, 0)


async def test_a_log_that_came_back_with_less_makes_nobody_a_liar(
    risk_with_log: RiskClient, ledger: StandInLedger, redis_url: str
):
    user = ledger.add_user()
    await set_head(redis_url, 1, 1, 100)
    await risk_with_log.report(user.token, outcome(90))
    await set_head(redis_url, 1, 1, 50)
    assert counts(await risk_with_log.report(user.token, outcome(95))) == (1, 0, 0, 0)


async def test_reports_are_taken_while_redis_is_away(fresh_database: str, ledger: StandInLedger):
    nowhere = "redis://127.0.0.1:1/0"
    configured = risk_settings(fresh_database, ledger.port, redis_url=nowhere, redis_timeout_seconds=0.5)
    async with risk_running(configured) as risk:
        assert counts(await risk.report(ledger.add_user().token, outcome(1))) == (1, 0, 0, 0)
