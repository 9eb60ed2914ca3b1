"""Starts the real risk service for a test and calls it as its clients do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from execution.common.v1 import position_pb2
from execution.risk.v1 import risk_service_pb2 as pb
from execution.risk.v1 import risk_service_pb2_grpc as risk_grpc
from services.common import settings
from services.risk import app
from services.risk.settings import RiskSettings
from tests.integration.risk.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN

NEVER_SECONDS = 86_400.0


def risk_settings(url: str, ledger_port: int, **overrides: object) -> RiskSettings:
    """Settings on loopback with free ports; the detector checks only when it is told."""
    values: dict[str, object] = {
        "database_url": url,
        "ledger_address": f"127.0.0.1:{ledger_port}",
        "grpc_bind_address": "127.0.0.1:0",
        "admin_bind_address": "127.0.0.1:0",
        "service_token": SERVICE_TOKEN,
        "operator_token": OPERATOR_TOKEN,
        "check_interval_seconds": NEVER_SECONDS,
        "lease_retry_seconds": 0.05,
        "lease_seconds": 2.0,
        "license_cache_seconds": 0.0,
        "license_refusal_cache_seconds": 0.0,
        "peer_call_timeout_seconds": 2.0,
        "drain_grace_seconds": 0.5,
    }
    return settings.load(RiskSettings, **(values | overrides))


@dataclass(slots=True)
class RiskClient:
    stub: risk_grpc.RiskServiceStub
    running: app.Running

    async def call(self, method: str, request: object, token: str = OPERATOR_TOKEN):
        return await getattr(self.stub, method)(request, metadata=bearer(token), timeout=20)

    async def report(self, token: str, *outcomes: pb.Outcome) -> pb.ReportOutcomesResponse:
        return await self.call("ReportOutcomes", pb.ReportOutcomesRequest(outcomes=outcomes), token)

    async def check(self) -> pb.RunCheckResponse:
        return await self.call("RunCheck", pb.RunCheckRequest())

    async def until_first_check(self) -> None:
        async with asyncio.timeout(20):
            while True:
                status = await self.call("GetDetectorStatus", pb.GetDetectorStatusRequest())
                if status.HasField("last_check_at"):
                    return
                await asyncio.sleep(0.01)

    async def trust(self, user_id: object) -> pb.Trust:
        return (await self.call("GetTrust", pb.GetTrustRequest(user_id=str(user_id)))).trust


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def risk_running(configured: RiskSettings) -> AsyncIterator[RiskClient]:
    async with (
        app.running(configured) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield RiskClient(risk_grpc.RiskServiceStub(channel), running)


def outcome(
    sequence: int,
    *,
    master: int = 1,
    epoch: int = 1,
    reason: int = pb.PROTECTION_REASON_UNSPECIFIED,
    event_id: str | None = None,
    **fields: object,
) -> pb.Outcome:
    protected = reason != pb.PROTECTION_REASON_UNSPECIFIED
    values: dict[str, object] = {
        "kind": pb.OUTCOME_KIND_PROTECTED if protected else pb.OUTCOME_KIND_EXECUTED,
        "reason": reason,
        "price_e8": 107_000_000,
        "latency_us": 1_500,
        "occurred_at_us": time.time_ns() // 1_000,
    }
    return pb.Outcome(
        event_id=event_id or f"{master}-{epoch}-{sequence}",
        master_id=master,
        position=position_pb2.StreamPosition(epoch=epoch, sequence=sequence),
        **(values | fields),
    )
