"""The one call that the fan-out makes of the front door, on a real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from execution.ingest.v1 import ingest_service_pb2 as ingest_pb
from execution.ingest.v1 import ingest_service_pb2_grpc
from services.common import auth, rpc, settings
from services.common.errors import FailedPreconditionError
from tests.integration.fanout.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN


class IngestSettings(settings.ServiceSettings):
    service_name = "ingest"


@dataclass
class StandInIngest(ingest_service_pb2_grpc.IngestServiceServicer):
    """`on_request(master_id)` is what a connected master does; masters in `away` are not connected."""

    port: int = 0
    asked: list[int] = field(default_factory=list)
    away: set[int] = field(default_factory=set)
    on_request: Callable[[int], Awaitable[object]] | None = None

    async def RequestSnapshot(
        self, request: ingest_pb.RequestSnapshotRequest, context: rpc.Context
    ) -> ingest_pb.RequestSnapshotResponse:
        self.asked.append(request.master_id)
        if request.master_id in self.away:
            raise FailedPreconditionError("not connected here", reason="NOT_CONNECTED")
        if self.on_request is not None:
            await self.on_request(request.master_id)
        return ingest_pb.RequestSnapshotResponse()


@asynccontextmanager
async def ingest_standing_in() -> AsyncIterator[StandInIngest]:
    """The stand-in on a port of its own."""
    ingest = StandInIngest()
    loaded = settings.load(
        IngestSettings,
        grpc_bind_address="127.0.0.1:0",
        service_token=SERVICE_TOKEN,
        operator_token=OPERATOR_TOKEN,
        drain_grace_seconds=0.2,
    )
    added = rpc.registration(ingest_service_pb2_grpc.add_IngestServiceServicer_to_server, ingest)
    async with rpc.serving(
        loaded, [added], authorizer=auth.Authorizer(service_token=SERVICE_TOKEN)
    ) as server:
        ingest.port = server.port
        yield ingest
