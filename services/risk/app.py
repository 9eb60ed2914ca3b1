"""The composition root: what the risk service is made of, top to bottom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from execution.risk.v1 import risk_service_pb2_grpc as risk_grpc
from services.common import admin, log, migrations, pg, rpc, tasks, tls
from services.common.clock import Clock, SystemClock
from services.common.settings import require_secret
from services.risk.detector import Detector
from services.risk.detector_store import DetectorStore
from services.risk.leadership import Leadership
from services.risk.ledger import IDEMPOTENT, Ledger
from services.risk.licenses import CacheRules, LicenseCache
from services.risk.log_heads import LogHeads
from services.risk.servicer import RULES, RiskServicer
from services.risk.settings import RiskSettings
from services.risk.store import RiskStore

MIGRATIONS: Final = Path(__file__).parent / "migrations"
SCHEMA: Final = "risk"


@dataclass(frozen=True, slots=True)
class Running:
    """The running service: its ports, and the parts that tests look into."""

    port: int
    admin_port: int
    detector: Detector
    leadership: Leadership


async def migrate(settings: RiskSettings) -> None:
    """Brings the schema `risk` up to date; safe to run again and from several processes."""
    await migrations.apply(migrations.url(settings), MIGRATIONS, schema=SCHEMA)


@asynccontextmanager
async def running(settings: RiskSettings, *, clock: Clock | None = None) -> AsyncIterator[Running]:
    """The service, serving until the block ends.

    Raises:
        ConfigurationError: a setting is missing, or an address cannot be bound.
    """
    clock = clock or SystemClock()
    url = require_secret(settings.database_url, "DATABASE_URL")
    async with (
        AsyncExitStack() as parts,
        pg.pool(settings, name="risk") as pool,
        rpc.channel(
            settings.ledger_address,
            token=settings.service_token.get_secret_value(),
            files=tls.client_files(settings),
            idempotent=IDEMPOTENT,
            call_timeout_seconds=settings.peer_call_timeout_seconds,
        ) as channel,
    ):
        ledger = Ledger(channel)
        signal_log = None
        if settings.redis_url is not None:
            signal_log = await parts.enter_async_context(log.connect(settings))
        detector_store = DetectorStore(pool)
        detector = Detector(detector_store, ledger, settings)
        leadership = Leadership(settings, url, detector_store, detector)
        servicer = RiskServicer(
            settings,
            store=_store(settings, pool),
            detector_store=detector_store,
            detector=detector,
            leadership=leadership,
            licenses=LicenseCache(ledger.authenticate, rules=_cache_rules(settings), clock=clock),
            heads=LogHeads(signal_log, masters_max=settings.masters_cached_max),
            clock=clock,
        )
        async with (
            tasks.background(leadership.run()),
            _serving(settings, pool, servicer) as (port, admin_port),
        ):
            yield Running(port, admin_port, detector, leadership)


@asynccontextmanager
async def _serving(
    settings: RiskSettings, pool: pg.Pool, servicer: RiskServicer
) -> AsyncIterator[tuple[int, int]]:
    """The gRPC port and the admin port, open for the block."""
    readiness = admin.Readiness()
    readiness.add("database", lambda: pool.is_up, gates=False)
    async with (
        admin.serving(
            settings.admin_bind_address, readiness, tick_age_seconds_max=settings.health_tick_age_seconds_max
        ) as ops,
        rpc.serving(
            settings,
            [rpc.registration(risk_grpc.add_RiskServiceServicer_to_server, servicer)],
            authorizer=rpc.authorizer(settings, RULES),
        ) as server,
    ):
        yield server.port, ops.port


def _store(settings: RiskSettings, pool: pg.Pool) -> RiskStore:
    return RiskStore(
        pool,
        outcome_age_days_max=settings.outcome_age_days_max,
        user_cache_entries_max=settings.user_cache_entries_max,
        check_lock_timeout_seconds=settings.check_lock_timeout_seconds,
    )


def _cache_rules(settings: RiskSettings) -> CacheRules:
    return CacheRules(
        entries_max=settings.license_cache_entries_max,
        fresh_seconds=settings.license_cache_seconds,
        refusal_seconds=settings.license_refusal_cache_seconds,
        stale_seconds=settings.license_stale_seconds_max,
    )
