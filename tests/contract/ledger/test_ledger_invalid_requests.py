"""What is wrong with a request whatever the state: INVALID_ARGUMENT that names the field."""

from __future__ import annotations

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
from services.common import rpc
from tests.contract.ledger.ledger_contract import (
    DAY,
    ID,
    INVALID,
    JOURNAL,
    LONG,
    call,
    entries,
    full_sync,
    new_journal,
    new_license,
    new_master,
    new_subscription,
    new_user,
    recorded,
    transitions,
    trust,
)
from tests.integration.ledger.ledger_service import (
    SERVICE_TOKEN,
    LedgerClient,
)

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
    ("SubscriptionService/RecordPositions", recorded(full_sync_done=-1), "positions[0].full_sync_done"),
    (
        "SubscriptionService/RecordPositions",
        recorded(transitions=[{"sync_state": 1}] * 33),
        "positions[0].transitions",
    ),
    (
        "SubscriptionService/RecordPositions",
        recorded(transitions=[{"sync_state": 1}, {}]),
        "positions[0].transitions[1].sync_state",
    ),
    (
        "SubscriptionService/RecordPositions",
        recorded(transitions=[{"sync_state": 1, "reason": LONG}]),
        "positions[0].transitions[0].reason",
    ),
    (
        "SubscriptionService/RecordPositions",
        recorded(transitions=[{"sync_state": 1, "changed_at": Timestamp(seconds=2**60)}]),
        "positions[0].transitions[0].changed_at",
    ),
    ("SubscriptionService/RequestFullSync", full_sync(), "subscription_id"),
    ("SubscriptionService/RequestFullSync", full_sync(subscription_id="x"), "subscription_id"),
    ("SubscriptionService/RequestFullSync", full_sync(user_id="x"), "user_id"),
    ("SubscriptionService/RequestFullSync", full_sync(master_id=2**63), "master_id"),
    ("SubscriptionService/RequestFullSync", full_sync(master_id=1, reason=""), "reason"),
    ("SubscriptionService/RequestFullSync", full_sync(master_id=1, reason="x" * 151), "reason"),
    ("SubscriptionService/RequestFullSync", full_sync(master_id=1, page_size=1_001), "page_size"),
    ("SubscriptionService/RequestFullSync", full_sync(master_id=1, page_token="x"), "page_token"),
    ("SubscriptionService/ListTransitions", transitions(subscription_id="x"), "subscription_id"),
    ("SubscriptionService/ListTransitions", transitions(page_size=1_001), "page_size"),
    ("SubscriptionService/ListTransitions", transitions(page_token="x"), "page_token"),
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
