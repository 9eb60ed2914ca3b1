"""The raw TCP side: sockets, buffers, time limits, numbers of connections; it knows no rule about signals."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

from execution.ingest.v1 import frames_pb2 as pb
from services.common.clock import now_us
from services.common.errors import ConfigurationError
from services.ingest import certificates, metrics
from services.ingest.certificates import Certificates
from services.ingest.domain.frames import FrameDecoder, FrameError, encode_frames
from services.ingest.peer import Door, Peer
from services.ingest.settings import IngestSettings

_log = logging.getLogger(__name__)

_TICK_SECONDS_MAX: Final = 0.5
_TICK_CONNECTIONS: Final = 100
_OUTPUT: Final = "output"
_DISCARD_BYTES_MAX: Final = 4 * 1_048_576


class Connections:
    """How many connections there are, in all, before login and from each address."""

    def __init__(self, door: Door) -> None:
        self._settings = door.settings
        self.all: set[Connection] = set()
        self._strangers: set[Connection] = set()
        self._by_address: dict[str, int] = {}
        self.none_left = asyncio.Event()

    def enter(self, connection: Connection, address: str) -> str | None:
        """Counts a new connection; returns the limit that it exceeds, if any."""
        self.all.add(connection)
        self.none_left.clear()
        self._strangers.add(connection)
        count = self._by_address.get(address, 0) + 1
        self._by_address[address] = count
        settings = self._settings
        if count > settings.connections_per_address_max:
            return "address"
        if len(self.all) > settings.connections_max:
            return "connections"
        if len(self._strangers) > settings.unauthenticated_connections_max:
            return "unauthenticated"
        return None

    def logged_in(self, connection: Connection) -> None:
        """The connection has a session now."""
        self._strangers.discard(connection)

    def leave(self, connection: Connection, address: str) -> None:
        """Counts a connection no more. Safe to repeat."""
        if connection not in self.all:
            return
        self.all.discard(connection)
        self._strangers.discard(connection)
        count = self._by_address.get(address, 0) - 1
        if count > 0:
            self._by_address[address] = count
        else:
            self._by_address.pop(address, None)
        if not self.all:
            self.none_left.set()

    def observe(self) -> None:
        """Sets the gauge."""
        metrics.CONNECTIONS.labels("unauthenticated").set(len(self._strangers))


class Connection(asyncio.Protocol):
    """One TCP connection: bytes to frames and back, with its bounds."""

    def __init__(self, door: Door, connections: Connections, certificates: Certificates | None) -> None:
        self._door = door
        self._connections = connections
        self._certificates = certificates
        self._decoder = FrameDecoder(door.settings.frame_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self.peer_address = ""
        self._peer = Peer(door, self)
        self._received_bytes = 0
        self._pauses: set[str] = set()
        self._is_input_paused = False
        self._frame_since: float | None = None
        self._blocked_since: float | None = None
        self._is_closing = False
        self._discarded_bytes = 0
        self._linger: asyncio.TimerHandle | None = None

    @property
    def is_unauthenticated(self) -> bool:
        """Whether no session is open on it."""
        return self._peer.session.intake is None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there; too many are told so and closed."""
        # uvloop's transports are no subclasses of it.
        plain = cast(asyncio.Transport, transport)
        name = plain.get_extra_info("peername")
        self._address = str(name[0]) if name else "?"
        self.peer_address = f"{name[0]}:{name[1]}" if name else "?"
        limit = self._connections.enter(self, self._address)
        if limit is not None:
            metrics.CUT.labels(limit).inc()
        if self._certificates is None:
            self._begin(plain, limit)
        elif limit is not None:
            # It is not worth a handshake to say so.
            plain.abort()
        else:
            plain.pause_reading()
            self._door.start(self._secure(plain, self._certificates.context()), f"TLS of {self._address}")

    async def _secure(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        """TLS on an accepted connection: here and not in the listener, so that handshakes are counted and bounded."""
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=self._door.settings.unauthenticated_seconds_max,
                ssl_shutdown_timeout=self._door.settings.linger_seconds,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is one
            metrics.CUT.labels("tls").inc()
            _log.debug("TLS handshake with %s failed: %s", self.peer_address, error)
            secured = None
        if secured is None or self._door.is_draining:
            transport.abort()
            self._leave()
            return
        self._begin(secured, None)

    def _begin(self, transport: asyncio.Transport, limit: str | None) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=self._door.settings.output_bytes_max // 4)
        if limit is not None:
            self._peer.end(pb.REJECT_CODE_TOO_MANY_CONNECTIONS, f"too many connections ({limit})")

    def data_received(self, data: bytes) -> None:
        """Bytes came in; on a connection that is closing they are thrown away."""
        if self._is_closing:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _DISCARD_BYTES_MAX:
                self.abort()
            return
        self._decoder.receive_data(data)
        if self.is_unauthenticated:
            self._received_bytes += len(data)
            if self._received_bytes > self._door.settings.unauthenticated_bytes_max:
                metrics.CUT.labels("unauthenticated_bytes").inc()
                self._peer.end(pb.REJECT_CODE_TOO_LARGE, "too many bytes before the login")
                return
        if not self._is_input_paused:
            self._pull()

    def eof_received(self) -> bool:
        """The client sends no more: nothing of it can be answered usefully any longer, so the connection closes."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._leave()

    def _leave(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._is_closing = True
        self._connections.leave(self, self._address)
        self._peer.disconnected()

    def pause_writing(self) -> None:
        """The client does not read: take nothing more from it, so that nothing more must be answered."""
        self._blocked_since = time.monotonic()
        self.pause(_OUTPUT)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._blocked_since = None
        self.resume(_OUTPUT)
        if not self._is_closing:
            self._peer.send()

    # peer.Port

    def write(self, payloads: list[bytes]) -> None:
        """Sends frames."""
        if self._transport is not None and not self._is_closing:
            self._transport.write(encode_frames(payloads))

    def close(self) -> None:
        """Half-closes behind the last frame and waits a moment for the client to do the same.

        Closing at once, with the client's bytes unread, would reset the connection, and the client might never see why.
        """
        if self._is_closing or self._transport is None:
            return
        self._is_closing = True
        self._is_input_paused = False
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()
        loop = asyncio.get_running_loop()
        self._linger = loop.call_later(self._door.settings.linger_seconds, self.abort)

    def pause(self, reason: str) -> None:
        """Stops reading until `resume` was called for each reason."""
        self._pauses.add(reason)
        if not self._is_input_paused and self._transport is not None and not self._is_closing:
            self._is_input_paused = True
            self._transport.pause_reading()

    def resume(self, reason: str) -> None:
        """Takes one reason back; goes on when it was the last."""
        self._pauses.discard(reason)
        if self._pauses or not self._is_input_paused or self._transport is None or self._is_closing:
            return
        self._is_input_paused = False
        self._transport.resume_reading()
        # Not from here: a resume may come in the middle of handing out the log's answers.
        asyncio.get_running_loop().call_soon(self._pull)

    def opened(self) -> None:
        """The session is open."""
        self._connections.logged_in(self)

    # Inside

    def _pull(self) -> None:
        """Feeds the session the frames that are there."""
        peer, decoder = self._peer, self._decoder
        session = peer.session
        time_us, now_seconds = now_us(), time.monotonic()
        payload: bytes | None = None
        try:
            while not self._is_input_paused and not session.is_closed:
                payload = decoder.next_frame()
                if payload is None:
                    break
                self._frame_since = None
                session.receive_payload(payload, time_us, now_seconds)
                if session.outbox.commands:
                    peer.settle()
        except FrameError as error:
            session.frame_failed(error)
        if self._frame_since is None and decoder.pending_bytes:
            self._frame_since = now_seconds
        peer.settle()

    def tick(self, time_us: int, now_seconds: float) -> None:
        """Looks at what is due, and at what takes too long."""
        if self._is_closing or self._transport is None:
            return
        settings = self._door.settings
        if self._blocked_since is not None:
            if now_seconds - self._blocked_since > settings.output_seconds_max:
                metrics.CUT.labels("slow_reader").inc()
                self.abort()
            return
        since, is_held = self._frame_since, self._is_input_paused
        if since is not None and not is_held and now_seconds - since > settings.frame_seconds_max:
            metrics.CUT.labels("slow_frame").inc()
            self._peer.end(pb.REJECT_CODE_MALFORMED, "a frame did not arrive whole in time")
            return
        self._peer.tick(time_us, now_seconds, is_held=is_held)

    def drain(self, reconnect_after_ms: int) -> None:
        """Tells the client to go elsewhere."""
        if not self._is_closing:
            self._peer.session.drain(reconnect_after_ms)
            self._peer.send()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class FrontDoor:
    """The listening socket and its connections."""

    def __init__(self, door: Door, connections: Connections, server: asyncio.Server) -> None:
        self._door = door
        self._connections = connections
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections.all)

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
            connections = list(self._connections.all)
            for start in range(0, len(connections), _TICK_CONNECTIONS):
                time_us, now_seconds = now_us(), time.monotonic()
                for connection in connections[start : start + _TICK_CONNECTIONS]:
                    connection.tick(time_us, now_seconds)
                # Thousands of connections must not make the signals of the others wait.
                await asyncio.sleep(0)

    async def drain(self) -> None:
        """Takes no new connections, sends everybody away, and waits until they are gone or the grace is over."""
        self._door.is_draining = True
        self._server.close()
        spread_ms = int(self._door.settings.drain_spread_seconds * 1_000)
        for connection in list(self._connections.all):
            connection.drain(random.randint(0, spread_ms))
        try:
            async with asyncio.timeout(self._door.settings.drain_grace_seconds):
                if self._connections.all:
                    await self._connections.none_left.wait()
        except TimeoutError:
            _log.warning("%d connections did not end in time", len(self._connections.all))
        for connection in list(self._connections.all):
            connection.abort()


@asynccontextmanager
async def listening(door: Door, served: Certificates | None) -> AsyncIterator[FrontDoor]:
    """Listens on BIND_ADDRESS until the block ends, then drains.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    settings = door.settings
    connections = Connections(door)
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(door, connections, served),
            settings.bind_address.host,
            settings.bind_address.port,
            family=socket.AF_INET6 if ":" in settings.bind_address.host else socket.AF_INET,
            backlog=settings.listen_backlog,
        )
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {settings.bind_address}: {error.strerror}",
            where="BIND_ADDRESS",
            do="stop the other process or choose another port",
        ) from error
    front_door = FrontDoor(door, connections, server)
    _log.info("masters are taken on %s", settings.bind_address.with_port(front_door.port))
    ticking = asyncio.create_task(front_door.tick(), name="front door clock")
    try:
        yield front_door
    finally:
        await front_door.drain()
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


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
