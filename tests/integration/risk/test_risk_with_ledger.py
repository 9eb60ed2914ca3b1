"""Risk and the real ledger together: a pause reaches subscriptions and the stream of events, and is taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import subscription_service_pb2 as subscription_pb
from execution.ledger.v1 import user_service_pb2 as user_pb
from execution.risk.v1 import risk_service_pb2 as pb
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    events_in,
    eventually,
    ledger_running,
    ledger_settings,
    refused,
    unique,
)
from tests.integration.risk.risk_service import RiskClient, outcome, risk_running, risk_settings

SLIPPAGE = pb.PROTECTION_REASON_SLIPPAGE
ALL = license_pb.PAUSE_SCOPE_ALL
NONE = license_pb.PAUSE_SCOPE_UNSPECIFIED


@dataclass(slots=True)
class Mesh:
    ledger: LedgerClient
    risk: RiskClient
    redis_url: str
    user: user_pb.User
    token: str
    subscriptions: list[subscription_pb.Subscription]

    async def pauses(self) -> list[tuple[int, int]]:
        listed = []
        for one in self.subscriptions:
            request = subscription_pb.GetSubscriptionRequest(subscription_id=one.subscription_id)
            now = (await self.ledger.call("SubscriptionService/GetSubscription", request)).subscription
            listed.append((now.pause, now.paused_by))
        return listed

    async def cheat(self) -> None:
        masters = [one.master_id for one in self.subscriptions]
        await self.risk.report(
            self.token,
            *(outcome(n, master=masters[n % len(masters)], reason=SLIPPAGE) for n in range(1, 201)),
        )
        for _ in range(2):
            await self.risk.check()


@pytest.fixture
async def mesh(fresh_database: str, redis_url: str) -> AsyncIterator[Mesh]:
    async with ledger_running(ledger_settings(fresh_database, redis_url)) as ledger:
        owner, user = await ledger.user(), await ledger.user()
        masters = [(await ledger.master(owner)).master.master_id for _ in range(2)]
        subscriptions = [await ledger.subscription(user, master) for master in masters]
        token = (await ledger.license(user)).token
        async with risk_running(risk_settings(fresh_database, ledger.running.port)) as risk:
            await risk.until_first_check()
            yield Mesh(ledger, risk, redis_url, user, token, subscriptions)


async def trust_at_ledger(mesh: Mesh) -> user_pb.User:
    request = user_pb.GetUserRequest(user_id=mesh.user.user_id)
    return (await mesh.ledger.call("UserService/GetUser", request)).user


async def test_a_pause_reaches_every_subscription_and_the_stream(mesh: Mesh):
    await mesh.cheat()
    by_risk = subscription_pb.PAUSED_BY_RISK
    assert await mesh.pauses() == [(ALL, by_risk), (ALL, by_risk)]
    stored = await trust_at_ledger(mesh)
    trust = await mesh.risk.trust(mesh.user.user_id)
    assert (stored.trust_score, stored.trust_version) == (trust.score, trust.version)

    async def announced() -> set[int]:
        events = [
            event for event in await events_in(mesh.redis_url) if event.HasField("subscription_changed")
        ]
        paused = {e.subscription_changed.master_id for e in events if e.subscription_changed.pause == ALL}
        return paused if len(paused) == 2 else set()

    assert await eventually(announced) == {one.master_id for one in mesh.subscriptions}


async def test_an_override_takes_the_pause_back(mesh: Mesh):
    await mesh.cheat()
    order = pb.OverrideTrustRequest(
        user_id=mesh.user.user_id, score=90, operator_name="Ada", reason="a broken line"
    )
    await mesh.risk.call("OverrideTrust", order)
    assert [pause for pause, _ in await mesh.pauses()] == [NONE, NONE]
    assert (await trust_at_ledger(mesh)).trust_score == 90


async def test_risk_resumes_only_what_risk_paused(mesh: Mesh):
    paused = mesh.subscriptions[0]
    request = subscription_pb.PauseSubscriptionRequest(
        subscription_id=paused.subscription_id, scope=ALL, reason="an operator's reason"
    )
    await mesh.ledger.call("SubscriptionService/PauseSubscription", request)
    await mesh.cheat()
    order = pb.OverrideTrustRequest(
        user_id=mesh.user.user_id, score=90, operator_name="Ada", reason="why not"
    )
    await mesh.risk.call("OverrideTrust", order)
    assert await mesh.pauses() == [
        (ALL, subscription_pb.PAUSED_BY_OPERATOR),
        (NONE, subscription_pb.PAUSED_BY_UNSPECIFIED),
    ]


async def test_a_revoked_license_reports_no_more(mesh: Mesh):
    await mesh.risk.report(mesh.token, outcome(1, master=mesh.subscriptions[0].master_id))
    listed = await mesh.ledger.call(
        "LicenseService/ListLicenses", license_pb.ListLicensesRequest(user_id=mesh.user.user_id)
    )
    revoke = license_pb.RevokeLicenseRequest(license_id=listed.licenses[0].license_id, reason="lost")
    await mesh.ledger.call("LicenseService/RevokeLicense", revoke)
    error = await refused(mesh.risk.report(mesh.token, outcome(2, master=mesh.subscriptions[0].master_id)))
    assert (type(error).__name__, error.reason) == ("UnauthenticatedError", "LICENSE_REVOKED")


async def test_masters_that_are_not_followed_are_refused(mesh: Mesh):
    owner = await mesh.ledger.user()
    other = (await mesh.ledger.master(owner, request_id=unique())).master.master_id
    response = await mesh.risk.report(mesh.token, outcome(1, master=other))
    assert response.stored == 0
    assert "not followed" in response.refused[0].message
