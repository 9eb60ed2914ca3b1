"""One TCP connection and the count of all: bytes to frames and back, time limits; it knows no rule about signals."""

from __future__ import annotations

import asyncio
import time
from typing import Final, cast

from execution.ingest.v1 import frames_pb2 as pb
from services.common.clock import now_us
from services.ingest import metrics
from services.ingest.domain.frames import FrameDecoder, FrameError, encode_frames
from services.ingest.domain.identities import masters_of, names_in
from services.ingest.peer import Door, Peer
from services.ingest.places import Places
from services.ingest.settings import IngestSettings

_DISCARD_BYTES_MAX: Final = 4 * 1_048_576
_OUTPUT: Final = "output"


class Connections:
    """The connections that were let in, and those that are being told that they are one too many."""

    def __init__(self, settings: IngestSettings, connections_max: int) -> None:
        self.places: Places[Connection] = Places(settings, connections_max, "connections")
        self.refused: set[Connection] = set()
        """They take nobody's place."""
        self._refused_max = settings.refused_connections_max
        self.none_left = asyncio.Event()

    @property
    def may_tell(self) -> bool:
        """Whether one more that is refused may be told why."""
        return len(self.refused) < self._refused_max

    def enter(self, connection: Connection) -> None:
        """Counts a new connection."""
        if connection.refusal is not None:
            self.refused.add(connection)
            return
        self.places.enter(connection, connection.host)
        self.none_left.clear()

    def leave(self, connection: Connection) -> None:
        """Counts a connection no more. Safe to repeat."""
        self.refused.discard(connection)
        self.places.leave(connection)
        if not self.places:
            self.none_left.set()

    def observe(self) -> None:
        """Sets the gauges."""
        metrics.CONNECTIONS.labels("unauthenticated").set(self.places.strangers)
        metrics.CONNECTIONS.labels("refused").set(len(self.refused))


class Connection(asyncio.Protocol):
    """One TCP connection: bytes to frames and back, with its bounds."""

    def __init__(
        self, door: Door, connections: Connections, host: str, port: int, refusal: str | None = None
    ) -> None:
        """`refusal` is the limit that it exceeds: it is told so and gets no further."""
        self._door = door
        self._connections = connections
        self._decoder = FrameDecoder(door.settings.frame_bytes_max)
        self._transport: asyncio.Transport | None = None
        self.host = host
        self.refusal = refusal
        self.peer_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._peer = Peer(door, self)
        self._received_bytes = 0
        self._pauses: set[str] = set()
        self._is_input_paused = False
        self._frame_since: float | None = None
        self._blocked_since: float | None = None
        self._is_closing = False
        self._discarded_bytes = 0
        self._linger: asyncio.TimerHandle | None = None
        connections.enter(self)

    @property
    def is_unauthenticated(self) -> bool:
        """Whether no session is open on it."""
        return self._peer.session.intake is None

    def leave(self) -> None:
        """The connection is gone, or never came to be. Safe to repeat."""
        if self._linger is not None:
            self._linger.cancel()
        self._is_closing = True
        self._connections.leave(self)
        self._peer.disconnected()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bytes can flow; to one that is too many only the reason does."""
        # uvloop's transports are no subclasses of it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._door.settings.output_bytes_max // 4)
        if self.refusal is not None:
            self._peer.end(pb.REJECT_CODE_TOO_MANY_CONNECTIONS, f"too many connections ({self.refusal})")
            return
        self._peer.session.restrict_to(masters_of(names_in(transport.get_extra_info("peercert"))))
        if self._door.is_draining:
            self.drain(0)

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
        """The client sends no more. Only one that said Bye may wait for its answer; others are gone."""
        transport = self._transport
        # TLS has no half-closed connections.
        return self._peer.session.is_leaving and transport is not None and transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.leave()

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
        """Sends frames, unless too much waits for the client already."""
        transport = self._transport
        if transport is None or self._is_closing:
            return
        transport.write(encode_frames(payloads))
        is_blocked = self._blocked_since is not None
        if is_blocked and transport.get_write_buffer_size() > self._door.settings.output_bytes_max:
            metrics.CUT.labels("slow_reader").inc()
            self.abort()

    def close(self) -> None:
        """Half-closes behind the last frame and waits a moment for the client to do the same.

        Closing at once, with the client's bytes unread, would reset the connection, and the client might never see why.
        """
        if self._is_closing or self._transport is None:
            return
        self._is_closing = True
        self._is_input_paused = False
        self._transport.resume_reading()
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
        except OSError:
            # The peer has reset the connection: nobody is left to hear the end.
            self._transport.abort()
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
        # What is missing of a frame could not come in meanwhile: its time begins anew.
        self._frame_since = None
        self._transport.resume_reading()
        # Not from here: a resume may come in the middle of handing out the log's answers.
        asyncio.get_running_loop().call_soon(self._pull)

    def opened(self) -> None:
        """The session is open."""
        self._connections.places.logged_in(self)

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
