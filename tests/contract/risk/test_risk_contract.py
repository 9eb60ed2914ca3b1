"""Each rpc of RiskService answers each error that the contract names, and messages keep their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from execution.common.v1 import position_pb2
from execution.risk.v1 import risk_service_pb2 as pb
from services.risk.store import CHECK_LOCK
from tests.integration.risk.risk_service import RiskClient, bearer, outcome, risk_running, risk_settings
from tests.integration.risk.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger

Code = grpc.StatusCode
REQUESTS: dict[str, Callable[[], object]] = {
    "ReportOutcomes": lambda: pb.ReportOutcomesRequest(outcomes=[outcome(1)]),
    "GetTrust": lambda: pb.GetTrustRequest(user_id=str(uuid4())),
    "ExplainTrust": lambda: pb.ExplainTrustRequest(user_id=str(uuid4())),
    "ListAtRisk": pb.ListAtRiskRequest,
    "OverrideTrust": lambda: pb.OverrideTrustRequest(
        user_id=str(uuid4()), score=50, operator_name="Ada", reason="why"
    ),
    "RunCheck": pb.RunCheckRequest,
    "GetDetectorStatus": pb.GetDetectorStatusRequest,
}


async def refused(
    risk: RiskClient, method: str, request: object, *, token: str | None = OPERATOR_TOKEN
) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    metadata = () if token is None else bearer(token)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(risk.stub, method)(request, metadata=metadata, timeout=20)
    return caught.value.code(), info_of(caught.value)


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
                break
    return info


def test_every_rpc_is_tested_here():
    assert set(REQUESTS) == {method.name for method in pb.DESCRIPTOR.services_by_name["RiskService"].methods}


@pytest.mark.parametrize("method", REQUESTS)
async def test_without_a_token_nobody_gets_in(risk: RiskClient, method: str):
    code, info = await refused(risk, method, REQUESTS[method](), token=None)
    assert (code, info.reason) == (Code.UNAUTHENTICATED, "TOKEN_MISSING")


@pytest.mark.parametrize("method", REQUESTS)
async def test_an_unknown_token_is_unauthenticated(risk: RiskClient, method: str):
    code, _ = await refused(risk, method, REQUESTS[method](), token="ecp_unknown")
    assert code is Code.UNAUTHENTICATED


@pytest.mark.parametrize("reason", ["LICENSE_EXPIRED", "LICENSE_REVOKED"])
async def test_a_license_that_does_not_count_is_unauthenticated(
    risk: RiskClient, ledger: StandInLedger, reason: str
):
    user = ledger.add_user()
    ledger.refusals[user.token] = reason
    code, info = await refused(risk, "ReportOutcomes", REQUESTS["ReportOutcomes"](), token=user.token)
    assert (code, info.reason) == (Code.UNAUTHENTICATED, reason)


@pytest.mark.parametrize("token", [SERVICE_TOKEN, OPERATOR_TOKEN])
async def test_only_subscribers_report(risk: RiskClient, token: str):
    code, _ = await refused(risk, "ReportOutcomes", REQUESTS["ReportOutcomes"](), token=token)
    assert code is Code.PERMISSION_DENIED


async def test_only_operators_override(risk: RiskClient):
    code, _ = await refused(risk, "OverrideTrust", REQUESTS["OverrideTrust"](), token=SERVICE_TOKEN)
    assert code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("method", sorted(set(REQUESTS) - {"ReportOutcomes", "GetTrust", "ExplainTrust"}))
async def test_an_operator_may(risk: RiskClient, method: str):
    await risk.call(method, REQUESTS[method]())


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_report_has_1_to_1000_outcomes(risk: RiskClient, ledger: StandInLedger, count: int):
    request = pb.ReportOutcomesRequest(outcomes=[outcome(n + 1) for n in range(count)])
    code, _ = await refused(risk, "ReportOutcomes", request, token=ledger.add_user().token)
    assert code is Code.INVALID_ARGUMENT


async def test_1000_outcomes_are_taken(risk: RiskClient, ledger: StandInLedger):
    response = await risk.report(ledger.add_user().token, *(outcome(n + 1) for n in range(1_000)))
    assert response.stored == 1_000


@pytest.mark.parametrize("method", ["GetTrust", "ExplainTrust"])
async def test_who_was_never_scored_is_not_found(risk: RiskClient, method: str):
    code, info = await refused(risk, method, REQUESTS[method]())
    assert (code, info.reason) == (Code.NOT_FOUND, "NEVER_SCORED")


@pytest.mark.parametrize("text", ["", "7", "not-a-uuid", "{12345678-1234-5678-1234-567812345678}"])
@pytest.mark.parametrize("method", ["GetTrust", "ExplainTrust", "OverrideTrust"])
async def test_a_user_id_is_a_uuid(risk: RiskClient, method: str, text: str):
    request = REQUESTS[method]()
    request.user_id = text
    code, _ = await refused(risk, method, request)
    assert code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "fields",
    [
        {"score_below": -1.0},
        {"score_below": 102.0},
        {"score_below": float("nan")},
        {"score_below": float("inf")},
        {"page_size": 1_001},
        {"page_token": "?"},
        {"page_token": "AAAA"},
    ],
)
async def test_a_list_is_asked_for_within_its_bounds(risk: RiskClient, fields: dict[str, object]):
    code, _ = await refused(risk, "ListAtRisk", pb.ListAtRiskRequest(**fields))
    assert code is Code.INVALID_ARGUMENT


async def test_a_page_token_of_another_list_is_refused(risk: RiskClient):
    for n in range(2):
        request = pb.OverrideTrustRequest(user_id=str(uuid4()), score=n, operator_name="Ada", reason="why")
        await risk.call("OverrideTrust", request)
    page = await risk.call("ListAtRisk", pb.ListAtRiskRequest(page_size=1))
    assert page.next_page_token
    other = pb.ListAtRiskRequest(page_size=1, page_token=page.next_page_token, score_below=30)
    code, _ = await refused(risk, "ListAtRisk", other)
    assert code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "fields",
    [
        {"score": -0.1},
        {"score": 100.1},
        {"score": float("nan")},
        {"operator_name": ""},
        {"operator_name": " "},
        {"operator_name": "x" * 101},
        {"operator_name": "a\0b"},
        {"operator_name": "Ada\x1b[2J"},
        {"reason": ""},
        {"reason": "x" * 501},
        {"reason": "a\0b"},
        {"reason": "two\nlines, which ledger would refuse for ever"},
    ],
)
async def test_an_override_says_who_and_why(risk: RiskClient, fields: dict[str, object]):
    request = pb.OverrideTrustRequest(user_id=str(uuid4()), score=50, operator_name="Ada", reason="why")
    for name, value in fields.items():
        setattr(request, name, value)
    code, _ = await refused(risk, "OverrideTrust", request)
    assert code is Code.INVALID_ARGUMENT


async def test_a_second_check_at_once_is_aborted(risk: RiskClient, fresh_database: str):
    connection = await asyncpg.connect(fresh_database)
    try:
        await connection.fetchval("select pg_advisory_lock($1)", CHECK_LOCK)
        code, info = await refused(risk, "RunCheck", pb.RunCheckRequest())
        assert (code, info.reason) == (Code.ABORTED, "CHECK_RUNNING")
        assert info.metadata["retryable"] == "true"
        await connection.execute("select pg_advisory_unlock_all()")
    finally:
        await connection.close()
    await risk.check()


async def test_an_override_that_waits_long_for_a_check_is_aborted(fresh_database: str, ledger: StandInLedger):
    configured = risk_settings(fresh_database, ledger.port, check_lock_timeout_seconds=0.1)
    connection = await asyncpg.connect(fresh_database)
    try:
        await connection.fetchval("select pg_advisory_lock($1)", CHECK_LOCK)
        async with risk_running(configured) as risk:
            code, info = await refused(risk, "OverrideTrust", REQUESTS["OverrideTrust"]())
    finally:
        await connection.close()
    assert (code, info.metadata["retryable"]) == (Code.ABORTED, "true")


@pytest.mark.parametrize("method", sorted(set(REQUESTS) - {"ReportOutcomes"}))
async def test_without_its_database_it_is_unavailable(ledger: StandInLedger, method: str):
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    async with risk_running(risk_settings(nowhere, ledger.port)) as risk:
        code, info = await refused(risk, method, REQUESTS[method]())
        assert code is Code.UNAVAILABLE
        assert info.metadata["retryable"] == "true"


async def test_without_its_database_reports_are_unavailable(ledger: StandInLedger):
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    async with risk_running(risk_settings(nowhere, ledger.port)) as risk:
        token = ledger.add_user().token
        code, _ = await refused(risk, "ReportOutcomes", REQUESTS["ReportOutcomes"](), token=token)
        assert code is Code.UNAVAILABLE


async def test_without_ledger_unknown_licenses_are_unavailable(risk: RiskClient, ledger: StandInLedger):
    ledger.is_away = True
    token = ledger.add_user().token
    code, _ = await refused(risk, "ReportOutcomes", REQUESTS["ReportOutcomes"](), token=token)
    assert code is Code.UNAVAILABLE


async def test_an_unmigrated_database_is_unavailable(empty_database: str, ledger: StandInLedger):
    async with risk_running(risk_settings(empty_database, ledger.port)) as risk:
        code, _ = await refused(risk, "GetDetectorStatus", pb.GetDetectorStatusRequest())
        assert code is Code.UNAVAILABLE


async def test_a_call_that_takes_too_long_ends_at_its_deadline(fresh_database: str, ledger: StandInLedger):
    configured = risk_settings(fresh_database, ledger.port, grpc_unary_deadline_seconds=0.3)
    blocker = await asyncpg.connect(fresh_database)
    async with risk_running(configured) as risk:
        try:
            await blocker.execute("begin; lock table risk.trust_state in access exclusive mode")
            code, _ = await refused(risk, "GetTrust", REQUESTS["GetTrust"]())
            assert code is Code.DEADLINE_EXCEEDED
        finally:
            await blocker.close()


def test_the_service_names_its_errors_in_its_comments():
    proto = Path(__file__).parents[3] / "protos/execution/risk/v1/risk_service.proto"
    service = proto.read_text().split("service RiskService {")[1].split("\n}")[0]
    named = set(re.findall(r"\b[A-Z][A-Z_]{4,}\b", service))
    assert named >= {"INVALID_ARGUMENT", "NOT_FOUND", "ABORTED"}


def test_outcome_bytes_are_golden():
    made = pb.Outcome(
        event_id="e-1",
        master_id=7,
        position=position_pb2.StreamPosition(epoch=2, sequence=300),
        kind=pb.OUTCOME_KIND_PROTECTED,
        reason=pb.PROTECTION_REASON_SPREAD,
        price_e8=107_140_000,
        latency_us=1_500,
        occurred_at_us=1_700_000_000_000_000,
    )
    golden = "0a03652d3110071a05080210ac022002280330a0a78b3338dc0b408080f9c0c1c48203"
    assert made.SerializeToString(deterministic=True).hex() == golden
    assert pb.Outcome.FromString(bytes.fromhex(golden)) == made


def test_an_outcome_of_a_newer_client_is_read():
    newer = pb.Outcome(event_id="e").SerializeToString() + bytes.fromhex("9a0603616263")
    assert pb.Outcome.FromString(newer).event_id == "e"
