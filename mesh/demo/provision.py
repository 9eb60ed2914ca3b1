"""Puts the cast on the ledger's books through its gRPC services, as an operator would; trades nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from execution.ledger.v1 import (
    license_service_pb2,
    license_service_pb2_grpc,
    master_service_pb2,
    master_service_pb2_grpc,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from mesh.connection import Connection
from mesh.demo.cast import MasterRole, SubscriberRole
from mesh.demo.strategies import STRATEGIES

FEE_E8 = 4_990_000_000
FEE_ASSET = "USD"
PLATFORM_SHARE_BPS = 2_000
# As long as the followers take: on a busy machine, a restart must not make signals too old to be sent.
SIGNAL_AGE_MAX = Duration(seconds=120)


@dataclass(frozen=True, slots=True)
class MasterCredentials:
    """What a master needs to log in."""

    role: MasterRole
    master_id: int
    key_id: str
    secret: bytes
    license_token: str


@dataclass(frozen=True, slots=True)
class SubscriberCredentials:
    """What a subscriber needs to follow; master_ids in the order of its role's follows."""

    role: SubscriberRole
    user_id: str
    license_id: str
    license_token: str
    master_ids: tuple[int, ...]


@dataclass(slots=True)
class Provisioner:
    """Creates users, masters, licenses and subscriptions. `run` makes their names unique."""

    connection: Connection
    run: str
    _count: int = field(default=0)

    def master(self, role: MasterRole) -> MasterCredentials:
        """A user who owns a master, with a signing key and a license."""
        user_id = self._user(role.name)
        stub = self.connection.stub("ledger", master_service_pb2_grpc.MasterServiceStub)
        made = stub.CreateMaster(
            master_service_pb2.CreateMasterRequest(
                request_id=self._request_id(), owner_user_id=user_id, display_name=role.name,
                account_mode=STRATEGIES[role.strategy]().account.mode, signal_age_max=SIGNAL_AGE_MAX,
            )
        )  # fmt: skip
        _, token = self._license(user_id)
        return MasterCredentials(role, made.master.master_id, made.key.key_id, made.key.secret, token)

    def subscriber(self, role: SubscriberRole, masters: list[MasterCredentials]) -> SubscriberCredentials:
        """A user with a license and a paid subscription to each master of its role."""
        user_id = self._user(role.name)
        followed = tuple(masters[index].master_id for index in role.follows)
        stub = self.connection.stub("ledger", subscription_service_pb2_grpc.SubscriptionServiceStub)
        for master_id in followed:
            stub.CreateSubscription(
                subscription_service_pb2.CreateSubscriptionRequest(
                    request_id=self._request_id(), user_id=user_id, master_id=master_id, fee_e8=FEE_E8,
                    fee_asset=FEE_ASSET, platform_share_bps=PLATFORM_SHARE_BPS,
                )
            )  # fmt: skip
        license_id, token = self._license(user_id)
        return SubscriberCredentials(role, user_id, license_id, token, followed)

    def _user(self, name: str) -> str:
        stub = self.connection.stub("ledger", user_service_pb2_grpc.UserServiceStub)
        made = stub.CreateUser(
            user_service_pb2.CreateUserRequest(
                request_id=self._request_id(), email=f"{name}.{self.run}@demo.invalid", display_name=name
            )
        )
        return made.user.user_id

    def _license(self, user_id: str) -> tuple[str, str]:
        stub = self.connection.stub("ledger", license_service_pb2_grpc.LicenseServiceStub)
        made = stub.IssueLicense(
            license_service_pb2.IssueLicenseRequest(request_id=self._request_id(), user_id=user_id)
        )
        return made.license.license_id, made.token

    def _request_id(self) -> str:
        self._count += 1
        return f"demo-{self.run}-{self._count}"
