"""A small real gRPC server with the rpcs of ledger that risk calls; users are in memory, and it can be told to fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn
from uuid import UUID, uuid4

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import license_service_pb2_grpc as license_grpc
from execution.ledger.v1 import subscription_service_pb2 as subscription_pb
from execution.ledger.v1 import subscription_service_pb2_grpc as subscription_grpc
from execution.ledger.v1 import user_service_pb2 as user_pb
from execution.ledger.v1 import user_service_pb2_grpc as user_grpc
from services.common import status
from services.common.errors import FailedPreconditionError, NotFoundError, UnavailableError

SERVICE_TOKEN = "service-token-of-the-tests"
OPERATOR_TOKEN = "operator-token-of-the-tests"
FOR_EVER_SECONDS = 4_000_000_000


@dataclass(slots=True)
class StandInUser:
    user_id: UUID
    token: str
    masters: tuple[int, ...]
    score: float = 100.0
    version: int = 0
    pause: int = license_pb.PAUSE_SCOPE_UNSPECIFIED
    reason: str = ""
    applied: list[int] = field(default_factory=list)


class StandInLedger(
    license_grpc.LicenseServiceServicer,
    subscription_grpc.SubscriptionServiceServicer,
    user_grpc.UserServiceServicer,
):
    def __init__(self) -> None:
        self.users: dict[UUID, StandInUser] = {}
        self.is_away = False
        self.refusals: dict[str, str] = {}
        self.authentications = 0
        self.port = 0

    def add_user(self, *masters: int) -> StandInUser:
        user = StandInUser(uuid4(), f"ecp_{uuid4().hex}", masters or (1, 2, 3))
        self.users[user.user_id] = user
        return user

    async def Authenticate(self, request, context):
        self.authentications += 1
        await self._require_up(context)
        if request.token in self.refusals:
            error = FailedPreconditionError("it does not count", reason=self.refusals[request.token])
            await fail(context, error)
        for user in self.users.values():
            if user.token == request.token:
                reply = license_pb.AuthenticateResponse(user_id=str(user.user_id), license_id=str(uuid4()))
                reply.expires_at.FromSeconds(FOR_EVER_SECONDS)
                reply.entitlements.extend(license_pb.Entitlement(master_id=m) for m in user.masters)
                return reply
        return await fail(context, NotFoundError("no such license"))

    async def ApplyTrust(self, request, context):
        await self._require_up(context)
        user = self.users.get(UUID(request.user_id))
        if user is None:
            await fail(context, NotFoundError("no such user"))
        assert request.reason
        if request.version <= user.version:
            return subscription_pb.ApplyTrustResponse(applied=False)
        user.version, user.score, user.pause = request.version, request.trust_score, request.pause
        user.reason = request.reason
        user.applied.append(request.version)
        return subscription_pb.ApplyTrustResponse(applied=True)

    async def GetUser(self, request, context):
        await self._require_up(context)
        user = self.users.get(UUID(request.user_id))
        if user is None:
            await fail(context, NotFoundError("no such user"))
        return user_pb.GetUserResponse(
            user=user_pb.User(user_id=request.user_id, trust_score=user.score, trust_version=user.version)
        )

    async def _require_up(self, context) -> None:
        metadata = dict(context.invocation_metadata())
        assert metadata["authorization"] == f"Bearer {SERVICE_TOKEN}"
        if self.is_away:
            await fail(context, UnavailableError("told to be away"))


async def fail(context, error) -> NoReturn:
    await context.abort(status.code_of(error), error.message, status.trailers_of(error))


@asynccontextmanager
async def standing_in(port: int = 0) -> AsyncIterator[StandInLedger]:
    """The stand-in on a port of loopback; the same port again after a stop when it is given."""
    ledger = StandInLedger()
    server = grpc.aio.server()
    license_grpc.add_LicenseServiceServicer_to_server(ledger, server)
    subscription_grpc.add_SubscriptionServiceServicer_to_server(ledger, server)
    user_grpc.add_UserServiceServicer_to_server(ledger, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    ledger.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield ledger
    finally:
        await server.stop(0)
