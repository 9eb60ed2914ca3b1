"""grpc.health.v1 alone, in plaintext, for probes that cannot speak TLS; it decides nothing about health."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from services.common.errors import ConfigurationError
from services.common.settings import ServiceSettings

_log = logging.getLogger(__name__)

# Probes come one by one; nobody else has business here.
_CALLS_MAX: Final = 100
_MESSAGE_BYTES_MAX: Final = 4_096


@asynccontextmanager
async def answering(settings: ServiceSettings, servicer: health.aio.HealthServicer) -> AsyncIterator[int]:
    """Answers on `settings.health_bind_address` until the block ends; yields the port, 0 without that setting.

    Raises:
        ConfigurationError: the address is in use or cannot be bound.
    """
    address = settings.health_bind_address
    if address is None:
        yield 0
        return
    options = [
        ("grpc.so_reuseport", int(settings.shares_ports)),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_CALLS_MAX)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {address}: in use or not an address of this machine",
            where="HEALTH_BIND_ADDRESS",
            do="stop the other process or choose another address",
        ) from error
    await server.start()
    _log.info("health answers in plaintext on %s", address.with_port(port))
    try:
        yield port
    finally:
        await server.stop(0)
