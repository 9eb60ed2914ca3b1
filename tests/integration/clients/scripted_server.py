"""A real gRPC server whose streams and answers a test writes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from ecp_client.positions import Position
from execution.common.v1 import signal_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from execution.risk.v1 import risk_service_pb2 as risk_pb
from execution.risk.v1 import risk_service_pb2_grpc
from tests.unit.clients.made import sequenced, signal

Context = grpc.aio.ServicerContext
Script = Callable[[pb.SubscribeRequest, "Context"], AsyncIterator[pb.SubscribeResponse]]


@dataclass
class ScriptedServer:
    """`scripts` are played one for each stream; the last one again and again."""

    scripts: list[Script]
    port: int = 0
    requests: list[pb.SubscribeRequest] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    acknowledged: list[Position] = field(default_factory=list)
    acknowledged_masters: set[int] = field(default_factory=set)
    outcomes: list[risk_pb.Outcome] = field(default_factory=list)
    report_requests: list[list[str]] = field(default_factory=list)
    failing_reports: int = 0
    refused_outcomes: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Fanout(fanout_service_pb2_grpc.FanoutServiceServicer):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    async def Subscribe(
        self, request: pb.SubscribeRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeResponse]:
        server = self._server
        server.tokens.append(str(dict(context.invocation_metadata() or ())["authorization"]))
        script = server.scripts[min(len(server.requests), len(server.scripts) - 1)]
        server.requests.append(request)
        async for response in script(request, context):
            yield response

    async def Acknowledge(self, request: pb.AcknowledgeRequest, context: Context) -> pb.AcknowledgeResponse:
        self._server.acknowledged += [Position.from_pb(one.position) for one in request.positions]
        self._server.acknowledged_masters.update(one.master_id for one in request.positions)
        return pb.AcknowledgeResponse()


class Risk(risk_service_pb2_grpc.RiskServiceServicer):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    async def ReportOutcomes(
        self, request: risk_pb.ReportOutcomesRequest, context: Context
    ) -> risk_pb.ReportOutcomesResponse:
        server = self._server
        server.report_requests.append([one.event_id for one in request.outcomes])
        if server.failing_reports:
            server.failing_reports -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "told to")
        server.outcomes += request.outcomes
        refused = [
            risk_pb.RefusedOutcome(event_id=one.event_id, message="told to")
            for one in request.outcomes
            if one.event_id in server.refused_outcomes
        ]
        return risk_pb.ReportOutcomesResponse(stored=len(request.outcomes), refused=refused)


@asynccontextmanager
async def serving(*scripts: Script) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer(list(scripts))
    server = grpc.aio.server()
    fanout_service_pb2_grpc.add_FanoutServiceServicer_to_server(Fanout(scripted), server)
    risk_service_pb2_grpc.add_RiskServiceServicer_to_server(Risk(scripted), server)
    scripted.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield scripted
    finally:
        await server.stop(0)


# What scripts are made of


def signals(*sequences: int) -> pb.SubscribeResponse:
    response = pb.SubscribeResponse()
    response.signals.signals.extend(
        sequenced(signal(signal_pb2.SIGNAL_KIND_OPEN, sequence), sequence) for sequence in sequences
    )
    return response


def snapshot(sequence: int) -> pb.SubscribeResponse:
    made = snapshot_pb2.Snapshot(master_id=1, as_of=Position(1, sequence).to_pb(), account_mode=1)
    return pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=made))


def state(told: pb.SubscriptionState.ValueType) -> pb.SubscribeResponse:
    return pb.SubscribeResponse(state_change=pb.StateChange(master_id=1, state=told, reason="told to"))


def drain(milliseconds: int) -> pb.SubscribeResponse:
    response = pb.SubscribeResponse(drain=pb.Drain())
    response.drain.reconnect_after.FromMilliseconds(milliseconds)
    return response


def says(*responses: pb.SubscribeResponse, then: grpc.StatusCode | None = None, details: str = "") -> Script:
    """Says these, and then stays silent, or ends with a status."""

    async def script(_request: pb.SubscribeRequest, context: Context) -> AsyncIterator[pb.SubscribeResponse]:
        for response in responses:
            yield response
        if then is None:
            await asyncio.Event().wait()
        else:
            await context.abort(then, details)

    return script


def out_of_range(oldest: int, stored: int | None) -> Script:
    async def script(_request: pb.SubscribeRequest, context: Context) -> AsyncIterator[pb.SubscribeResponse]:
        detail = pb.PositionUnavailable(
            master_id=1, oldest=Position(1, oldest).to_pb(), head=Position(1, 99).to_pb()
        )
        if stored is not None:
            detail.snapshot.CopyFrom(Position(1, stored).to_pb())
        status = status_pb2.Status(code=grpc.StatusCode.OUT_OF_RANGE.value[0], message="gone")
        status.details.add().Pack(detail)
        await context.abort_with_status(rpc_status.to_status(status))
        yield pb.SubscribeResponse()

    return script
