"""The real edge with a FanoutService that counts: it streams numbered signals, as many as the caller's name says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

from execution.common.v1 import signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from services.common import auth, h2grpc, rpc, settings
from services.common.errors import UnavailableError

SUBSCRIBE = "/execution.fanout.v1.FanoutService/Subscribe"
ACKNOWLEDGE = "/execution.fanout.v1.FanoutService/Acknowledge"
SERVICE_TOKEN = "service-token-of-the-tests"
LICENSE = (("authorization", "Bearer a-license"),)
LARGE_EVERY = 500
UNTIL_DRAINED = "until drained"


class EdgeSettings(h2grpc.Http2Settings):
    service_name = "edge"


def message(number: int) -> pb.SubscribeResponse:
    """The number-th message; now and then one that needs several frames."""
    size = 900 if number % LARGE_EVERY == 0 else 1
    one = signal_pb2.SequencedSignal(
        sequence=number, signal=signal_pb2.Signal(comment="x" * (number % 64), symbol="EURUSD")
    )
    return pb.SubscribeResponse(signals=pb.Signals(signals=[one] * size))


class Counting(fanout_service_pb2_grpc.FanoutServiceServicer):
    """Streams `client` messages; with a pause between them when a master is named.

    To a client named `until drained` it says one message at once, and its last words when the server begins to end.
    """

    def __init__(self) -> None:
        self.running = 0
        self.draining = asyncio.Event()

    async def Subscribe(
        self, request: pb.SubscribeRequest, context: rpc.Context
    ) -> AsyncIterator[pb.SubscribeResponse]:
        self.running += 1
        try:
            if request.client == UNTIL_DRAINED:
                yield message(1)
                await self.draining.wait()
                yield pb.SubscribeResponse(drain=pb.Drain())
                raise UnavailableError("the server is stopping", reason="DRAINING")
            for number in range(1, int(request.client) + 1):
                yield message(number)
                if request.masters:
                    await asyncio.sleep(0.001)
        finally:
            self.running -= 1

    async def Acknowledge(
        self, request: pb.AcknowledgeRequest, context: rpc.Context
    ) -> pb.AcknowledgeResponse:
        return pb.AcknowledgeResponse()

    async def ListStreams(
        self, request: pb.ListStreamsRequest, context: rpc.Context
    ) -> pb.ListStreamsResponse:
        return pb.ListStreamsResponse(next_page_token=str(self.running))


@dataclass
class Edge:
    port: int
    counting: Counting
    server: h2grpc.Server
    ca: bytes | None = None
    ca_file: Path | None = None

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def channel(self, *options: tuple[str, object]) -> grpc.aio.Channel:
        chosen = [("grpc.use_local_subchannel_pool", 1), *options]
        if self.ca is None:
            return grpc.aio.insecure_channel(self.target, chosen)
        return grpc.aio.secure_channel(self.target, grpc.ssl_channel_credentials(self.ca), chosen)


@asynccontextmanager
async def counting_edge(tls_folder: Path | None = None, **overrides: object) -> AsyncIterator[Edge]:
    ca, ca_file, files = None, None, {}
    if tls_folder is not None:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        files = {"tls_certificate_file": tls_folder / "server.pem", "tls_key_file": tls_folder / "server.key"}
        certificate.private_key_pem.write_to_path(files["tls_key_file"])
        certificate.cert_chain_pems[0].write_to_path(files["tls_certificate_file"])
        ca_file, ca = tls_folder / "ca.pem", authority.cert_pem.bytes()
        ca_file.write_bytes(ca)
    values = {
        "grpc_bind_address": "127.0.0.1:0",
        "service_token": SERVICE_TOKEN,
        "drain_grace_seconds": 2,
        **files,
        **overrides,
    }
    loaded = settings.load(EdgeSettings, **values)
    allowed = {SUBSCRIBE: {auth.PrincipalKind.LICENSE}, ACKNOWLEDGE: {auth.PrincipalKind.LICENSE}}
    counting = Counting()
    registration = rpc.registration(fanout_service_pb2_grpc.add_FanoutServiceServicer_to_server, counting)
    serving = h2grpc.serving(
        loaded, [registration], authorizer=rpc.authorizer(loaded, allowed), draining=counting.draining
    )
    async with serving as server:
        yield Edge(server.port, counting, server, ca, ca_file)


async def count(channel: grpc.aio.Channel, messages: int, *, slowly: bool = False) -> int:
    """Reads a stream to its end; returns the last number, every one having followed the one before."""
    stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
    masters = [pb.MasterStart(master_id=1)] if slowly else []
    last = 0
    async for response in stub.Subscribe(
        pb.SubscribeRequest(client=str(messages), masters=masters), metadata=LICENSE
    ):
        assert response.signals.signals[0].sequence == last + 1
        last += 1
    return last
