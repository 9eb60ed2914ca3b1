"""From reported outcomes to a pause at ledger, through the running service."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import asyncpg
import pytest

from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.risk.v1 import risk_service_pb2 as pb
from services.common import pg
from services.risk import toxic_flow
from services.risk.detector_store import DetectorStore
from tests import waiting
from tests.integration.risk.risk_service import RiskClient, outcome, risk_running, risk_settings
from tests.integration.risk.stand_in_ledger import StandInLedger, StandInUser

until = partial(waiting.until, seconds_max=30)

SLIPPAGE = pb.PROTECTION_REASON_SLIPPAGE


async def test_a_cheater_is_paused_on_the_second_check_and_nobody_else(
    risk: RiskClient, ledger: StandInLedger
):
    honest = [ledger.add_user() for _ in range(5)]
    cheater = ledger.add_user()
    for user in honest:
        # Each has its own bad moments, 1 in 25.
        bad = honest.index(user)
        await risk.report(
            user.token,
            *(outcome(n, reason=pb.PROTECTION_REASON_LATENCY if n % 25 == bad else 0) for n in range(1, 201)),
        )
    await risk.report(cheater.token, *(outcome(n, reason=SLIPPAGE if n % 10 else 0) for n in range(1, 201)))

    first = await risk.check()
    assert first.users == 6
    assert first.outcomes == 1_200
    assert (await risk.trust(cheater.user_id)).pause == license_pb.PAUSE_SCOPE_UNSPECIFIED

    second = await risk.check()
    assert [one.user_id for one in second.changed] == [str(cheater.user_id)]
    assert (await risk.trust(cheater.user_id)).pause != license_pb.PAUSE_SCOPE_UNSPECIFIED
    assert cheater.pause == (await risk.trust(cheater.user_id)).pause
    assert cheater.applied == [1, 2]
    assert {user.pause for user in honest} == {license_pb.PAUSE_SCOPE_UNSPECIFIED}
    assert {round(user.score) for user in honest} == {100}

    explained = await risk.call("ExplainTrust", pb.ExplainTrustRequest(user_id=str(cheater.user_id)))
    assert explained.terms.signals == 200
    assert explained.terms.rejected == 180
    assert len(explained.evidence) == 100
    assert explained.trust == await risk.trust(cheater.user_id)
    assert {one.reason for one in explained.evidence} == {SLIPPAGE}


async def cheat(risk: RiskClient, user: StandInUser, *, signals: range = range(1, 201)) -> None:
    await risk.report(user.token, *(outcome(n, reason=SLIPPAGE) for n in signals))


async def test_an_unchanged_decision_is_not_stored_again(
    risk: RiskClient, ledger: StandInLedger, fresh_database: str
):
    cheater, honest = ledger.add_user(), ledger.add_user()
    await cheat(risk, cheater)
    await risk.report(honest.token, *(outcome(n) for n in range(1, 201)))
    for _ in range(5):
        await risk.check()
    assert (await risk.trust(honest.user_id)).version == 1
    assert (await risk.trust(cheater.user_id)).version == 2
    assert cheater.applied == [1, 2]
    assert honest.applied == [1]


async def test_ledger_away_at_the_decision_gets_it_later(risk: RiskClient, ledger: StandInLedger):
    cheater = ledger.add_user()
    await cheat(risk, cheater)
    await risk.check()
    ledger.is_away = True
    await risk.check()
    assert cheater.pause == license_pb.PAUSE_SCOPE_UNSPECIFIED
    ledger.is_away = False
    await risk.check()
    assert cheater.pause == license_pb.PAUSE_SCOPE_ALL
    assert cheater.version == (await risk.trust(cheater.user_id)).version


async def test_a_crash_between_storing_and_applying_is_healed_by_the_next_leader(
    fresh_database: str, ledger: StandInLedger
):
    async with risk_running(risk_settings(fresh_database, ledger.port)) as risk:
        await risk.until_first_check()
        cheater = ledger.add_user()
        await cheat(risk, cheater)
        ledger.is_away = True
        await risk.check()
        await risk.check()
    ledger.is_away = False
    assert cheater.applied == []
    async with risk_running(risk_settings(fresh_database, ledger.port, check_interval_seconds=0.1)):
        await until(lambda: cheater.applied == [2])
    assert cheater.pause == license_pb.PAUSE_SCOPE_ALL


async def test_a_user_that_ledger_does_not_know_holds_up_nobody(risk: RiskClient, ledger: StandInLedger):
    stranger, cheater = ledger.add_user(), ledger.add_user()
    await cheat(risk, stranger)
    await cheat(risk, cheater, signals=range(1_001, 1_201))
    del ledger.users[stranger.user_id]
    await risk.check()
    await risk.check()
    assert cheater.pause == license_pb.PAUSE_SCOPE_ALL
    assert (await risk.trust(stranger.user_id)).pause == license_pb.PAUSE_SCOPE_ALL


async def test_a_restored_database_goes_above_ledgers_version(risk: RiskClient, ledger: StandInLedger):
    cheater = ledger.add_user()
    cheater.version = 41
    await cheat(risk, cheater)
    await risk.check()
    await risk.check()
    await risk.check()
    assert cheater.pause == license_pb.PAUSE_SCOPE_ALL
    assert (await risk.trust(cheater.user_id)).version == cheater.version > 41


async def test_a_restored_database_does_not_take_a_lost_decision_of_the_same_version_for_its_own(
    risk: RiskClient, ledger: StandInLedger
):
    user = ledger.add_user()
    user.version, user.score, user.pause = 1, 12.5, license_pb.PAUSE_SCOPE_ALL
    order = pb.OverrideTrustRequest(user_id=str(user.user_id), score=90, operator_name="Ada", reason="why")
    await risk.call("OverrideTrust", order)
    await risk.check()
    assert (user.score, user.pause) == (90, license_pb.PAUSE_SCOPE_UNSPECIFIED)
    assert (await risk.trust(user.user_id)).version == user.version == 2


async def test_an_override_resumes_forgets_and_is_kept(
    risk: RiskClient, ledger: StandInLedger, fresh_database: str
):
    cheater = ledger.add_user()
    await cheat(risk, cheater)
    await risk.check()
    await risk.check()
    assert cheater.pause == license_pb.PAUSE_SCOPE_ALL

    order = pb.OverrideTrustRequest(
        user_id=str(cheater.user_id), score=70.0, operator_name="Ada", reason="their broker was down"
    )
    overridden = (await risk.call("OverrideTrust", order)).trust
    assert (overridden.score, overridden.level) == (70.0, pb.TRUST_LEVEL_GOOD)
    assert cheater.pause == license_pb.PAUSE_SCOPE_UNSPECIFIED
    assert cheater.score == 70.0
    assert "Ada" in cheater.reason

    # Nothing new: the operator's word stands.
    for _ in range(3):
        await risk.check()
    assert (await risk.trust(cheater.user_id)).score == 70.0
    # It counts from new: 19 signals are too few to pause on, though all were refused.
    await cheat(risk, cheater, signals=range(1_001, 1_020))
    for _ in range(3):
        await risk.check()
    assert cheater.pause == license_pb.PAUSE_SCOPE_UNSPECIFIED
    await cheat(risk, cheater, signals=range(1_020, 1_120))
    for _ in range(3):
        await risk.check()
    assert cheater.pause != license_pb.PAUSE_SCOPE_UNSPECIFIED

    row = await fetchrow(fresh_database, "select * from risk.overrides")
    assert (row["operator_name"], row["reason"], row["score"]) == ("Ada", "their broker was down", 70.0)
    assert row["previous_level"] == "paused"


async def test_integrity_violations_lower_trust_once_scored_on_enough_signals(
    risk: RiskClient, ledger: StandInLedger
):
    forger = ledger.add_user()
    await risk.report(forger.token, *(outcome(n) for n in range(1, 101)))
    # The same event ids with other bodies.
    response = await risk.report(forger.token, *(outcome(n, price_e8=1) for n in range(1, 101)))
    assert response.conflicts == 100
    await risk.check()
    trust = await risk.trust(forger.user_id)
    assert trust.score == pytest.approx(10.0)
    explained = await risk.call("ExplainTrust", pb.ExplainTrustRequest(user_id=str(forger.user_id)))
    assert explained.terms.integrity == 1.0
    assert explained.terms.rejection == 0.0


async def test_at_risk_users_are_listed_lowest_first_in_pages(risk: RiskClient, ledger: StandInLedger):
    users = [ledger.add_user() for _ in range(7)]
    for number, user in enumerate(users):
        first = 1_000 * number
        await risk.report(
            user.token,
            *(outcome(first + n, reason=SLIPPAGE if n <= 100 + 10 * number else 0) for n in range(1, 201)),
        )
    await risk.check()
    listed: list[pb.Trust] = []
    token = ""
    pages = 0
    while True:
        request = pb.ListAtRiskRequest(score_below=65, page_size=3, page_token=token)
        page = await risk.call("ListAtRisk", request)
        listed += page.users
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert pages == 3
    assert [one.user_id for one in listed] == [str(user.user_id) for user in reversed(users)]
    assert [one.score for one in listed] == sorted(one.score for one in listed)


async def test_the_leader_checks_by_itself_and_says_so(fresh_database: str, ledger: StandInLedger):
    configured = risk_settings(fresh_database, ledger.port, check_interval_seconds=0.1)
    async with risk_running(configured) as risk:
        cheater = ledger.add_user()
        await cheat(risk, cheater)
        await until(lambda: cheater.pause == license_pb.PAUSE_SCOPE_ALL)
        status = await risk.call("GetDetectorStatus", pb.GetDetectorStatusRequest())
        assert status.leader
        assert status.fencing_token == 1
        assert status.last_check_at.seconds > 0
        assert status.model_version
        page = await asyncio.to_thread(metrics_page, risk.running.admin_port)
    assert "risk_detector_leader 1.0" in page
    assert 'risk_users{level="paused"} 1.0' in page
    assert "risk_detector_last_success_timestamp_seconds" in page


async def test_two_processes_have_one_leader_and_the_other_takes_over(
    fresh_database: str, ledger: StandInLedger
):
    configured = risk_settings(fresh_database, ledger.port)
    async with AsyncExitStack() as first:
        one = await first.enter_async_context(risk_running(configured))
        await one.until_first_check()
        async with risk_running(configured) as two:
            await until_another_asked_for_the_lead(fresh_database)
            assert not two.running.leadership.is_leader
            before = await two.call("GetDetectorStatus", pb.GetDetectorStatusRequest())
            assert not before.leader
            # Any process may be asked for a check.
            assert (await two.check()).users == 0
            await first.aclose()
            await until(lambda: two.running.leadership.is_leader)
            after = await two.call("GetDetectorStatus", pb.GetDetectorStatusRequest())
            assert after.fencing_token == before.fencing_token + 1


async def until_another_asked_for_the_lead(url: str) -> None:
    asked = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'risk detector lease' and query like '%pg_try_advisory_lock%'"
    )
    async with asyncio.timeout(30):
        while True:
            if (await fetchrow(url, asked))["count"]:
                return
            await asyncio.sleep(0.02)


async def test_the_command_line_explains(
    risk: RiskClient, ledger: StandInLedger, fresh_database: str, capsys: pytest.CaptureFixture[str]
):
    cheater = ledger.add_user()
    await cheat(risk, cheater)
    await risk.check()
    await risk.check()
    words = ["--user-id", str(cheater.user_id), "--db-url", fresh_database]
    assert await asyncio.to_thread(toxic_flow.main, words) == 0
    page = capsys.readouterr().out
    assert "Rejected 200 of 200 signals" in page
    assert "slippage" in page
    assert "agrees" in page

    assert await asyncio.to_thread(toxic_flow.main, [*words, "--json", "--history", "5"]) == 0
    newest, oldest = json.loads(capsys.readouterr().out)
    assert (newest["version"], oldest["version"]) == (2, 1)
    assert newest["level"] == "paused"
    assert newest["replay"] == oldest["replay"] == "agrees"
    assert newest["sums"]["signals"] == 200

    assert (
        await asyncio.to_thread(toxic_flow.main, ["--user-id", str(uuid4()), "--db-url", fresh_database]) == 1
    )
    assert "never scored" in capsys.readouterr().err


async def test_the_runtime_role_cannot_run_ddl_or_rewrite_history(fresh_database: str):
    connection = await asyncpg.connect(fresh_database, server_settings={"role": "risk_service"})
    try:
        for statement in (
            "create table risk.mine (n int)",
            "drop table risk.outcomes",
            "delete from risk.overrides",
            "update risk.trust_decisions set score = 100",
            "delete from risk.outcomes",
            "truncate risk.user_sums",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_old_chunks_are_dropped_and_coming_ones_made(fresh_database: str):
    async with pg.pool(fresh_database, role="risk_service") as pool:
        store = DetectorStore(pool)
        old = datetime.now(UTC).date() - timedelta(days=40)
        await pool.fetch("select risk.ensure_chunks('risk.outcomes', $1::date, $1::date + 2)", old)
        days = {
            "risk.outcomes": 30,
            "risk.protection_logs": 30,
            "risk.integrity_violations": 30,
            "risk.trust_decisions": 180,
        }
        dropped = await store.keep_chunks(report_age_days=3, retention_days=days)
        assert dropped == [f"risk.outcomes_{old + timedelta(days=n):%Y%m%d}" for n in range(3)]
        assert await store.keep_chunks(report_age_days=3, retention_days=days) == []
        coming = f"risk.outcomes_{datetime.now(UTC) + timedelta(days=6):%Y%m%d}"
        assert await pool.fetchval("select to_regclass($1)", coming)


async def fetchrow(url: str, query: str) -> asyncpg.Record:
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(query)
        assert row is not None
        return row
    finally:
        await connection.close()


def metrics_page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return response.read().decode()
