"""What the front door is made of; nothing else puts it together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from execution.ingest.v1.ingest_service_pb2_grpc import add_IngestServiceServicer_to_server
from services.common import admin, auth, log, rpc, siblings, stream, tasks, tls
from services.ingest.authoriser import Authoriser
from services.ingest.front_door import FrontDoor, certificates_for, listening
from services.ingest.licenses import LicenseWatch
from services.ingest.peer import Door
from services.ingest.publisher import Publisher, publishing
from services.ingest.servicer import IngestServicer
from services.ingest.settings import IngestSettings
from services.ingest.shared_servicer import SharedIngestServicer

PUBLISH: Final = "/execution.ingest.v1.IngestService/Publish"
_AUTHORIZE: Final = "execution.ledger.v1.MasterService/AuthorizeMaster"


@dataclass(frozen=True, slots=True)
class Running:
    """A front door that takes masters."""

    port: int
    """Raw TCP."""
    grpc_port: int
    admin_port: int
    front_door: FrontDoor
    publisher: Publisher
    door: Door
    watch: LicenseWatch


@asynccontextmanager
async def running(settings: IngestSettings) -> AsyncIterator[Running]:
    """The service from start to drained end. Log and ledger may start later, or go away and come back.

    Raises:
        ConfigurationError: an address is in use, a file is unreadable, plaintext is not allowed, a URL is wrong.
    """
    certificates = certificates_for(settings)
    token = settings.service_token.get_secret_value()
    async with (
        stream.connect(settings) as client,
        log.connect(settings) as signal_log,
        rpc.channel(
            settings.ledger_address,
            token=token,
            files=tls.client_files(settings),
            idempotent=[_AUTHORIZE],
            call_timeout_seconds=settings.peer_call_timeout_seconds,
        ) as channel,
        publishing(settings) as publisher,
    ):
        door = Door(settings, publisher, Authoriser(channel, settings, monotonic_seconds=time.monotonic))
        watch = LicenseWatch(door, client)
        alone = IngestServicer(door, signal_log)
        servicer: IngestServicer = alone
        if settings.shares_ports:
            servicer = SharedIngestServicer(door, signal_log, siblings.Siblings(settings))
        async with (
            _closing(door),
            admin.serving(
                settings.admin_bind_address,
                _readiness(door),
                tick_age_seconds_max=settings.health_tick_age_seconds_max,
            ) as admin_port,
            siblings.answering(settings, [_registered(alone)], authorizer=_authorizer(settings)),
            rpc.serving(settings, [_registered(servicer)], authorizer=_authorizer(settings)) as server,
            tasks.background(watch.follow(), watch.recheck_regularly()),
            listening(door, certificates) as front_door,
        ):
            try:
                yield Running(
                    front_door.port, server.port, admin_port.port, front_door, publisher, door, watch
                )
            finally:
                door.is_draining = True
                await server.set_all_serving(False)


def _registered(servicer: IngestServicer) -> rpc.Registration:
    return rpc.registration(add_IngestServiceServicer_to_server, servicer)


@asynccontextmanager
async def _closing(door: Door) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await door.close()


def _authorizer(settings: IngestSettings) -> auth.Authorizer:
    # Publish authenticates by its own frames.
    return rpc.authorizer(settings, {PUBLISH: [auth.PrincipalKind.ANONYMOUS]})


def _readiness(door: Door) -> admin.Readiness:
    readiness = admin.Readiness()
    readiness.add("draining", lambda: not door.is_draining)
    # Away for one is away for all: taking every process out of service would help nobody.
    readiness.add("log", lambda: door.publisher.is_ready, gates=False)
    readiness.add("ledger", lambda: door.authoriser.is_ledger_up, gates=False)
    return readiness
