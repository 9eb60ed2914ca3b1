"""The sending side of one call: headers, messages as the peer's windows allow, trailers; it knows no handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from h2.stream import H2Stream

from services.common.h2grpc.h2_bypass import FrameMaker, Frames, ReadyStream, ServerConnection
from services.common.h2grpc.messages import CONTENT_TYPE

Headers = Sequence[tuple[bytes, bytes]]

_RESPONSE_HEADERS: Final = (
    (b":status", b"200"),
    (b"content-type", CONTENT_TYPE),
    (b"grpc-accept-encoding", b"identity"),
)


class Carrier(Protocol):
    """What a stream needs of its connection."""

    h2: ServerConnection
    maker: FrameMaker
    transport: asyncio.Transport
    is_paused: bool
    waiting: dict[OutStream, None]
    """Streams to be told when the connection takes more."""

    def flush_h2(self) -> None:
        """Writes what h2 has to say."""
        ...

    def now(self) -> float:
        """The event loop's time in seconds."""
        ...

    def sending_ended(self, stream_id: int) -> None:
        """The stream's last frame was written."""
        ...


class OutStream(ReadyStream):
    """Writes the answer of one call. Calls after the stream has ended do nothing."""

    __slots__ = (
        "_can_broadcast",
        "_carrier",
        "_headers_sent",
        "_initial_metadata",
        "_pending",
        "_trailers",
        "dropped_at",
        "is_open",
        "on_drain",
        "on_writable",
        "stalled_since",
        "transport",
    )

    def __init__(self, carrier: Carrier, stream: H2Stream) -> None:
        super().__init__(carrier.h2, stream)
        self.is_open = True
        self.on_writable: Callable[[], None] | None = None
        """Called when everything was taken and more may be sent."""
        self.on_drain: Callable[[], None] | None = None
        """Called when the connection is about to be replaced by a new one, so that the call can go on there."""
        self.stalled_since: float | None = None
        """Since when nothing was taken of what waits."""
        self.dropped_at: float | None = None
        """Since when only the rest of a message that was begun is still to be sent, before the status."""
        self.transport = carrier.transport
        self._carrier = carrier
        self._pending: memoryview | None = None
        self._trailers: Headers | None = None
        self._headers_sent = False
        self._can_broadcast = False
        self._initial_metadata: Headers = ()

    @property
    def is_writable(self) -> bool:
        """Whether the next message is taken now; whoever was told no is called when that changes."""
        if self._pending is None and not self._carrier.is_paused:
            return self._trailers is None
        self._wait()
        return False

    @property
    def headers_sent(self) -> bool:
        """Whether the response's headers are on their way."""
        return self._headers_sent

    def set_initial_metadata(self, headers: Headers) -> None:
        """Sends these with the response's headers, if they are not sent yet."""
        self._initial_metadata = headers

    def send_headers(self) -> None:
        """Sends the response's headers, once."""
        if self._headers_sent or not self.is_open:
            return
        self._headers_sent = True
        self._carrier.h2.send_headers(self.stream_id, [*_RESPONSE_HEADERS, *self._initial_metadata])
        self._carrier.flush_h2()

    def send(self, message: bytes) -> None:
        """Takes over one message; only while `is_writable`. What the peer does not take now is kept and follows."""
        if not self.is_open:
            return
        if not self._headers_sent:
            self.send_headers()
        carrier = self._carrier
        frames = carrier.maker.frames(message)
        frame = self.whole(frames)
        if frame is None:
            self._pending = frames.payload
            self.stalled_since = carrier.now()
            # The caller asks whether it was taken: telling it here would be a call within its call.
            if not self._send_pending():
                self._wait()
            return
        carrier.transport.write(frame)

    def let_broadcast(self, can: bool) -> None:
        """Whether `send_to_each` may send on this stream: only while its owner has nothing that must come before."""
        self._can_broadcast = can
        if not can:
            self.give_back()

    def draw(self, size: int) -> bool:
        """Whether a message of `size` bytes, its prefix included, may be sent now; there is credit for it then."""
        return (
            self._can_broadcast
            and self._pending is None
            and self._trailers is None
            and self._headers_sent
            and self.is_open
            and not self._carrier.is_paused
            and self.draw_credit(size)
        )

    def flush(self) -> None:
        """Sends what the peer takes now; tells `on_writable` if that was everything."""
        if not self.is_open:
            return
        if self._pending is not None and not self._send_pending():
            self._wait()
            return
        if self._trailers is not None:
            self._send_trailers(self._trailers)
        elif self._carrier.is_paused:
            self._wait()
        elif self.on_writable is not None:
            self.on_writable()

    def finish(self, trailers: Headers, *, at_once: bool = False) -> None:
        """Ends the stream after what was taken over; `at_once` drops what the peer has not taken, as `drop` does."""
        if not self.is_open or (self._trailers is not None and not at_once):
            return
        self.give_back()
        self._trailers = trailers
        self.on_writable = None
        if at_once:
            self.drop()
        if self._pending is None:
            self._send_trailers(trailers)
        else:
            self._wait()

    def drop(self) -> None:
        """Forgets a message of which the peer has taken nothing; only `finish` may follow.

        One that was begun goes on: clients report a stream that ends within a message as broken, whatever its status.
        """
        pending = self._pending
        if pending is None:
            return
        if pending.nbytes == len(cast(bytes, pending.obj)):
            self._pending = self.stalled_since = None
        elif self.dropped_at is None:
            self.dropped_at = self._carrier.now()

    def close(self) -> None:
        """The stream is gone: nothing more is sent."""
        self.give_back()
        self.is_open = False
        self.on_writable = None
        self._pending = self._trailers = None
        self._carrier.waiting.pop(self, None)

    def _wait(self) -> None:
        self._carrier.waiting[self] = None

    def _send_pending(self) -> bool:
        carrier = self._carrier
        while self._pending is not None and not carrier.is_paused:
            frame, size = self.part(self._pending)
            if not size:
                return False
            carrier.transport.write(frame)
            rest = self._pending[size:]
            self._pending = rest if len(rest) else None
            self.stalled_since = carrier.now() if len(rest) else None
        return self._pending is None

    def _send_trailers(self, trailers: Headers) -> None:
        # Without a message before them they are "Trailers-Only": one block with the response's headers in it.
        if not self._headers_sent:
            trailers = [*_RESPONSE_HEADERS, *self._initial_metadata, *trailers]
        self._carrier.h2.send_headers(self.stream_id, trailers, end_stream=True)
        self.close()
        self._carrier.sending_ended(self.stream_id)


def send_to_each(streams: Sequence[OutStream], message: bytes) -> list[int]:
    """Sends one message to each of the streams whose peer takes all of it now; returns where the others are.

    What a delivery costs beside the socket is spent here, so the loop calls nothing but `write`: asking both windows of
    each stream for each message, instead of drawing credit, adds 0.28 µs.
    """
    frames = Frames(message)
    size = frames.flow_bytes
    refused: list[int] = []
    for index, out in enumerate(streams):
        if out.credit < size and not out.draw(size):
            refused.append(index)
            continue
        out.credit -= size
        out.credit_frames += 1
        out.transport.write(frames[out.stream_id])
    return refused
