"""One HTTP/2 connection: bytes to h2, h2's events to calls, calls' frames to the transport; it runs no handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, cast

import grpc
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from services.common.h2grpc import metrics
from services.common.h2grpc.answered import Answered
from services.common.h2grpc.call import Call
from services.common.h2grpc.guard import AbuseError, FrameGuard
from services.common.h2grpc.h2_bypass import ServerConnection
from services.common.h2grpc.incoming import Incoming
from services.common.h2grpc.lifetime import Lifetime, Step
from services.common.h2grpc.out_stream import OutStream
from services.common.h2grpc.requests import peer_name
from services.common.h2grpc.shared import Serving
from services.common.h2grpc.turns import TurnReader

_log = logging.getLogger(__name__)

LAST_WORDS_SECONDS: Final = 0.2
"""From the last words of calls to the GOAWAY: some clients, grpclib for one, take that for the end of every stream, and
would never read what came just before it."""
_LINGER_SECONDS: Final = 0.5
_STREAM_ID_MAX: Final = 2**31 - 1
_DRAIN_PING: Final = b"draining"
_KEEPALIVE_PING: Final = b"areyouup"


class Connection(TurnReader):
    """A connection from its acceptance to its loss."""

    __slots__ = (
        "_answered",
        "_guard",
        "_incoming",
        "_is_lost",
        "_lifetime",
        "_loop",
        "_serving",
        "calls",
        "h2",
        "is_ended",
        "is_paused",
        "maker",
        "peer",
        "takes_calls",
        "transport",
        "waiting",
    )

    transport: asyncio.Transport

    def __init__(self, serving: Serving, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(serving.turn)
        settings = serving.settings
        self._serving = serving
        self._loop = loop
        self._guard = FrameGuard(header_block_bytes_max=4 * settings.http2_header_list_bytes_max)
        self._lifetime = Lifetime(settings, loop.time())
        self.peer = ""
        self.maker = serving.maker
        self.h2 = ServerConnection(
            streams_max=settings.http2_streams_per_connection_max,
            header_list_bytes_max=settings.http2_header_list_bytes_max,
        )
        self._answered = Answered(self.h2)
        self.calls: dict[int, Call] = {}
        self._incoming = Incoming(self, settings, serving.methods, self.calls)
        self.waiting: dict[OutStream, None] = {}
        self.is_paused = False
        self.is_ended = False
        self.takes_calls = True
        self._is_lost = False

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello, or goodbye if there are too many."""
        self.transport = cast(asyncio.Transport, transport)
        metrics.ACCEPTED.inc()
        settings = self._serving.settings
        self.peer = peer_name(transport.get_extra_info("peername"))
        self.transport.set_write_buffer_limits(high=settings.http2_output_bytes_high)
        self.transport.write(self.h2.preface())
        connections = self._serving.connections
        connections[self] = None
        metrics.CONNECTIONS.set(len(connections))
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.end("alpn", ErrorCodes.INADEQUATE_SECURITY, b"choose h2 by ALPN")
        elif len(connections) > settings.http2_connections_max:
            self.end("connections", ErrorCodes.ENHANCE_YOUR_CALM, b"too many connections")

    def data_received(self, data: bytes) -> None:
        """Takes what the peer sent."""
        if self.is_ended:
            return
        now = self._loop.time()
        self._lifetime.heard(now)
        self.h2.settle()
        try:
            self._guard.receive_data(data, now, self.h2.sent_frames)
            events = self.h2.receive_data(data)
            # A larger window may be used only behind the acknowledgement of the settings that made it so.
            self.flush_h2()
            self._handle_all(events)
        except AbuseError as error:
            self._end_for_abuse(error)
        except ProtocolError as error:
            self._end_for_protocol_error(error)
        else:
            self.flush_h2()
            self._check_output()

    def pause_writing(self) -> None:
        """The peer does not read as fast as is written."""
        self.is_paused = True
        # Who has credit does not ask.
        self.h2.settle()

    def resume_writing(self) -> None:
        """The peer has read."""
        self.is_paused = False
        self._flush_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone: so are its calls."""
        self.is_ended = True
        self.takes_calls = False
        for call in tuple(self.calls.values()):
            call.cancel()
        connections = self._serving.connections
        connections.pop(self, None)
        metrics.CONNECTIONS.set(len(connections))
        self._is_lost = True
        if not self.calls:
            self._incoming.let_go()
        if not connections:
            self._serving.on_idle()

    # What calls and streams need.

    def now(self) -> float:
        """The event loop's time in seconds."""
        return self._loop.time()

    def flush_h2(self) -> None:
        """Writes what h2 has to say."""
        data = self.h2.data_to_send()
        # A transport that has failed says so in the next round, and warns about each write until then.
        if data and not self.is_ended and not self.transport.is_closing():
            self.transport.write(data)

    def sending_ended(self, stream_id: int) -> None:
        """A response is complete; a request that is not may stop."""
        call = self.calls.get(stream_id)
        self._answered.note(stream_id)
        self.flush_h2()
        if call is not None and call.has_returned:
            self.call_ended(call)

    def request_taken(self, stream_id: int, flow_bytes: int) -> None:
        """Opens the windows again for what was taken."""
        if flow_bytes and not self.is_ended:
            self.h2.acknowledge_received_data(flow_bytes, stream_id)
            self.flush_h2()

    def call_ended(self, call: Call) -> None:
        """A handler has returned; its stream may still have to send."""
        if call.out.is_open or self.calls.pop(call.out.stream_id, None) is None:
            return
        self._incoming.forget(call.out.stream_id)
        if not self.calls:
            self._lifetime.calls_ended(self._loop.time())
            if not self.takes_calls:
                self._close()
            if self._is_lost:
                self._incoming.let_go()

    # How it ends.

    def drain(self, grace_seconds: float, reason: str) -> None:
        """Tells the peer to open no more streams; ends when its calls have, or after `grace_seconds`."""
        if self.is_ended or not self._lifetime.begin_drain(self._loop.time(), grace_seconds):
            return
        metrics.ENDED.labels(reason).inc()
        # RFC 9113, 6.8: first a GOAWAY that excludes nothing; after a round trip the one that does.
        self.transport.write(self.h2.goaway(ErrorCodes.NO_ERROR, last_stream_id=_STREAM_ID_MAX))
        self.h2.ping(_DRAIN_PING)
        self.flush_h2()

    def end(self, reason: str, error_code: ErrorCodes, note: bytes = b"") -> None:
        """Ends the connection and its calls now, with a GOAWAY that the peer gets a moment to read."""
        if self.is_ended:
            return
        metrics.ENDED.labels(reason).inc()
        self.transport.write(self.h2.goaway(error_code, note=note))
        self._linger()

    def look_after(self, now: float) -> None:
        """Sees about once a second whether time has come for something."""
        step = None
        if not self.is_ended:
            step = self._lifetime.step(
                now, has_begun=self._guard.has_begun, has_calls=bool(self.calls), takes_calls=self.takes_calls
            )
        match step:
            case Step.HANDSHAKE_OVERDUE:
                self._abort("handshake")
            case Step.PEER_IS_DEAD:
                self._abort("keepalive")
            case Step.PING:
                self.h2.ping(_KEEPALIVE_PING)
                self.flush_h2()
            case Step.AGED:
                self._leave()
            case Step.IDLE:
                self.drain(self._serving.settings.http2_keepalive_timeout_seconds, "idle")
            case Step.LAST_CALL:
                self._stop_taking_calls()
            case Step.DRAINED:
                self._end_drained()
        if not self._is_over():
            self._look_after_calls(now)

    def _leave(self) -> None:
        """Lets long calls say that they go on elsewhere; a moment later the peer is told to open no more here."""
        grace_seconds = self._serving.settings.http2_connection_age_grace_seconds
        for call in tuple(self.calls.values()):
            if call.out.on_drain is not None:
                call.out.on_drain()
        delay_seconds = LAST_WORDS_SECONDS if self.calls else 0.0
        self._loop.call_later(delay_seconds, self.drain, grace_seconds, "age")

    def _is_over(self) -> bool:
        return self.is_ended

    def _end_drained(self) -> None:
        for call in tuple(self.calls.values()):
            call.fail(grpc.StatusCode.UNAVAILABLE, "the connection is being closed")
        self._stop_taking_calls()
        self._close()

    def _look_after_calls(self, now: float) -> None:
        settings = self._serving.settings
        if self._answered.stop():
            self.flush_h2()
        for out in tuple(self.waiting):
            if out.stalled_since is not None and now - out.stalled_since > settings.http2_stall_seconds_max:
                self._reset(out.stream_id, ErrorCodes.CANCEL, "stall")
            elif (
                out.dropped_at is not None and now - out.dropped_at > settings.http2_last_message_seconds_max
            ):
                # gRPC takes this code for RESOURCE_EXHAUSTED: there was no bandwidth.
                self._reset(out.stream_id, ErrorCodes.ENHANCE_YOUR_CALM, "unread")
        for call in tuple(self.calls.values()):
            if call.is_waiting_for_request and now - call.opened_at > settings.http2_request_seconds_max:
                call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not come in time")

    def _stop_taking_calls(self) -> None:
        if self.takes_calls and not self.is_ended:
            self.takes_calls = False
            self.transport.write(self.h2.goaway(ErrorCodes.NO_ERROR))
            if not self.calls:
                self._close()

    def _end_for_abuse(self, error: AbuseError) -> None:
        metrics.ABUSE.labels(error.limit).inc()
        _log.info("peer broke the limit %s", error.limit, extra={"client.address": self.peer})
        if error.limit == "preface":
            self._abort("preface")
        else:
            self.end("abuse", error.error_code, error.limit.encode())

    def _end_for_protocol_error(self, error: ProtocolError) -> None:
        """h2 has a GOAWAY ready that says why."""
        _log.info("protocol error: %s", error, extra={"client.address": self.peer})
        if error.error_code is ErrorCodes.ENHANCE_YOUR_CALM:
            metrics.ABUSE.labels("header_list").inc()
        metrics.ENDED.labels("protocol").inc()
        self.flush_h2()
        self._linger()

    def _linger(self) -> None:
        """Closes a moment later, or the peer's unread bytes would make the kernel drop our last ones."""
        self.is_ended = True
        for call in tuple(self.calls.values()):
            call.cancel()
        self._loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _close(self) -> None:
        if not self.is_ended:
            self.is_ended = True
            self.transport.close()
            # A peer that reads nothing keeps a closing transport open for ever.
            settings = self._serving.settings
            self._loop.call_later(settings.http2_keepalive_timeout_seconds, self.transport.abort)

    def _abort(self, reason: str) -> None:
        metrics.ENDED.labels(reason).inc()
        self.is_ended = True
        self.transport.abort()

    def _check_output(self) -> None:
        """Answers to a peer that reads nothing, to its pings for example, must not pile up."""
        if (
            self.is_paused
            and self.transport.get_write_buffer_size() > self._serving.settings.http2_output_bytes_max
        ):
            metrics.ABUSE.labels("output").inc()
            self._abort("output")

    # What h2 tells.

    def _handle_all(self, events: Sequence[Event]) -> None:
        # h2 has seen all of them: a stream that one of them resets takes nothing more, whatever came before that.
        for event in events:
            if isinstance(event, StreamReset):
                self._incoming.stream_reset(event)
        for event in events:
            if self.is_ended:
                return
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case WindowUpdated():
                self._window_updated(event.stream_id)
            case DataReceived():
                self._incoming.data(event)
            case RequestReceived():
                self._incoming.request(event)
            case StreamEnded():
                self._incoming.stream_ended(event.stream_id)
            case RemoteSettingsChanged():
                self._flush_waiting()
            case PingAckReceived() if event.ping_data == _DRAIN_PING and self._lifetime.is_draining:
                self._stop_taking_calls()
            case ConnectionTerminated():
                # It opens no more streams; those that are open go on.
                self.takes_calls = False
                if not self.calls:
                    self._close()

    def _window_updated(self, stream_id: int) -> None:
        if stream_id:
            call = self.calls.get(stream_id)
            if call is not None and call.out in self.waiting:
                del self.waiting[call.out]
                call.out.flush()
        elif self.waiting:
            self._flush_waiting()

    def _flush_waiting(self) -> None:
        """Each in turn takes what the connection has left; who gets nothing comes first the next time."""
        waiting, self.waiting = self.waiting, {}
        for out in waiting:
            if self.is_paused:
                self.waiting[out] = None
            else:
                out.flush()

    def _reset(self, stream_id: int, error_code: ErrorCodes, reason: str) -> None:
        metrics.RESET_STREAMS.labels(reason).inc()
        call = self.calls.get(stream_id)
        if call is not None:
            call.cancel()
        if self.h2.find(stream_id) is not None:
            self.h2.reset_stream(stream_id, error_code)
        self.flush_h2()
