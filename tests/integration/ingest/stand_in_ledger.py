"""A small real gRPC server with the one rpc of ledger that the front door calls; it can be told to refuse or fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from execution.ledger.v1 import events_pb2
from execution.ledger.v1 import master_service_pb2 as pb
from execution.ledger.v1 import master_service_pb2_grpc as pb_grpc
from services.common import status
from services.common.errors import FailedPreconditionError, NotFoundError, ServiceError, UnavailableError
from services.common.stream import FIELD, LEDGER_EVENTS, Redis
from tests.unit.ingest.signing import Credentials

SERVICE_TOKEN = "service-token-of-the-tests"
OPERATOR_TOKEN = "operator-token-of-the-tests"


class StandInLedger(pb_grpc.MasterServiceServicer):
    def __init__(self) -> None:
        self.known: dict[int, Credentials] = {}
        self.rotated: dict[tuple[int, str], Credentials] = {}
        """Further keys of masters that are known."""
        self.refusals: dict[int, str] = {}
        self.expires_at: dict[int, float] = {}
        self.signals_per_second_max: dict[int, int] = {}
        self.archived: dict[int, tuple[int, int]] = {}
        self.asked = 0
        self.is_away = False
        self.may_answer = asyncio.Event()
        """Answers wait for it, as they were when the question came."""
        self.may_answer.set()
        self.port = 0

    def add(self, who: Credentials) -> Credentials:
        self.known[who.master_id] = who
        return who

    def rotate(self, who: Credentials) -> Credentials:
        """A further key of a master; those before it still count."""
        self.rotated[who.master_id, who.key_id] = who
        return who

    async def AuthorizeMaster(self, request, context):
        self.asked += 1
        assert dict(context.invocation_metadata())["authorization"] == f"Bearer {SERVICE_TOKEN}"
        if self.is_away:
            await fail(context, UnavailableError("told to be away"))
        if request.master_id in self.refusals:
            reason = self.refusals[request.master_id]
            await fail(context, FailedPreconditionError("it does not count", reason=reason))
        who = self.rotated.get((request.master_id, request.key_id)) or self.known.get(request.master_id)
        if who is None or (who.key_id, who.license_token) != (request.key_id, request.license_token):
            await fail(context, NotFoundError("master, key or license unknown"))
        answer = pb.AuthorizeMasterResponse(secret=who.secret, license_id=f"license-of-{who.master_id}")
        answer.master.master_id = who.master_id
        answer.master.signals_per_second_max = self.signals_per_second_max.get(who.master_id, 0)
        expires_at = self.expires_at.get(who.master_id, time.time() + 3_600)
        answer.expires_at.FromMicroseconds(int(expires_at * 1e6))
        if request.master_id in self.archived:
            answer.archived.epoch, answer.archived.sequence = self.archived[request.master_id]
        await self.may_answer.wait()
        return answer


async def fail(context, error: ServiceError) -> None:
    await context.abort(status.code_of(error), error.message, status.trailers_of(error))


async def announce(client: Redis, event: events_pb2.LedgerEvent) -> None:
    """What ledger's outbox would publish."""
    await client.xadd(LEDGER_EVENTS, {FIELD: event.SerializeToString()})


@asynccontextmanager
async def standing_in(port: int = 0) -> AsyncIterator[StandInLedger]:
    ledger = StandInLedger()
    server = grpc.aio.server()
    pb_grpc.add_MasterServiceServicer_to_server(ledger, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    ledger.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield ledger
    finally:
        await server.stop(0)
