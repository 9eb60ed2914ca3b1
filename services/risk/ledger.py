"""Risk's way to the ledger: whose license it is, and what becomes of a user's subscriptions; it caches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import grpc

from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import license_service_pb2_grpc as license_grpc
from execution.ledger.v1 import subscription_service_pb2 as subscription_pb
from execution.ledger.v1 import subscription_service_pb2_grpc as subscription_grpc
from execution.ledger.v1 import user_service_pb2 as user_pb
from execution.ledger.v1 import user_service_pb2_grpc as user_grpc
from services.common import rpc
from services.risk.domain.ladder import Level

PEER: Final = "ledger"
IDEMPOTENT: Final = (
    "execution.ledger.v1.LicenseService/Authenticate",
    "execution.ledger.v1.SubscriptionService/ApplyTrust",
    "execution.ledger.v1.UserService/GetUser",
)
_REASON_CHARACTERS_MAX: Final = 500
PAUSES: Final = {
    Level.GOOD: license_pb.PAUSE_SCOPE_UNSPECIFIED,
    Level.WARN: license_pb.PAUSE_SCOPE_UNSPECIFIED,
    Level.CLOSE_ONLY: license_pb.PAUSE_SCOPE_CLOSE_ONLY,
    Level.PAUSED: license_pb.PAUSE_SCOPE_ALL,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a license token stands for."""

    user_id: UUID
    expires_at: datetime
    masters: frozenset[int]


@dataclass(frozen=True, slots=True)
class HeldTrust:
    """The decision on a user that ledger took last."""

    version: int
    score: float


class Ledger:
    """Calls to the ledger service over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._licenses = license_grpc.LicenseServiceStub(channel)
        self._subscriptions = subscription_grpc.SubscriptionServiceStub(channel)
        self._users = user_grpc.UserServiceStub(channel)

    async def authenticate(self, token: str) -> Identity:
        """Who the token stands for and whom that user follows.

        Raises:
            NotFoundError: unknown. FailedPreconditionError: expired or revoked. UnavailableError: ledger is away.
        """
        with rpc.peer_errors(PEER):
            reply = await self._licenses.Authenticate(license_pb.AuthenticateRequest(token=token))
        return Identity(
            user_id=UUID(reply.user_id),
            expires_at=reply.expires_at.ToDatetime(tzinfo=UTC),
            masters=frozenset(entitlement.master_id for entitlement in reply.entitlements),
        )

    async def apply_trust(self, user_id: UUID, score: float, version: int, level: Level, reason: str) -> bool:
        """Sets the user's trust and pauses or resumes its subscriptions; False when ledger has seen that version.

        Safe to repeat.

        Raises:
            NotFoundError: ledger does not know the user. UnavailableError: ledger is away.
        """
        request = subscription_pb.ApplyTrustRequest(
            user_id=str(user_id),
            trust_score=score,
            version=version,
            pause=PAUSES[level],
            reason=reason[:_REASON_CHARACTERS_MAX],
        )
        with rpc.peer_errors(PEER):
            reply = await self._subscriptions.ApplyTrust(request)
        return bool(reply.applied)

    async def held_trust(self, user_id: UUID) -> HeldTrust:
        """What ledger holds for the user.

        Raises:
            NotFoundError: ledger does not know the user. UnavailableError: ledger is away.
        """
        with rpc.peer_errors(PEER):
            reply = await self._users.GetUser(user_pb.GetUserRequest(user_id=str(user_id)))
        return HeldTrust(reply.user.trust_version, reply.user.trust_score)
