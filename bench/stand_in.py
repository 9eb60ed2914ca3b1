"""A gRPC server on the loopback for what a benchmark puts in place of a service; only health is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


@asynccontextmanager
async def standing_in(add_servicers: Callable[[grpc.aio.Server], None]) -> AsyncIterator[int]:
    """Serves until the block ends; gives the port."""
    server = grpc.aio.server()
    add_servicers(server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
