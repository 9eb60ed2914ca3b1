"""What the state forbids: the documented code and reason of each refusal, as a client sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from execution.ledger.v1 import archive_service_pb2 as archive
from execution.ledger.v1 import billing_service_pb2 as billing
from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import master_service_pb2 as masters
from execution.ledger.v1 import subscription_service_pb2 as subscriptions
from execution.ledger.v1 import user_service_pb2 as users
from services.common import stream
from tests.contract.ledger.ledger_contract import (
    ABORTED,
    EXISTS,
    ID,
    NOT_FOUND,
    OUT_OF_RANGE,
    PRECONDITION,
    World,
    call,
    full_sync,
    new_journal,
    new_license,
    new_master,
    new_subscription,
    new_user,
    transitions,
    trust,
)
from tests.integration.ledger.ledger_service import (
    SERVICE_TOKEN,
    append,
    unique,
)
from tests.integration.ledger.log_entries import run


@dataclass(frozen=True)
class Case:
    """A call that is refused, given a world; `prepare` is SQL that brings the world about."""

    method: str
    make: Callable[[World], Message]
    code: grpc.StatusCode
    reason: str
    prepare: str = ""


def by_id(world: World, request_class: type[Message], **fields: object) -> Message:
    return request_class(subscription_id=world.subscription.subscription_id, **fields)


CASES = [
    Case("UserService/CreateUser", lambda w: new_user(email=w.owner.email), EXISTS, "EMAIL_TAKEN"),
    Case("UserService/GetUser", lambda w: users.GetUserRequest(user_id=ID), NOT_FOUND, "USER_NOT_FOUND"),
    Case("MasterService/CreateMaster", lambda w: new_master(), NOT_FOUND, "USER_NOT_FOUND"),
    Case(
        "MasterService/GetMaster",
        lambda w: masters.GetMasterRequest(master_id=99),
        NOT_FOUND,
        "MASTER_NOT_FOUND",
    ),
    Case(
        "MasterService/RotateSigningKey",
        lambda w: masters.RotateSigningKeyRequest(request_id="r", master_id=99),
        NOT_FOUND,
        "MASTER_NOT_FOUND",
    ),
    Case(
        "MasterService/RevokeSigningKey",
        lambda w: masters.RevokeSigningKeyRequest(master_id=w.master.master.master_id, key_id="k9"),
        NOT_FOUND,
        "KEY_NOT_FOUND",
    ),
    Case(
        "MasterService/RevokeSigningKey",
        lambda w: masters.RevokeSigningKeyRequest(master_id=99, key_id="k1"),
        NOT_FOUND,
        "KEY_NOT_FOUND",
    ),
    Case("MasterService/AuthorizeMaster", lambda w: w.login(master_id=99), NOT_FOUND, "NOT_FOUND"),
    Case("MasterService/AuthorizeMaster", lambda w: w.login(key_id="k9"), NOT_FOUND, "NOT_FOUND"),
    Case("MasterService/AuthorizeMaster", lambda w: w.login(license_token="x"), NOT_FOUND, "NOT_FOUND"),
    Case(
        "MasterService/AuthorizeMaster",
        lambda w: w.login(license_token=w.license.token),
        NOT_FOUND,
        "NOT_FOUND",
    ),
    Case(
        "MasterService/AuthorizeMaster",
        lambda w: w.login(),
        PRECONDITION,
        "LICENSE_EXPIRED",
        "update ledger.licenses set issued_at = now() - interval '2 days', expires_at = now() - interval '1 day'",
    ),
    Case(
        "MasterService/AuthorizeMaster",
        lambda w: w.login(),
        PRECONDITION,
        "LICENSE_REVOKED",
        "update ledger.licenses set revoked_at = now()",
    ),
    Case(
        "MasterService/AuthorizeMaster",
        lambda w: w.login(),
        PRECONDITION,
        "KEY_REVOKED",
        "update ledger.signing_keys set revoked_at = now()",
    ),
    Case(
        "MasterService/AuthorizeMaster",
        lambda w: w.login(),
        PRECONDITION,
        "KEY_REVOKED",
        "update ledger.signing_keys set expires_at = now()",
    ),
    Case(
        "MasterService/AuthorizeMaster",
        lambda w: w.login(),
        PRECONDITION,
        "MASTER_SUSPENDED",
        "update ledger.masters set suspended_at = now()",
    ),
    Case("LicenseService/IssueLicense", lambda w: new_license(), NOT_FOUND, "USER_NOT_FOUND"),
    Case(
        "LicenseService/Authenticate",
        lambda w: licenses.AuthenticateRequest(token="ecp_unknown"),
        NOT_FOUND,
        "LICENSE_NOT_FOUND",
    ),
    Case(
        "LicenseService/Authenticate",
        lambda w: licenses.AuthenticateRequest(),
        NOT_FOUND,
        "LICENSE_NOT_FOUND",
    ),
    Case(
        "LicenseService/Authenticate",
        lambda w: licenses.AuthenticateRequest(token=w.license.token),
        PRECONDITION,
        "LICENSE_EXPIRED",
        "update ledger.licenses set issued_at = now() - interval '2 days', expires_at = now() - interval '1 day'",
    ),
    Case(
        "LicenseService/Authenticate",
        lambda w: licenses.AuthenticateRequest(token=w.license.token),
        PRECONDITION,
        "LICENSE_REVOKED",
        "update ledger.licenses set revoked_at = now()",
    ),
    Case(
        "LicenseService/RotateLicense",
        lambda w: licenses.RotateLicenseRequest(request_id="r", license_id=ID),
        NOT_FOUND,
        "LICENSE_NOT_FOUND",
    ),
    Case(
        "LicenseService/RotateLicense",
        lambda w: licenses.RotateLicenseRequest(request_id="r", license_id=w.license.license.license_id),
        PRECONDITION,
        "LICENSE_REVOKED",
        "update ledger.licenses set revoked_at = now()",
    ),
    Case(
        "LicenseService/RotateLicense",
        lambda w: licenses.RotateLicenseRequest(request_id="r", license_id=w.license.license.license_id),
        PRECONDITION,
        "LICENSE_EXPIRED",
        "update ledger.licenses set issued_at = now() - interval '2 days', expires_at = now() - interval '1 day'",
    ),
    Case(
        "LicenseService/RevokeLicense",
        lambda w: licenses.RevokeLicenseRequest(license_id=ID),
        NOT_FOUND,
        "LICENSE_NOT_FOUND",
    ),
    Case("SubscriptionService/CreateSubscription", lambda w: new_subscription(), NOT_FOUND, "USER_NOT_FOUND"),
    Case(
        "SubscriptionService/CreateSubscription",
        lambda w: new_subscription(user_id=w.follower.user_id, master_id=99),
        NOT_FOUND,
        "MASTER_NOT_FOUND",
    ),
    Case(
        "SubscriptionService/CreateSubscription",
        lambda w: new_subscription(user_id=w.follower.user_id, master_id=w.master.master.master_id),
        EXISTS,
        "SUBSCRIPTION_EXISTS",
    ),
    Case(
        "SubscriptionService/GetSubscription",
        lambda w: subscriptions.GetSubscriptionRequest(subscription_id=ID),
        NOT_FOUND,
        "SUBSCRIPTION_NOT_FOUND",
    ),
    Case(
        "SubscriptionService/PauseSubscription",
        lambda w: subscriptions.PauseSubscriptionRequest(subscription_id=ID, scope=1, reason="r"),
        NOT_FOUND,
        "SUBSCRIPTION_NOT_FOUND",
    ),
    Case(
        "SubscriptionService/PauseSubscription",
        lambda w: by_id(w, subscriptions.PauseSubscriptionRequest, scope=1, reason="r"),
        PRECONDITION,
        "SUBSCRIPTION_CANCELLED",
        "update ledger.subscriptions set cancelled_at = now()",
    ),
    Case(
        "SubscriptionService/ResumeSubscription",
        lambda w: subscriptions.ResumeSubscriptionRequest(subscription_id=ID, reason="r"),
        NOT_FOUND,
        "SUBSCRIPTION_NOT_FOUND",
    ),
    Case(
        "SubscriptionService/ResumeSubscription",
        lambda w: by_id(w, subscriptions.ResumeSubscriptionRequest, reason="r"),
        PRECONDITION,
        "SUBSCRIPTION_CANCELLED",
        "update ledger.subscriptions set cancelled_at = now()",
    ),
    Case(
        "SubscriptionService/CancelSubscription",
        lambda w: subscriptions.CancelSubscriptionRequest(subscription_id=ID, reason="r"),
        NOT_FOUND,
        "SUBSCRIPTION_NOT_FOUND",
    ),
    Case(
        "SubscriptionService/RequestFullSync",
        lambda w: full_sync(subscription_id=ID),
        NOT_FOUND,
        "SUBSCRIPTION_NOT_FOUND",
    ),
    Case(
        "SubscriptionService/RequestFullSync",
        lambda w: by_id(w, subscriptions.RequestFullSyncRequest, reason="r"),
        PRECONDITION,
        "SUBSCRIPTION_CANCELLED",
        "update ledger.subscriptions set cancelled_at = now()",
    ),
    Case("SubscriptionService/ListTransitions", lambda w: transitions(), NOT_FOUND, "SUBSCRIPTION_NOT_FOUND"),
    Case("SubscriptionService/ApplyTrust", lambda w: trust(), NOT_FOUND, "USER_NOT_FOUND"),
    Case(
        "BillingService/GetBalance",
        lambda w: billing.GetBalanceRequest(account="nobody", asset="USD"),
        NOT_FOUND,
        "ACCOUNT_NOT_FOUND",
    ),
    Case(
        "ArchiveService/GetSignal",
        lambda w: archive.GetSignalRequest(master_id=1, position={"epoch": 1, "sequence": 1}),
        NOT_FOUND,
        "SIGNAL_NOT_FOUND",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}-{case.reason}")
async def test_what_the_state_forbids_has_the_documented_code_and_reason(world: World, case: Case) -> None:
    if case.prepare:
        await world.sql(case.prepare)
    assert await world.code_of(case.method, case.make(world)) == (case.code, case.reason)


async def test_every_key_used_again_with_another_body_is_aborted(world: World) -> None:
    key, owner, follower = unique(), world.owner.user_id, world.follower.user_id
    another = (await world.ledger.master(world.owner)).master.master_id
    license_id = world.license.license.license_id
    pairs: list[tuple[str, Message, Message]] = [
        ("UserService/CreateUser", new_user(request_id=key), new_user(request_id=key, display_name="B")),
        (
            "MasterService/CreateMaster",
            new_master(request_id=key, owner_user_id=owner),
            new_master(request_id=key, owner_user_id=owner, account_mode=2),
        ),
        (
            "MasterService/RotateSigningKey",
            masters.RotateSigningKeyRequest(request_id=key, master_id=another),
            masters.RotateSigningKeyRequest(request_id=key, master_id=another, overlap=Duration(seconds=1)),
        ),
        (
            "LicenseService/IssueLicense",
            new_license(request_id=key, user_id=owner),
            new_license(request_id=key, user_id=follower),
        ),
        (
            "LicenseService/RotateLicense",
            licenses.RotateLicenseRequest(request_id=key, license_id=license_id),
            licenses.RotateLicenseRequest(request_id=key, license_id=license_id, overlap=Duration(seconds=1)),
        ),
        (
            "SubscriptionService/CreateSubscription",
            new_subscription(request_id=key, user_id=follower, master_id=another),
            new_subscription(request_id=key, user_id=owner, master_id=another),
        ),
        (
            "BillingService/PostJournal",
            new_journal(idempotency_key=key),
            new_journal(idempotency_key=key, description="another"),
        ),
    ]
    for method, first, second in pairs:
        await call(world.ledger, method, first, SERVICE_TOKEN)
        assert await world.code_of(method, second) == (ABORTED, "REQUEST_ID_REUSED"), method
        await call(world.ledger, method, first, SERVICE_TOKEN)


async def test_a_position_that_the_archive_does_not_have_is_out_of_range(
    world: World, redis: stream.Redis
) -> None:
    await append(redis, run(1, 50, 1))
    await world.ledger.archived(1)
    request = archive.ReadSignalsRequest(master_id=1, after={"epoch": 1, "sequence": 7})
    assert await world.code_of("ArchiveService/ReadSignals", request) == (
        OUT_OF_RANGE,
        "POSITION_NOT_ARCHIVED",
    )
