"""One subscription, and what its subscriber, its operator, risk and the fan-out do to it."""

from __future__ import annotations

from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import subscription_service_pb2 as pb
from execution.ledger.v1 import user_service_pb2 as users
from tests.integration.ledger.ledger_service import LedgerClient


class Followed:
    """A subscription under test."""

    def __init__(self, ledger: LedgerClient, user: users.User, made: pb.Subscription) -> None:
        self.ledger, self.user, self.made = ledger, user, made

    async def now(self) -> pb.Subscription:
        request = pb.GetSubscriptionRequest(subscription_id=self.made.subscription_id)
        return (await self.ledger.call("SubscriptionService/GetSubscription", request)).subscription

    async def pause(self, scope: licenses.PauseScope.ValueType) -> pb.Subscription:
        request = pb.PauseSubscriptionRequest(
            subscription_id=self.made.subscription_id, scope=scope, reason="operator says so"
        )
        return (await self.ledger.call("SubscriptionService/PauseSubscription", request)).subscription

    async def resume(self) -> pb.Subscription:
        request = pb.ResumeSubscriptionRequest(subscription_id=self.made.subscription_id, reason="fine again")
        return (await self.ledger.call("SubscriptionService/ResumeSubscription", request)).subscription

    async def cancel(self) -> pb.Subscription:
        request = pb.CancelSubscriptionRequest(subscription_id=self.made.subscription_id, reason="left")
        return (await self.ledger.call("SubscriptionService/CancelSubscription", request)).subscription

    async def trust(
        self, version: int, score: float, pause: licenses.PauseScope.ValueType, reason: str = "toxic"
    ) -> pb.ApplyTrustResponse:
        request = pb.ApplyTrustRequest(
            user_id=self.user.user_id, trust_score=score, version=version, pause=pause, reason=reason
        )
        return await self.ledger.call("SubscriptionService/ApplyTrust", request)

    async def record(self, **fields: object) -> pb.RecordPositionsResponse:
        one = pb.SubscriberPosition(user_id=self.user.user_id, master_id=self.made.master_id, **fields)
        return await self.ledger.call(
            "SubscriptionService/RecordPositions", pb.RecordPositionsRequest(positions=[one])
        )

    async def ask_for_full_sync(self, **filters: object) -> pb.RequestFullSyncResponse:
        values = filters or {"subscription_id": self.made.subscription_id}
        request = pb.RequestFullSyncRequest(reason="a customer called", **values)
        return await self.ledger.call("SubscriptionService/RequestFullSync", request)

    async def transitions(self) -> list[pb.SubscriptionTransition]:
        """All of them, oldest first."""
        found: list[pb.SubscriptionTransition] = []
        token = ""
        while True:
            request = pb.ListTransitionsRequest(
                subscription_id=self.made.subscription_id, page_size=3, page_token=token
            )
            page = await self.ledger.call("SubscriptionService/ListTransitions", request)
            found += page.transitions
            token = page.next_page_token
            if not token:
                return found[::-1]
