"""From reported outcomes to a pause at ledger, through the running service."""

from __future__ import annotations

from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.risk.v1 import risk_service_pb2 as pb
from tests.integration.risk.risk_service import RiskClient, outcome
from tests.integration.risk.stand_in_ledger import StandInLedger

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
