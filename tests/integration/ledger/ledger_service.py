"""Starts the real ledger for a test and calls it as its peers and its operators do."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import asyncpg
import grpc

from execution.common.v1 import signal_pb2
from execution.ingest.v1 import log_pb2
from execution.ledger.v1 import (
    archive_service_pb2,
    archive_service_pb2_grpc,
    billing_service_pb2_grpc,
    events_pb2,
    license_service_pb2,
    license_service_pb2_grpc,
    master_service_pb2,
    master_service_pb2_grpc,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from services.common import rpc, settings, stream
from services.ledger import app
from services.ledger.settings import LedgerSettings

SERVICE_TOKEN = "service-token-of-the-tests"
OPERATOR_TOKEN = "operator-token-of-the-tests"
KEY_ENCRYPTION_KEY = base64.b64encode(bytes(range(32))).decode()
CALL_SECONDS_MAX = 20.0
WAIT_SECONDS_MAX = 60.0

_numbers = count(1)


def unique(prefix: str = "request") -> str:
    """A name that no other call of this run got."""
    return f"{prefix}-{next(_numbers)}"


def ledger_settings(database_url: str, redis_url: str, **overrides: object) -> LedgerSettings:
    """Settings on loopback with free ports and short waits."""
    values: dict[str, object] = {
        "database_url": database_url,
        "redis_url": redis_url,
        "grpc_bind_address": "127.0.0.1:0",
        "admin_bind_address": "127.0.0.1:0",
        "service_token": SERVICE_TOKEN,
        "operator_token": OPERATOR_TOKEN,
        "key_encryption_key": KEY_ENCRYPTION_KEY,
        "database_pool_size_max": 8,
        "archive_block_ms": 50,
        # The first round of housekeeping must not remove what a test has just dated back.
        "archive_retention_days": 3_650,
        "drain_grace_seconds": 0.5,
    }
    return settings.load(LedgerSettings, **(values | overrides))


@dataclass(slots=True)
class LedgerClient:
    """All of the ledger's services, and what tests make with them again and again."""

    channel: grpc.aio.Channel
    running: app.Running

    async def call(self, method: str, request: object, token: str = SERVICE_TOKEN):
        """One unary call, named `Service/Method` without the package."""
        service, _, name = method.partition("/")
        stub = STUBS[service](self.channel)
        return await getattr(stub, name)(request, metadata=bearer(token), timeout=CALL_SECONDS_MAX)

    async def user(self, **fields: object) -> user_service_pb2.User:
        name = unique("user")
        values = {"request_id": name, "email": f"{name}@example.com", "display_name": name} | fields
        return (await self.call("UserService/CreateUser", user_service_pb2.CreateUserRequest(**values))).user

    async def master(
        self, owner: user_service_pb2.User, **fields: object
    ) -> master_service_pb2.CreateMasterResponse:
        values = {
            "request_id": unique(),
            "owner_user_id": owner.user_id,
            "display_name": "a master",
            "account_mode": signal_pb2.ACCOUNT_MODE_HEDGING,
        }
        return await self.call(
            "MasterService/CreateMaster", master_service_pb2.CreateMasterRequest(**(values | fields))
        )

    async def license(
        self, user: user_service_pb2.User, **fields: object
    ) -> license_service_pb2.IssueLicenseResponse:
        values = {"request_id": unique(), "user_id": user.user_id} | fields
        return await self.call(
            "LicenseService/IssueLicense", license_service_pb2.IssueLicenseRequest(**values)
        )

    async def subscription(
        self, user: user_service_pb2.User, master_id: int, **fields: object
    ) -> subscription_service_pb2.Subscription:
        values = {"request_id": unique(), "user_id": user.user_id, "master_id": master_id} | fields
        response = await self.call(
            "SubscriptionService/CreateSubscription",
            subscription_service_pb2.CreateSubscriptionRequest(**values),
        )
        return response.subscription

    async def read(
        self, master_id: int, after: tuple[int, int] = (0, 0), records_max: int = 0
    ) -> list[archive_service_pb2.ArchivedRecord]:
        request = archive_service_pb2.ReadSignalsRequest(master_id=master_id, records_max=records_max)
        request.after.epoch, request.after.sequence = after
        stub = archive_service_pb2_grpc.ArchiveServiceStub(self.channel)
        call = stub.ReadSignals(request, metadata=bearer(SERVICE_TOKEN), timeout=CALL_SECONDS_MAX)
        return [record async for response in call for record in response.records]

    async def archived(self, signal_count: int) -> archive_service_pb2.GetArchiveStatusResponse:
        """Waits until the archive holds so many signals and nothing is pending."""
        request = archive_service_pb2.GetArchiveStatusRequest()

        async def done():
            status = await self.call("ArchiveService/GetArchiveStatus", request)
            return status if status.signal_count >= signal_count and not status.pending_entries else None

        return await eventually(done)


STUBS = {
    "UserService": user_service_pb2_grpc.UserServiceStub,
    "MasterService": master_service_pb2_grpc.MasterServiceStub,
    "LicenseService": license_service_pb2_grpc.LicenseServiceStub,
    "SubscriptionService": subscription_service_pb2_grpc.SubscriptionServiceStub,
    "BillingService": billing_service_pb2_grpc.BillingServiceStub,
    "ArchiveService": archive_service_pb2_grpc.ArchiveServiceStub,
}


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def ledger_running(configured: LedgerSettings) -> AsyncIterator[LedgerClient]:
    async with (
        app.running(configured) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield LedgerClient(channel, running)


async def refused(call) -> rpc.error_from_rpc:
    """The service error with which a call is refused."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return rpc.error_from_rpc(error)
    raise AssertionError(f"not refused: {answer!r}")


async def eventually(probe, *, seconds_max: float = WAIT_SECONDS_MAX):
    """Repeats an awaitable probe until it gives something true; the bound only ends a test that hangs."""
    async with asyncio.timeout(seconds_max):
        while True:
            found = await probe()
            if found:
                return found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def superuser(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def stored(database_url: str, query: str) -> list[tuple]:
    """All rows of a query, whoever may see them."""
    async with superuser(database_url) as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def events_in(redis_url: str) -> list[events_pb2.LedgerEvent]:
    """Everything on the stream of events."""
    async with stream.connect(redis_url) as client:
        entries = stream.entries_of(await client.xrange(stream.LEDGER_EVENTS))
    return [events_pb2.LedgerEvent.FromString(entry.payload) for entry in entries]


async def append(client: stream.Redis, *runs: log_pb2.LogRun) -> str:
    """Puts one entry into the log, as the front door does; its id."""
    payload = log_pb2.LogBatch(runs=runs).SerializeToString()
    return (await client.xadd(stream.log_name(), {stream.FIELD: payload})).decode()
