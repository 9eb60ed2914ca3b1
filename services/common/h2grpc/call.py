"""One call: its request as it comes in, its handler's task, and its end; frames and windows are its connection's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import grpc
from grpc.aio import AbortError

from services.common.h2grpc.context import CallContext
from services.common.h2grpc.handlers import Method
from services.common.h2grpc.messages import MessageDecoder, StatusError, status_headers
from services.common.h2grpc.out_stream import OutStream

_log = logging.getLogger(__name__)

_FIRST_MESSAGE_SECONDS: Final = 0.02
# What Python spends on an entry beside its characters. A peer spends a byte, if HPACK's table has the entry already.
_METADATA_ENTRY_BYTES: Final = 160
_INTERNAL: Final = (grpc.StatusCode.INTERNAL.value[0], "internal error")


class CallOwner(Protocol):
    """What a call needs of its connection."""

    def request_taken(self, stream_id: int, flow_bytes: int) -> None:
        """Gives the bytes back to the peer's window."""
        ...

    def call_ended(self, call: Call) -> None:
        """The handler has returned."""
        ...


class Call:
    """A call from its headers to its handler's end."""

    __slots__ = (
        "_arrived",
        "_decoder",
        "_has_begun",
        "_is_complete",
        "_messages",
        "_metadata_bytes",
        "_opening",
        "_owner",
        "_timer",
        "context",
        "has_returned",
        "method",
        "opened_at",
        "out",
        "task",
    )

    def __init__(
        self, owner: CallOwner, method: Method, context: CallContext, decoder: MessageDecoder, now: float
    ) -> None:
        self.method = method
        self.context = context
        self.out: OutStream = context.out
        self.opened_at = now
        self.task: asyncio.Task[None] | None = None
        """The handler, while it runs."""
        self.has_returned = False
        """Whether the handler has."""
        self._has_begun = False
        self._owner = owner
        self._decoder: MessageDecoder | None = decoder
        self._messages: list[tuple[bytes, int]] = []
        self._metadata_bytes = sum(
            len(key) + len(value) + _METADATA_ENTRY_BYTES for key, value in context.invocation_metadata()
        )
        self._is_complete = False
        self._arrived: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.TimerHandle | None = None

    @property
    def is_waiting_for_request(self) -> bool:
        """Whether its handler was not started, because its one message is not here yet."""
        return self.task is None and not self.has_returned and self.out.is_open

    @property
    def kept_bytes(self) -> int:
        """The metadata, and what is kept here of a request, or of the last message of several, until it is complete.

        Messages that wait for the handler of a stream are bounded by the windows, which open as it takes them.
        """
        if self._decoder is None:
            return self._metadata_bytes
        waiting = 0 if self.method.takes_stream else sum(len(message) for message, _ in self._messages)
        return self._metadata_bytes + waiting + self._decoder.buffered_bytes

    def begin(self, timeout_seconds: float | None) -> None:
        """Starts the deadline, and the handler if it takes a stream."""
        loop = asyncio.get_running_loop()
        if timeout_seconds is not None:
            self._timer = loop.call_later(timeout_seconds, self._expire)
        if self.method.takes_stream:
            self._arrived = asyncio.Event()
            # grpc.aio's client loses the status of a call that is refused before its first message was sent.
            self._opening = loop.call_later(_FIRST_MESSAGE_SECONDS, self._open)

    def receive_data(self, data: bytes, flow_bytes: int) -> None:
        """Takes a part of the request.

        Raises:
            StatusError: it cannot be served.
        """
        if self._decoder is None:
            self._owner.request_taken(self.out.stream_id, flow_bytes)
            return
        self._decoder.receive_data(data)
        untaken, waiting = flow_bytes, len(self._messages)
        try:
            while (message := self._decoder.next_message()) is not None:
                if self._arrived is None:
                    self._messages.append((message, 0))
                else:
                    # A stream's window opens again as its handler takes messages, so that few of them wait.
                    self._messages.append((message, untaken))
                    untaken = 0
        finally:
            # Also of what is refused: the connection's window is that of all calls.
            self._owner.request_taken(self.out.stream_id, untaken)
        if not self.method.takes_stream and len(self._messages) > 1:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "the method takes one message, not several")
        if self._arrived is not None and len(self._messages) > waiting:
            self._arrived.set()
            self._open()

    def end_of_request(self) -> None:
        """The caller has sent everything.

        Raises:
            StatusError: the request is not what the method takes.
        """
        self._is_complete = True
        if self._decoder is None:
            return
        if self._decoder.buffered_bytes:
            raise StatusError(grpc.StatusCode.INTERNAL, "the request ends within a message")
        if self._arrived is not None:
            self._arrived.set()
            self._open()
            return
        if self.task is not None or self.has_returned:
            return
        if not self._messages:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "the method takes one message, none came")
        message, _ = self._messages.pop(0)
        self._decoder = None
        self._start(self._parsed(message))

    def fail(self, code: grpc.StatusCode, message: str) -> None:
        """Ends the call with this status whatever its handler does."""
        self.out.finish(status_headers(code.value[0], message), at_once=True)
        self._stop()

    def cancel(self) -> None:
        """The call is over for its caller: its handler is cancelled, and nothing more is sent."""
        self.out.close()
        self._stop()

    def _stop(self) -> None:
        for timer in (self._timer, self._opening):
            if timer is not None:
                timer.cancel()
        self._timer = self._opening = None
        self._take_no_more()
        if self.task is not None:
            self.task.cancel()
        if not self._has_begun:
            # A task that is cancelled before its first step runs nothing, not even what ends the call.
            self._return()
        elif self.has_returned:
            self._owner.call_ended(self)

    def _return(self) -> None:
        # The task holds frames and, through them, this call: in a circle they would wait for the garbage collector.
        self.task, self.has_returned = None, True
        self._owner.call_ended(self)

    def _take_no_more(self) -> None:
        """What waits for the handler is dropped, and no longer counts against the connection's window."""
        self._decoder = None
        flow_bytes = sum(flow_bytes for _, flow_bytes in self._messages)
        self._messages.clear()
        self._owner.request_taken(self.out.stream_id, flow_bytes)

    def _open(self) -> None:
        """Starts the handler of a stream of requests, once."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
            self._start(self._requests())

    def _expire(self) -> None:
        self._timer = None
        self.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _start(self, request: Any) -> None:
        name = f"call {self.method.full_name}"
        self.task = asyncio.get_running_loop().create_task(self._run(request), name=name)

    async def _run(self, request: Any) -> None:
        self._has_begun = True
        try:
            response = await self.method.behavior(request, self.context)
            if not self.method.gives_stream and self.context.code() == 0:
                await self.context.write(response)
        except AbortError:
            pass
        except Exception:
            # The guard turns failures into a status; what comes here failed before or after it.
            _log.exception("call failed", extra={"rpc.method": self.method.full_name})
            self.context.set_code(_INTERNAL[0])
            self.context.set_details(_INTERNAL[1])
        except asyncio.CancelledError:
            self.context.set_code(grpc.StatusCode.CANCELLED)
            raise
        finally:
            self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._take_no_more()
        try:
            trailers = self.context.trailers()
        except Exception:
            _log.exception("trailers cannot be sent", extra={"rpc.method": self.method.full_name})
            trailers = status_headers(*_INTERNAL)
        self.out.finish(trailers)
        self._return()

    def _parsed(self, message: bytes) -> Any:
        deserialize = self.method.deserialize
        if deserialize is None:
            return message
        try:
            return deserialize(message)
        except Exception as error:
            raise StatusError(grpc.StatusCode.INTERNAL, "the request cannot be parsed") from error

    async def _requests(self) -> AsyncIterator[Any]:
        assert self._arrived is not None
        while True:
            while self._messages:
                message, flow_bytes = self._messages.pop(0)
                self._owner.request_taken(self.out.stream_id, flow_bytes)
                try:
                    request = self._parsed(message)
                except StatusError as error:
                    await self.context.abort(error.code, error.message)
                yield request
            if self._is_complete:
                return
            self._arrived.clear()
            await self._arrived.wait()
