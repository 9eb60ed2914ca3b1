"""Writes a stream's messages through the HTTP/2 edge: at once, on the caller's stack, without a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from services.common.errors import ServiceError
from services.common.h2grpc import OutStream, send_to_each
from services.fanout.domain.codec import Message
from services.fanout.edge import Source


class H2StreamWriter:
    """A StreamWriter over the sending side of a call."""

    __slots__ = ("_end", "_finished", "_out", "_pending", "_source")

    def __init__(self, out: OutStream) -> None:
        self._out = out
        self._pending: list[Message] = []
        self._source: Source | None = None
        self._finished: ServiceError | None = None
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_writable(self) -> bool:
        """Whether everything handed over was taken."""
        return not self._pending and self._finished is None and self._out.is_writable

    def write(self, messages: Sequence[Message]) -> None:
        """Takes messages over and writes what the peer takes now."""
        source = self._source
        if source is not None and len(messages) == 1 and not self._pending:
            message = messages[0]
            self._out.send(message.data)
            source.on_written(message)
            return
        self._pending.extend(messages)
        if source is not None:
            self._write_pending(source)

    @property
    def outlet(self) -> object:
        """The sending side; it takes what is sent to many while nothing waits here."""
        return self._out

    def write_to_each(self, outlets: Sequence[object], message: Message) -> list[int]:
        """Writes one message to each whose peer takes all of it now; returns where the others are."""
        return send_to_each(cast(Sequence[OutStream], outlets), message.data)

    def finish(self, error: ServiceError, *, at_once: bool = False) -> None:
        """Lets `run` end with the error; `at_once` drops what the peer has not taken."""
        if self._finished is not None and not at_once:
            return
        self._finished = error
        self._out.let_broadcast(False)
        if at_once:
            self._pending.clear()
            self._out.drop()
        self._end_if_finished()

    async def run(self, source: Source) -> None:
        """Writes until the stream ends; to be awaited by the call's handler.

        Raises:
            ServiceError: what `finish` was given.
        """
        self._source = source
        self._out.on_writable = self._resume
        self._out.on_drain = source.on_drain
        try:
            self._resume()
            await self._end
        finally:
            # Who writes and who is written to hold one another no longer.
            self._source = self._out.on_writable = self._out.on_drain = None
            self._out.let_broadcast(False)
        if self._finished is not None:
            raise self._finished

    def _resume(self) -> None:
        source = self._source
        if source is None or not self._write_pending(source):
            return
        if self._finished is None:
            source.on_writable()
        self._end_if_finished()

    def _write_pending(self, source: Source) -> bool:
        """Writes what the peer takes now; returns whether that was everything."""
        pending, out = self._pending, self._out
        written = 0
        while written < len(pending) and out.is_writable:
            message = pending[written]
            written += 1
            out.send(message.data)
            source.on_written(message)
        del pending[:written]
        out.let_broadcast(not pending and self._finished is None)
        return not pending

    def _end_if_finished(self) -> None:
        if self._finished is not None and not self._pending and not self._end.done():
            self._end.set_result(None)
