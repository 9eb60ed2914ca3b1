"""Who may call the ledger, and what every call says while the stores are away."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.message import Message

from execution.ledger.v1 import archive_service_pb2 as archive
from execution.ledger.v1 import billing_service_pb2 as billing
from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import master_service_pb2 as masters
from execution.ledger.v1 import subscription_service_pb2 as subscriptions
from execution.ledger.v1 import user_service_pb2 as users
from tests.contract.ledger.ledger_contract import (
    ID,
    World,
    all_methods,
    call,
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
    OPERATOR_TOKEN,
    SERVICE_TOKEN,
    LedgerClient,
    ledger_running,
    ledger_settings,
)

ONLY_SERVICES = {
    "MasterService/AuthorizeMaster",
    "LicenseService/Authenticate",
    "SubscriptionService/RecordPositions",
}


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
        "SubscriptionService/RequestFullSync": full_sync(master_id=1),
        "SubscriptionService/ListTransitions": transitions(),
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
