"""The raw TCP side: the listening socket, TLS, time, the end; it knows no rule about signals."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from services.common import shared_ports, tasks
from services.common.clock import now_us
from services.common.errors import ConfigurationError
from services.ingest import certificates, metrics
from services.ingest.certificates import Certificates
from services.ingest.connection import Connection, Connections
from services.ingest.open_files import connections_that_fit
from services.ingest.peer import Door
from services.ingest.places import NETWORK
from services.ingest.settings import IngestSettings

_log = logging.getLogger(__name__)

_TICK_SECONDS_MAX: Final = 0.5
_TICK_CONNECTIONS: Final = 100
_ACCEPT_PAUSE_SECONDS: Final = 0.1


class FrontDoor:
    """The listening socket and its connections."""

    def __init__(self, door: Door, listener: socket.socket, served: Certificates | None) -> None:
        self._door = door
        self._connections = Connections(door.settings, connections_that_fit(door.settings.connections_max))
        self._listener = listener
        self._certificates = served
        self.port: int = listener.getsockname()[1]

    @property
    def connections(self) -> int:
        """How many connections there are; those that are being refused do not count."""
        return len(self._connections.places)

    @property
    def refused(self) -> int:
        """How many connections are being told that they are one too many."""
        return len(self._connections.refused)

    async def accept(self) -> None:
        """Takes connections until cancelled.

        Done here and not by the event loop's server, which would count a connection only after its TLS handshake.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listener)
            except OSError as error:
                # Mostly too many open files; the connections that end will free some.
                _log.error("cannot accept a connection: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
                continue
            self._take(accepted, str(address[0]), int(address[1]))

    def _take(self, accepted: socket.socket, host: str, port: int) -> None:
        """Lets a connection in, or tells it why not, or, where even that is too much, closes it."""
        connections = self._connections
        refusal = connections.places.refusal(host)
        if refusal is not None:
            metrics.CUT.labels(refusal).inc()
            # Strangers to the network are told nothing; nor is it worth a TLS handshake, or a place, to say so.
            if refusal == NETWORK or self._certificates is not None or not connections.may_tell:
                accepted.close()
                return
        connection = Connection(self._door, connections, host, port, refusal)
        self._door.start(self._begin(connection, accepted), f"connection of {connection.peer_address}")

    async def _begin(self, connection: Connection, accepted: socket.socket) -> None:
        """Makes the socket a transport, with TLS where there is a certificate."""
        settings = self._door.settings
        options: dict[str, Any] = {}
        if self._certificates is not None:
            options = {
                "ssl": self._certificates.context(),
                "ssl_handshake_timeout": settings.unauthenticated_seconds_max,
                "ssl_shutdown_timeout": settings.linger_seconds,
            }
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: connection, accepted, **options)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is one
            _log.debug("no connection with %s: %s", connection.peer_address, error)
            if self._certificates is not None:
                metrics.CUT.labels("tls").inc()
            accepted.close()
            connection.leave()
        except BaseException:
            accepted.close()
            connection.leave()
            raise

    async def tick(self) -> None:
        """Looks at every connection several times in each time limit, until cancelled."""
        settings = self._door.settings
        limits = (
            settings.heartbeat_seconds,
            settings.unauthenticated_seconds_max,
            settings.frame_seconds_max,
        )
        interval_seconds = min(_TICK_SECONDS_MAX, *(limit / 8 for limit in limits))
        while True:
            await asyncio.sleep(interval_seconds)
            self._connections.observe()
            connections = self._connections.places.all()
            for start in range(0, len(connections), _TICK_CONNECTIONS):
                time_us, now_seconds = now_us(), time.monotonic()
                for connection in connections[start : start + _TICK_CONNECTIONS]:
                    connection.tick(time_us, now_seconds)
                # Thousands of connections must not make the signals of the others wait.
                await asyncio.sleep(0)

    async def drain(self) -> None:
        """Takes no new connections, sends everybody away, and waits until they are gone or the grace is over."""
        self._door.is_draining = True
        for connection in list(self._connections.refused):
            connection.abort()
        spread_ms = int(self._door.settings.drain_spread_seconds * 1_000)
        for connection in self._connections.places.all():
            connection.drain(random.randint(0, spread_ms))
        try:
            async with asyncio.timeout(self._door.settings.drain_grace_seconds):
                if self._connections.places:
                    await self._connections.none_left.wait()
        except TimeoutError:
            _log.warning("%d connections did not end in time", len(self._connections.places))
        for connection in self._connections.places.all():
            connection.abort()


@asynccontextmanager
async def listening(door: Door, served: Certificates | None) -> AsyncIterator[FrontDoor]:
    """Listens on BIND_ADDRESS until the block ends, then drains.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    address = door.settings.bind_address
    with _bound(door.settings) as listener:
        front_door = FrontDoor(door, listener, served)
        _log.info("masters are taken on %s", address.with_port(front_door.port))
        async with tasks.background(front_door.tick()):
            try:
                async with tasks.background(front_door.accept()):
                    yield front_door
            finally:
                listener.close()
                await front_door.drain()


def _bound(settings: IngestSettings) -> socket.socket:
    address = settings.bind_address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.shares_ports:
            shared_ports.share(listener)
        listener.bind((address.host, address.port))
        listener.listen(settings.listen_backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {address}: {error.strerror}",
            where="BIND_ADDRESS",
            do="stop the other process or choose another port",
        ) from error
    return listener


def certificates_for(settings: IngestSettings) -> Certificates | None:
    """The certificates to serve with, or None where plaintext is allowed.

    Raises:
        ConfigurationError: plaintext is not allowed on that address, or a certificate cannot be used.
    """
    found = certificates.of_settings(settings)
    if found is None and not (settings.bind_address.is_loopback or settings.allow_plaintext):
        raise ConfigurationError(
            f"masters would send their signals in plaintext to {settings.bind_address}",
            where="TLS_CERTIFICATE_FILE",
            do="set it and TLS_KEY_FILE, bind to 127.0.0.1, or allow it with ALLOW_PLAINTEXT=true",
        )
    return found
