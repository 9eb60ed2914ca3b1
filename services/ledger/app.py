"""What the ledger is made of; `running` is its composition root, for the process and for the tests alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from execution.ledger.v1 import (
    archive_service_pb2_grpc,
    billing_service_pb2_grpc,
    license_service_pb2_grpc,
    master_service_pb2_grpc,
    subscription_service_pb2_grpc,
    user_service_pb2_grpc,
)
from services.common import admin, log, migrations, pg, rpc, stream, tasks
from services.common.auth import PrincipalKind
from services.common.settings import require_secret
from services.ledger.consumer import Archiver
from services.ledger.housekeeping import Housekeeper
from services.ledger.leadership import Duty, lead
from services.ledger.log import Log
from services.ledger.publisher import EventPublisher
from services.ledger.servicer.archive import ArchiveServicer
from services.ledger.servicer.billing import BillingServicer
from services.ledger.servicer.licenses import LicenseServicer
from services.ledger.servicer.masters import MasterServicer
from services.ledger.servicer.subscriptions import SubscriptionServicer
from services.ledger.servicer.users import UserServicer
from services.ledger.settings import LedgerSettings
from services.ledger.store.archive_reading import ArchiveReader
from services.ledger.store.archive_writing import ArchiveWriter
from services.ledger.store.billing import BillingStore
from services.ledger.store.licenses import LicenseStore
from services.ledger.store.masters import MasterStore
from services.ledger.store.outbox import OutboxStore
from services.ledger.store.progress import ProgressStore
from services.ledger.store.sealing import Sealer
from services.ledger.store.subscriptions import SubscriptionStore
from services.ledger.store.transitions import TransitionStore
from services.ledger.store.upkeep import UpkeepStore
from services.ledger.store.users import UserStore
from services.ledger.trimming import Trimmer

MIGRATIONS: Final = Path(__file__).parent / "migrations"
SCHEMA: Final = "ledger"
ONLY_SERVICES: Final = frozenset({PrincipalKind.SERVICE})
ALLOWED: Final = {
    "/execution.ledger.v1.LicenseService/Authenticate": ONLY_SERVICES,
    "/execution.ledger.v1.MasterService/AuthorizeMaster": ONLY_SERVICES,
    "/execution.ledger.v1.SubscriptionService/RecordPositions": ONLY_SERVICES,
}


@dataclass(frozen=True, slots=True)
class Running:
    """The ports of a ledger that runs."""

    port: int
    admin_port: int


@asynccontextmanager
async def running(settings: LedgerSettings) -> AsyncIterator[Running]:
    """A ledger from start to graceful end. It starts whether or not PostgreSQL and Redis are there yet.

    Raises:
        ConfigurationError: a setting is missing or wrong, or a port is in use.
    """
    sealer = Sealer.from_base64(require_secret(settings.key_encryption_key, "KEY_ENCRYPTION_KEY"))
    async with (
        pg.pool(settings, name="ledger") as pool,
        stream.connect(settings) as redis,
        log.connect(settings) as signal_log,
        admin.serving(
            settings.admin_bind_address, tick_age_seconds_max=settings.health_tick_age_seconds_max
        ) as ops,
        _duties(settings, pool, redis, logs := _logs(signal_log), ops.readiness),
        rpc.serving(
            settings,
            _registrations(settings, pool, sealer, logs),
            authorizer=rpc.authorizer(settings, ALLOWED),
        ) as server,
    ):
        yield Running(server.port, ops.port)


def _registrations(
    settings: LedgerSettings, pool: pg.Pool, sealer: Sealer, logs: Sequence[Log]
) -> list[rpc.Registration]:
    return [
        rpc.registration(
            user_service_pb2_grpc.add_UserServiceServicer_to_server, UserServicer(UserStore(pool))
        ),
        rpc.registration(
            master_service_pb2_grpc.add_MasterServiceServicer_to_server,
            MasterServicer(MasterStore(pool, sealer), key_overlap=settings.signing_key_overlap),
        ),
        rpc.registration(
            license_service_pb2_grpc.add_LicenseServiceServicer_to_server,
            LicenseServicer(
                LicenseStore(pool), validity=settings.license_validity, overlap=settings.license_overlap
            ),
        ),
        rpc.registration(
            subscription_service_pb2_grpc.add_SubscriptionServiceServicer_to_server,
            SubscriptionServicer(SubscriptionStore(pool), ProgressStore(pool), TransitionStore(pool)),
        ),
        rpc.registration(
            billing_service_pb2_grpc.add_BillingServiceServicer_to_server,
            BillingServicer(BillingStore(pool, accounts_max=settings.accounts_cached_max)),
        ),
        rpc.registration(
            archive_service_pb2_grpc.add_ArchiveServiceServicer_to_server,
            ArchiveServicer(ArchiveReader(pool, page_rows=settings.archive_page_rows), logs),
        ),
    ]


@asynccontextmanager
async def _duties(
    settings: LedgerSettings,
    pool: pg.Pool,
    redis: stream.Redis,
    logs: Sequence[Log],
    readiness: admin.Readiness,
) -> AsyncIterator[None]:
    """What one ledger at a time does beside answering calls. Its failures are logged and retried, never fatal.

    Each shard of the log has its own leader, so that several processes share them.
    """
    publisher = EventPublisher(OutboxStore(pool), redis, settings)
    housekeeper = Housekeeper(UpkeepStore(pool), settings)
    archivers = [Archiver(log, ArchiveWriter(pool, log.name), settings) for log in logs]
    readiness.add("database", lambda: pool.is_up, gates=False)
    readiness.add("events", lambda: publisher.is_up, gates=False)
    readiness.add("archive", lambda: all(archiver.is_up for archiver in archivers), gates=False)

    async def events(connection: pg.Connection) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(publisher.run(connection))
            group.create_task(housekeeper.run())

    archiving = [
        lead(
            pool,
            Duty.ARCHIVE,
            _archive(archiver, Trimmer(log, settings)),
            lease_seconds=settings.lease_seconds,
            shard=log.shard,
        )
        for log, archiver in zip(logs, archivers, strict=True)
    ]
    leading = lead(pool, Duty.EVENTS, events, lease_seconds=settings.lease_seconds)
    async with tasks.background(leading, *archiving):
        yield


def _logs(signal_log: log.SignalLog) -> tuple[Log, ...]:
    return tuple(Log(signal_log.client(shard), shard=shard) for shard in signal_log.shards)


def _archive(archiver: Archiver, trimmer: Trimmer) -> Callable[[pg.Connection], Awaitable[None]]:
    """What the leader of a shard's archive does."""

    async def work(connection: pg.Connection) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(archiver.run(connection))
            group.create_task(trimmer.run())

    return work


async def migrate(settings: LedgerSettings) -> None:
    """Brings the schema to what this code expects; safe to repeat and to run in several processes at once.

    Raises:
        ConfigurationError: no URL is set, a migration was changed, or one fails.
    """
    await migrations.apply(migrations.url(settings), MIGRATIONS, schema=SCHEMA)
