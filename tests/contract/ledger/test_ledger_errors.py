"""Every rpc of the ledger with every error that its contract documents, as a client sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from execution.ledger.v1 import archive_service_pb2 as archive
from execution.ledger.v1 import billing_service_pb2 as billing
from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import master_service_pb2 as masters
from execution.ledger.v1 import subscription_service_pb2 as subscriptions
from execution.ledger.v1 import user_service_pb2 as users
from services.common import rpc, stream
from tests.integration.ledger.ledger_service import (
    OPERATOR_TOKEN,
    SERVICE_TOKEN,
    STUBS,
    LedgerClient,
    append,
    bearer,
    ledger_running,
    ledger_settings,
    superuser,
    unique,
)
from tests.integration.ledger.log_entries import run

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
ABORTED = grpc.StatusCode.ABORTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
ONLY_SERVICES = {
    "MasterService/AuthorizeMaster",
    "LicenseService/Authenticate",
    "SubscriptionService/RecordPositions",
}
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


@pytest.fixture
async def world(ledger: LedgerClient, fresh_database: str) -> World:
    owner, follower = await ledger.user(), await ledger.user()
    master = await ledger.master(owner)
    return World(
        ledger,
        fresh_database,
        owner,
        follower,
        master,
        await ledger.license(owner),
        await ledger.license(follower),
        await ledger.subscription(follower, master.master.master_id),
    )


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


def entries(*given: tuple[str, str, int]) -> list[billing.Entry]:
    return [billing.Entry(account=account, asset=asset, amount_e8=amount) for account, asset, amount in given]


INVALID_REQUESTS: list[tuple[str, Message, str]] = [
    ("UserService/CreateUser", new_user(request_id=""), "request_id"),
    ("UserService/CreateUser", new_user(request_id="x" * 65), "request_id"),
    ("UserService/CreateUser", new_user(request_id="é"), "request_id"),
    ("UserService/CreateUser", new_user(email="nobody"), "email"),
    ("UserService/CreateUser", new_user(email="a b@c.example"), "email"),
    ("UserService/CreateUser", new_user(email="a@" + "b" * 260 + ".example"), "email"),
    ("UserService/CreateUser", new_user(display_name=""), "display_name"),
    ("UserService/CreateUser", new_user(display_name="x" * 101), "display_name"),
    ("UserService/CreateUser", new_user(display_name="a\0b"), "display_name"),
    ("UserService/GetUser", users.GetUserRequest(user_id="x"), "user_id"),
    ("UserService/GetUser", users.GetUserRequest(user_id="{" + ID + "}"), "user_id"),
    ("UserService/ListUsers", users.ListUsersRequest(page_size=1_001), "page_size"),
    ("UserService/ListUsers", users.ListUsersRequest(page_token="x"), "page_token"),
    ("MasterService/CreateMaster", new_master(request_id=""), "request_id"),
    ("MasterService/CreateMaster", new_master(owner_user_id="x"), "owner_user_id"),
    ("MasterService/CreateMaster", new_master(display_name=""), "display_name"),
    ("MasterService/CreateMaster", new_master(account_mode=0), "account_mode"),
    ("MasterService/CreateMaster", new_master(account_mode=99), "account_mode"),
    ("MasterService/CreateMaster", new_master(signals_per_second_max=1_000_001), "signals_per_second_max"),
    ("MasterService/CreateMaster", new_master(signal_age_max=Duration()), "signal_age_max"),
    ("MasterService/CreateMaster", new_master(signal_age_max=Duration(seconds=2**62)), "signal_age_max"),
    ("MasterService/GetMaster", masters.GetMasterRequest(), "master_id"),
    ("MasterService/GetMaster", masters.GetMasterRequest(master_id=2**63), "master_id"),
    ("MasterService/ListMasters", masters.ListMastersRequest(page_size=1_001), "page_size"),
    ("MasterService/ListMasters", masters.ListMastersRequest(page_token="AAAA"), "page_token"),
    ("MasterService/RotateSigningKey", masters.RotateSigningKeyRequest(master_id=1), "request_id"),
    ("MasterService/RotateSigningKey", masters.RotateSigningKeyRequest(request_id="r"), "master_id"),
    (
        "MasterService/RotateSigningKey",
        masters.RotateSigningKeyRequest(request_id="r", master_id=1, overlap=Duration(seconds=30 * DAY + 1)),
        "overlap",
    ),
    (
        "MasterService/RotateSigningKey",
        masters.RotateSigningKeyRequest(request_id="r", master_id=1, overlap=Duration(seconds=-1)),
        "overlap",
    ),
    ("MasterService/RevokeSigningKey", masters.RevokeSigningKeyRequest(key_id="k1"), "master_id"),
    ("MasterService/RevokeSigningKey", masters.RevokeSigningKeyRequest(master_id=1), "key_id"),
    (
        "MasterService/AuthorizeMaster",
        masters.AuthorizeMasterRequest(key_id="k", license_token="t"),
        "master_id",
    ),
    (
        "MasterService/AuthorizeMaster",
        masters.AuthorizeMasterRequest(master_id=1, license_token="t"),
        "key_id",
    ),
    (
        "MasterService/AuthorizeMaster",
        masters.AuthorizeMasterRequest(master_id=1, key_id="k"),
        "license_token",
    ),
    (
        "MasterService/AuthorizeMaster",
        masters.AuthorizeMasterRequest(master_id=1, key_id="k", license_token="x" * 129),
        "license_token",
    ),
    ("LicenseService/IssueLicense", new_license(request_id=""), "request_id"),
    ("LicenseService/IssueLicense", new_license(user_id="x"), "user_id"),
    ("LicenseService/IssueLicense", new_license(validity=Duration()), "validity"),
    ("LicenseService/IssueLicense", new_license(validity=Duration(seconds=400 * DAY + 1)), "validity"),
    ("LicenseService/RotateLicense", licenses.RotateLicenseRequest(license_id=ID), "request_id"),
    (
        "LicenseService/RotateLicense",
        licenses.RotateLicenseRequest(request_id="r", license_id="x"),
        "license_id",
    ),
    (
        "LicenseService/RotateLicense",
        licenses.RotateLicenseRequest(request_id="r", license_id=ID, overlap=Duration(seconds=31 * DAY)),
        "overlap",
    ),
    ("LicenseService/RevokeLicense", licenses.RevokeLicenseRequest(license_id="x"), "license_id"),
    ("LicenseService/RevokeLicense", licenses.RevokeLicenseRequest(license_id=ID, reason=LONG), "reason"),
    ("LicenseService/ListLicenses", licenses.ListLicensesRequest(user_id="x"), "user_id"),
    ("LicenseService/ListLicenses", licenses.ListLicensesRequest(user_id=ID, page_size=1_001), "page_size"),
    ("LicenseService/ListLicenses", licenses.ListLicensesRequest(user_id=ID, page_token="?"), "page_token"),
    ("SubscriptionService/CreateSubscription", new_subscription(request_id=""), "request_id"),
    ("SubscriptionService/CreateSubscription", new_subscription(user_id=""), "user_id"),
    ("SubscriptionService/CreateSubscription", new_subscription(master_id=0), "master_id"),
    ("SubscriptionService/CreateSubscription", new_subscription(fee_e8=-1), "fee_e8"),
    ("SubscriptionService/CreateSubscription", new_subscription(fee_e8=1), "fee_asset"),
    ("SubscriptionService/CreateSubscription", new_subscription(fee_asset="usd"), "fee_asset"),
    (
        "SubscriptionService/CreateSubscription",
        new_subscription(platform_share_bps=10_001),
        "platform_share_bps",
    ),
    ("SubscriptionService/GetSubscription", subscriptions.GetSubscriptionRequest(), "subscription_id"),
    ("SubscriptionService/ListSubscriptions", subscriptions.ListSubscriptionsRequest(user_id="x"), "user_id"),
    (
        "SubscriptionService/ListSubscriptions",
        subscriptions.ListSubscriptionsRequest(page_size=1_001),
        "page_size",
    ),
    (
        "SubscriptionService/ListSubscriptions",
        subscriptions.ListSubscriptionsRequest(page_token="x"),
        "page_token",
    ),
    (
        "SubscriptionService/PauseSubscription",
        subscriptions.PauseSubscriptionRequest(scope=1),
        "subscription_id",
    ),
    (
        "SubscriptionService/PauseSubscription",
        subscriptions.PauseSubscriptionRequest(subscription_id=ID, reason="r"),
        "scope",
    ),
    (
        "SubscriptionService/PauseSubscription",
        subscriptions.PauseSubscriptionRequest(subscription_id=ID, scope=9, reason="r"),
        "scope",
    ),
    (
        "SubscriptionService/PauseSubscription",
        subscriptions.PauseSubscriptionRequest(subscription_id=ID, scope=1),
        "reason",
    ),
    ("SubscriptionService/ResumeSubscription", subscriptions.ResumeSubscriptionRequest(), "subscription_id"),
    (
        "SubscriptionService/ResumeSubscription",
        subscriptions.ResumeSubscriptionRequest(subscription_id=ID, reason=LONG),
        "reason",
    ),
    ("SubscriptionService/CancelSubscription", subscriptions.CancelSubscriptionRequest(), "subscription_id"),
    (
        "SubscriptionService/CancelSubscription",
        subscriptions.CancelSubscriptionRequest(subscription_id=ID),
        "reason",
    ),
    ("SubscriptionService/RecordPositions", recorded(user_id="x"), "positions[0].user_id"),
    ("SubscriptionService/RecordPositions", recorded(master_id=0), "positions[0].master_id"),
    ("SubscriptionService/RecordPositions", recorded(sync_state=9), "positions[0].sync_state"),
    ("SubscriptionService/RecordPositions", recorded(reason=LONG), "positions[0].reason"),
    (
        "SubscriptionService/RecordPositions",
        recorded(acknowledged={"epoch": 0, "sequence": 1}),
        "positions[0].acknowledged",
    ),
    (
        "SubscriptionService/RecordPositions",
        subscriptions.RecordPositionsRequest(
            positions=[subscriptions.SubscriberPosition(user_id=ID, master_id=1)] * 10_001
        ),
        "positions",
    ),
    ("SubscriptionService/ApplyTrust", trust(user_id="x"), "user_id"),
    ("SubscriptionService/ApplyTrust", trust(trust_score=100.1), "trust_score"),
    ("SubscriptionService/ApplyTrust", trust(trust_score=float("nan")), "trust_score"),
    ("SubscriptionService/ApplyTrust", trust(version=0), "version"),
    ("SubscriptionService/ApplyTrust", trust(pause=9), "pause"),
    ("SubscriptionService/ApplyTrust", trust(reason=""), "reason"),
    ("SubscriptionService/ApplyTrust", trust(reason="x" * 501), "reason"),
    ("BillingService/PostJournal", new_journal(idempotency_key=""), "idempotency_key"),
    ("BillingService/PostJournal", new_journal(idempotency_key="x" * 129), "idempotency_key"),
    ("BillingService/PostJournal", new_journal(description=""), "description"),
    ("BillingService/PostJournal", new_journal(entries=[]), "entries"),
    ("BillingService/PostJournal", new_journal(entries=entries(("user:a", "USD", 1))), "entries"),
    ("BillingService/PostJournal", new_journal(entries=JOURNAL * 51), "entries"),
    (
        "BillingService/PostJournal",
        new_journal(entries=entries(("a", "USD", 1), ("b", "USD", -2))),
        "entries",
    ),
    (
        "BillingService/PostJournal",
        new_journal(entries=entries(("a", "USD", 1), ("b", "EUR", -1))),
        "entries",
    ),
    (
        "BillingService/PostJournal",
        new_journal(entries=entries(("a", "USD", 0), ("b", "USD", 0))),
        "entries[0].amount_e8",
    ),
    (
        "BillingService/PostJournal",
        new_journal(entries=entries(("a", "USD", 1), ("B", "USD", -1))),
        "entries[1].account",
    ),
    (
        "BillingService/PostJournal",
        new_journal(entries=entries(("a", "usd", 1), ("b", "usd", -1))),
        "entries[0].asset",
    ),
    ("BillingService/GetBalance", billing.GetBalanceRequest(asset="USD"), "account"),
    ("BillingService/GetBalance", billing.GetBalanceRequest(account="a"), "asset"),
    (
        "BillingService/GetBalance",
        billing.GetBalanceRequest(account="a", asset="USD", as_of=Timestamp(seconds=2**60)),
        "as_of",
    ),
    ("BillingService/ListJournals", billing.ListJournalsRequest(page_size=1_001), "page_size"),
    ("BillingService/ListJournals", billing.ListJournalsRequest(page_token="x"), "page_token"),
    ("BillingService/ListJournals", billing.ListJournalsRequest(account="A"), "account"),
    ("ArchiveService/ReadSignals", archive.ReadSignalsRequest(), "master_id"),
    (
        "ArchiveService/ReadSignals",
        archive.ReadSignalsRequest(master_id=1, records_max=1_000_001),
        "records_max",
    ),
    ("ArchiveService/ReadSignals", archive.ReadSignalsRequest(master_id=1, after={"sequence": 5}), "after"),
    ("ArchiveService/GetSignal", archive.GetSignalRequest(position={"epoch": 1, "sequence": 1}), "master_id"),
    ("ArchiveService/GetSignal", archive.GetSignalRequest(master_id=1), "position"),
]


async def test_what_is_wrong_whatever_the_state_is_named_by_its_field(ledger: LedgerClient) -> None:
    for method, request, field in INVALID_REQUESTS:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(ledger, method, request, SERVICE_TOKEN)
        assert raised.value.code() is INVALID, (method, request)
        error = rpc.error_from_rpc(raised.value)
        assert [violation.field for violation in error.violations] == [field], (method, request)


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


@pytest.mark.parametrize(("method", "request_"), all_methods(), ids=[name for name, _ in all_methods()])
async def test_every_call_needs_a_token_of_the_right_kind(
    world: World, method: str, request_: Message
) -> None:
    async def code(token: str | None) -> grpc.StatusCode:
        try:
            await call(world.ledger, method, request_, token)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    assert await code(None) is grpc.StatusCode.UNAUTHENTICATED
    assert await code("not-a-token-of-ours") is grpc.StatusCode.UNAUTHENTICATED
    assert await code(world.license.token) is grpc.StatusCode.UNAUTHENTICATED
    assert await code(SERVICE_TOKEN) not in refused
    if method in ONLY_SERVICES:
        assert await code(OPERATOR_TOKEN) is grpc.StatusCode.PERMISSION_DENIED
    else:
        assert await code(OPERATOR_TOKEN) not in refused


@pytest.fixture
async def without_stores(tmp_path) -> AsyncIterator[LedgerClient]:
    configured = ledger_settings(
        f"postgresql://nobody@/nothing?host={tmp_path}", f"unix://{tmp_path}/redis.sock"
    )
    async with ledger_running(configured) as client:
        yield client


async def test_every_call_is_unavailable_while_the_stores_are_away(without_stores: LedgerClient) -> None:
    login = masters.AuthorizeMasterRequest(master_id=1, key_id="k1", license_token="t")
    page = {"page_size": 1}
    valid: dict[str, Message] = {
        "UserService/CreateUser": new_user(),
        "UserService/GetUser": users.GetUserRequest(user_id=ID),
        "UserService/ListUsers": users.ListUsersRequest(**page),
        "MasterService/CreateMaster": new_master(),
        "MasterService/GetMaster": masters.GetMasterRequest(master_id=1),
        "MasterService/ListMasters": masters.ListMastersRequest(**page),
        "MasterService/RotateSigningKey": masters.RotateSigningKeyRequest(request_id="r", master_id=1),
        "MasterService/RevokeSigningKey": masters.RevokeSigningKeyRequest(master_id=1, key_id="k1"),
        "MasterService/AuthorizeMaster": login,
        "LicenseService/IssueLicense": new_license(),
        "LicenseService/Authenticate": licenses.AuthenticateRequest(token="t"),
        "LicenseService/RotateLicense": licenses.RotateLicenseRequest(request_id="r", license_id=ID),
        "LicenseService/RevokeLicense": licenses.RevokeLicenseRequest(license_id=ID),
        "LicenseService/ListLicenses": licenses.ListLicensesRequest(user_id=ID),
        "SubscriptionService/CreateSubscription": new_subscription(),
        "SubscriptionService/GetSubscription": subscriptions.GetSubscriptionRequest(subscription_id=ID),
        "SubscriptionService/ListSubscriptions": subscriptions.ListSubscriptionsRequest(),
        "SubscriptionService/PauseSubscription": subscriptions.PauseSubscriptionRequest(
            subscription_id=ID, scope=1, reason="r"
        ),
        "SubscriptionService/ResumeSubscription": subscriptions.ResumeSubscriptionRequest(
            subscription_id=ID, reason="r"
        ),
        "SubscriptionService/CancelSubscription": subscriptions.CancelSubscriptionRequest(
            subscription_id=ID, reason="r"
        ),
        "SubscriptionService/RecordPositions": recorded(),
        "SubscriptionService/ApplyTrust": trust(),
        "BillingService/PostJournal": new_journal(),
        "BillingService/GetBalance": billing.GetBalanceRequest(account="a", asset="USD"),
        "BillingService/ListJournals": billing.ListJournalsRequest(),
        "BillingService/CheckBooks": billing.CheckBooksRequest(),
        "ArchiveService/ReadSignals": archive.ReadSignalsRequest(master_id=1),
        "ArchiveService/GetSignal": archive.GetSignalRequest(
            master_id=1, position={"epoch": 1, "sequence": 1}
        ),
        "ArchiveService/GetArchiveStatus": archive.GetArchiveStatusRequest(),
    }
    assert set(valid) == {name for name, _ in all_methods()}
    for method, request in valid.items():
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(without_stores, method, request, SERVICE_TOKEN)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE, method
