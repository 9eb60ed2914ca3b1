"""Ledger, front door and clients as they are, around a fan-out: one master, one subscriber with a license."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ecp_client.disk import FsyncPolicy
from ecp_client.master import Master, MasterSettings, OutboxSettings
from execution.common.v1 import signal_pb2
from execution.ledger.v1 import subscription_service_pb2
from services.ingest import app as ingest_app
from tests.integration.fanout.fanout_service import (
    Fanout,
    fanout_running,
    fanout_settings,
)
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ledger.ledger_service import LedgerClient, ledger_running, ledger_settings

WAIT_SECONDS = 20.0


@dataclass
class World:
    """Ledger and front door, one master, and one subscriber with a license."""

    ledger: LedgerClient
    ingest: ingest_app.Running
    redis_url: str
    folder: Path
    master_id: int
    master_settings: MasterSettings
    subscription_id: str
    license_id: str
    token: str

    @asynccontextmanager
    async def fanout(self, **overrides: object) -> AsyncIterator[Fanout]:
        loaded = fanout_settings(
            self.redis_url,
            self.ledger.running,
            ingest_address=f"127.0.0.1:{self.ingest.grpc_port}",
            **overrides,
        )
        async with fanout_running(loaded) as fanout:
            yield fanout

    async def subscription(self) -> subscription_service_pb2.Subscription:
        request = subscription_service_pb2.GetSubscriptionRequest(subscription_id=self.subscription_id)
        return (await self.ledger.call("SubscriptionService/GetSubscription", request)).subscription


@asynccontextmanager
async def world_running(database_url: str, redis_url: str, folder: Path) -> AsyncIterator[World]:
    async with (
        ledger_running(ledger_settings(database_url, redis_url)) as ledger,
        ingest_running(redis_url, ledger.running.port) as ingest,
    ):
        owner, follower = await ledger.user(), await ledger.user()
        made = await ledger.master(owner)
        owners_license = await ledger.license(owner)
        subscription = await ledger.subscription(follower, made.master.master_id)
        issued = await ledger.license(follower)
        yield World(
            ledger,
            ingest,
            redis_url,
            folder,
            made.master.master_id,
            MasterSettings(
                addresses=[f"127.0.0.1:{ingest.port}"],
                master_id=made.master.master_id,
                key_id=made.key.key_id,
                secret=made.key.secret,
                license_token=owners_license.token,
                outbox_folder=folder / "outbox",
                plaintext=True,
                outbox=OutboxSettings(fsync=FsyncPolicy.NEVER),
            ),
            subscription.subscription_id,
            issued.license.license_id,
            issued.token,
        )


def opening(number: int) -> signal_pb2.Signal:
    return signal_pb2.Signal(
        kind=signal_pb2.SIGNAL_KIND_OPEN,
        position_id=number,
        symbol="EURUSD",
        side=signal_pb2.SIDE_BUY,
        volume_lots_e8=10_000_000,
        price_e8=107_140_000,
    )


async def send(master: Master, first: int, count: int) -> None:
    master.put_many([opening(number) for number in range(first, first + count)])
    await master.wait_all_acknowledged(timeout_seconds=WAIT_SECONDS)
