"""Stands where the ledger would and lets every subscriber of a benchmark follow one master; it keeps nothing."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import grpc

from bench.stand_in import standing_in
from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import license_service_pb2_grpc, subscription_service_pb2_grpc
from execution.ledger.v1 import subscription_service_pb2 as subscription_pb

MASTER_ID: Final = 1
_LICENSE_SECONDS: Final = 30 * 86_400


class Licenses(license_service_pb2_grpc.LicenseServiceServicer):
    """Takes every token for the name of a user."""

    async def Authenticate(
        self, request: license_pb.AuthenticateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> license_pb.AuthenticateResponse:
        """The user, who follows the one master."""
        answer = license_pb.AuthenticateResponse(user_id=f"user-{request.token}", license_id=request.token)
        answer.expires_at.FromSeconds(int(time.time()) + _LICENSE_SECONDS)
        answer.entitlements.add(subscription_id=f"sub-{request.token}", master_id=MASTER_ID, version=1)
        return answer


class Subscriptions(subscription_service_pb2_grpc.SubscriptionServiceServicer):
    """Takes positions and forgets them; every subscription is in step."""

    async def GetSubscription(
        self, request: subscription_pb.GetSubscriptionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> subscription_pb.GetSubscriptionResponse:
        """The subscription, in step."""
        answer = subscription_pb.GetSubscriptionResponse()
        answer.subscription.subscription_id = request.subscription_id
        answer.subscription.sync_state = subscription_pb.SYNC_STATE_SYNCED
        return answer

    async def RecordPositions(
        self, request: subscription_pb.RecordPositionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> subscription_pb.RecordPositionsResponse:
        """Says that all are recorded."""
        return subscription_pb.RecordPositionsResponse(recorded=len(request.positions))


def licensing() -> AbstractAsyncContextManager[int]:
    """Serves on the loopback until the block ends; gives the port."""

    def add(server: grpc.aio.Server) -> None:
        license_service_pb2_grpc.add_LicenseServiceServicer_to_server(
            Licenses(),  # type: ignore[abstract]  # one rpc is asked of it
            server,
        )
        subscription_service_pb2_grpc.add_SubscriptionServiceServicer_to_server(
            Subscriptions(),  # type: ignore[abstract]  # two rpcs are asked of it
            server,
        )

    return standing_in(add)
