"""A ledger with something in it, and requests that are right until a test makes one field wrong."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from execution.ledger.v1 import archive_service_pb2 as archive
from execution.ledger.v1 import billing_service_pb2 as billing
from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import master_service_pb2 as masters
from execution.ledger.v1 import subscription_service_pb2 as subscriptions
from execution.ledger.v1 import user_service_pb2 as users
from services.common import rpc
from tests.integration.ledger.ledger_service import (
    SERVICE_TOKEN,
    STUBS,
    LedgerClient,
    bearer,
    superuser,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
ABORTED = grpc.StatusCode.ABORTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
DAY = 86_400


@dataclass(slots=True)
class World:
    """A ledger with something in it, and the database behind it."""

    ledger: LedgerClient
    database_url: str
    owner: users.User
    follower: users.User
    master: masters.CreateMasterResponse
    owner_license: licenses.IssueLicenseResponse
    license: licenses.IssueLicenseResponse
    subscription: subscriptions.Subscription

    def login(self, **fields: object) -> masters.AuthorizeMasterRequest:
        values = {
            "master_id": self.master.master.master_id,
            "key_id": self.master.key.key_id,
            "license_token": self.owner_license.token,
        }
        return masters.AuthorizeMasterRequest(**(values | fields))

    async def sql(self, statement: str) -> None:
        async with superuser(self.database_url) as connection:
            await connection.execute(statement)

    async def code_of(self, method: str, request: Message) -> tuple[grpc.StatusCode, str]:
        """Status code and reason of a call that is refused."""
        try:
            await call(self.ledger, method, request, SERVICE_TOKEN)
        except grpc.aio.AioRpcError as error:
            return error.code(), reason_of(error)
        raise AssertionError("not refused")


async def call(ledger: LedgerClient, method: str, request: Message, token: str | None) -> object:
    service, _, name = method.partition("/")
    metadata = bearer(token) if token is not None else ()
    made = getattr(STUBS[service](ledger.channel), name)(request, metadata=metadata, timeout=20)
    if name == "ReadSignals":
        return [response async for response in made]
    return await made


def reason_of(error: grpc.aio.AioRpcError) -> str:
    return rpc.error_from_rpc(error).reason


ID = str(uuid4())
LONG = "x" * 201
JOURNAL = [
    billing.Entry(account="user:a", asset="USD", amount_e8=1),
    billing.Entry(account="user:b", asset="USD", amount_e8=-1),
]


def new_user(**fields: object) -> users.CreateUserRequest:
    return users.CreateUserRequest(
        **({"request_id": "r", "email": "a@b.example", "display_name": "A"} | fields)
    )


def new_master(**fields: object) -> masters.CreateMasterRequest:
    values = {"request_id": "r", "owner_user_id": ID, "display_name": "M", "account_mode": 1}
    return masters.CreateMasterRequest(**(values | fields))


def new_license(**fields: object) -> licenses.IssueLicenseRequest:
    return licenses.IssueLicenseRequest(**({"request_id": "r", "user_id": ID} | fields))


def new_subscription(**fields: object) -> subscriptions.CreateSubscriptionRequest:
    values = {"request_id": "r", "user_id": ID, "master_id": 1}
    return subscriptions.CreateSubscriptionRequest(**(values | fields))


def new_journal(**fields: object) -> billing.PostJournalRequest:
    return billing.PostJournalRequest(
        **({"idempotency_key": "k", "description": "d", "entries": JOURNAL} | fields)
    )


def trust(**fields: object) -> subscriptions.ApplyTrustRequest:
    values = {"user_id": ID, "trust_score": 50.0, "version": 1, "pause": 1, "reason": "r"}
    return subscriptions.ApplyTrustRequest(**(values | fields))


def recorded(**fields: object) -> subscriptions.RecordPositionsRequest:
    values = {"user_id": ID, "master_id": 1}
    return subscriptions.RecordPositionsRequest(
        positions=[subscriptions.SubscriberPosition(**(values | fields))]
    )


def full_sync(**fields: object) -> subscriptions.RequestFullSyncRequest:
    return subscriptions.RequestFullSyncRequest(**({"reason": "r"} | fields))


def transitions(**fields: object) -> subscriptions.ListTransitionsRequest:
    return subscriptions.ListTransitionsRequest(**({"subscription_id": ID} | fields))


def entries(*given: tuple[str, str, int]) -> list[billing.Entry]:
    return [billing.Entry(account=account, asset=asset, amount_e8=amount) for account, asset, amount in given]


def all_methods() -> list[tuple[str, Message]]:
    """Every method of every service of the ledger, with an empty request."""
    found = []
    for module in (users, masters, licenses, subscriptions, billing, archive):
        for service in module.DESCRIPTOR.services_by_name.values():
            found += [
                (f"{service.name}/{method.name}", method.input_type._concrete_class())
                for method in service.methods
            ]
    return found
