"""What a peer asks for on one connection: h2's events become calls, or refusals; it writes only through its owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import grpc
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamReset

from services.common.h2grpc import metrics
from services.common.h2grpc.call import Call, CallOwner
from services.common.h2grpc.context import CallContext
from services.common.h2grpc.guard import Allowance, Bucket
from services.common.h2grpc.handlers import Method
from services.common.h2grpc.messages import MessageDecoder, StatusError, status_headers
from services.common.h2grpc.out_stream import Carrier, OutStream
from services.common.h2grpc.requests import HttpRefusal, Request, request_of
from services.common.h2grpc.settings import Http2Settings

_EARLY_RESET_SECONDS: Final = 1.0
# Clients give up streams, but not hundreds within a second of opening each.
_EARLY_RESETS: Final = Allowance("rapid_reset", 100, 10)


class Owner(Carrier, CallOwner, Protocol):
    """The connection."""

    peer: str
    takes_calls: bool


class Incoming:
    """The requests of one connection. Every method may raise AbuseError."""

    __slots__ = ("_calls", "_early_resets", "_kept", "_kept_bytes", "_methods", "_owner", "_settings")

    def __init__(
        self,
        owner: Owner,
        settings: Http2Settings,
        methods: Mapping[bytes, Method],
        calls: dict[int, Call],
    ) -> None:
        self._owner = owner
        self._settings = settings
        self._methods = methods
        self._calls = calls
        self._early_resets: Bucket | None = None
        self._kept: dict[int, int] = {}
        """Bytes of metadata and incomplete messages, by stream; adding them up for each frame would cost too much."""
        self._kept_bytes = 0

    def request(self, event: RequestReceived) -> None:
        """A request's headers came: a call begins, or is refused."""
        stream_id = event.stream_id
        stream = self._owner.h2.find(stream_id)
        if stream is None:  # reset by its next frame, which h2 has seen already
            self._count_early_reset()
            return
        settings = self._settings
        if not self._owner.takes_calls:
            self._refuse(stream_id, "draining")
            return
        if len(self._calls) >= settings.http2_streams_per_connection_max:
            self._refuse(stream_id, "streams")
            return
        out = OutStream(self._owner, stream)
        try:
            request = request_of(
                event.headers,
                self._methods,
                header_list_bytes_max=settings.http2_header_list_bytes_max,
            )
        except HttpRefusal as refusal:
            metrics.REFUSED_STREAMS.labels("http").inc()
            self._owner.h2.send_headers(stream_id, refusal.headers, end_stream=True)
            out.close()
            self._owner.sending_ended(stream_id)
        except StatusError as error:
            metrics.REFUSED_STREAMS.labels(error.code.name.lower()).inc()
            out.finish(status_headers(error.code.value[0], error.message))
        else:
            self._begin(out, request)

    def _begin(self, out: OutStream, request: Request) -> None:
        now, limit = self._owner.now(), self._settings.grpc_message_bytes_max
        timeout_seconds = request.timeout_seconds
        context = CallContext(
            out,
            metadata=request.metadata,
            peer=self._owner.peer,
            timeout_seconds=timeout_seconds,
            serialize=request.method.serialize,
            message_bytes_max=limit,
        )
        call = Call(self._owner, request.method, context, MessageDecoder(message_bytes_max=limit), now)
        self._calls[out.stream_id] = call
        call.begin(timeout_seconds)
        self._keep(out.stream_id, call)

    def data(self, event: DataReceived) -> None:
        """A part of a request came."""
        flow_bytes = event.flow_controlled_length or 0
        call = self._calls.get(event.stream_id)
        if call is None:
            # The answer is complete already; what still comes must not close the connection's window.
            self._owner.h2.acknowledge_received_data(flow_bytes, event.stream_id)
            return
        try:
            call.receive_data(event.data or b"", flow_bytes)
        except StatusError as error:
            call.fail(error.code, error.message)
            return
        self._keep(event.stream_id, call)

    def forget(self, stream_id: int) -> None:
        """A call is over: nothing of it is kept any more."""
        self._kept_bytes -= self._kept.pop(stream_id, 0)

    def let_go(self) -> None:
        """The connection is lost and its calls are over: nothing is called any more.

        The connection and this hold one another. That circle is broken here, so that their memory is free at once: the
        garbage collector would stop the process for a third of a second to look through ten thousand connections.
        """
        del self._owner

    def _keep(self, stream_id: int, call: Call) -> None:
        """Accounts for what is kept of a call."""
        kept = call.kept_bytes
        self._kept_bytes += kept - self._kept.get(stream_id, 0)
        self._kept[stream_id] = kept
        if self._kept_bytes > self._settings.http2_request_bytes_max:
            metrics.REFUSED_STREAMS.labels("request_bytes").inc()
            call.fail(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "the incomplete requests and the metadata of this connection's calls are too much together",
            )

    def stream_ended(self, stream_id: int) -> None:
        """A request is complete."""
        call = self._calls.get(stream_id)
        if call is not None:
            try:
                call.end_of_request()
            except StatusError as error:
                call.fail(error.code, error.message)
            else:
                self._keep(stream_id, call)

    def stream_reset(self, event: StreamReset) -> None:
        """The peer, or h2 in its name, gave a stream up."""
        call = self._calls.get(event.stream_id)
        # Who has us reset streams spends the same budget as who resets them.
        if not event.remote_reset or (
            call is not None and self._owner.now() - call.opened_at < _EARLY_RESET_SECONDS
        ):
            self._count_early_reset()
        if call is not None:
            call.cancel()

    def _count_early_reset(self) -> None:
        now = self._owner.now()
        if self._early_resets is None:
            self._early_resets = Bucket(_EARLY_RESETS, now, 0)
        self._early_resets.spend(now, 0)

    def _refuse(self, stream_id: int, reason: str) -> None:
        metrics.REFUSED_STREAMS.labels(reason).inc()
        if reason == "streams":
            self._count_early_reset()
        self._owner.h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
