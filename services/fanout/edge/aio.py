"""Writes a stream's messages with grpc.aio: one coroutine per stream, asleep while there is nothing to write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.common.errors import ServiceError
from services.common.rpc import Context
from services.fanout.domain.codec import Message
from services.fanout.edge import Source


class AioStreamWriter:
    """A StreamWriter over the context of a call whose response serializer is the identity."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pending: Sequence[Message] = ()
        self._finished: ServiceError | None = None
        self._is_cut = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[object] | None = None

    @property
    def is_writable(self) -> bool:
        """Whether everything handed over was taken."""
        return not self._pending and self._finished is None

    def write(self, messages: Sequence[Message]) -> None:
        """Takes messages over; they are written by `run`."""
        self._pending = messages
        self._wake.set()

    @property
    def outlet(self) -> object:
        """Nothing: grpc.aio takes no message without waiting."""
        return None

    def write_to_each(self, outlets: Sequence[object], message: Message) -> list[int]:
        """Writes to none."""
        return list(range(len(outlets)))

    def finish(self, error: ServiceError, *, at_once: bool = False) -> None:
        """Lets `run` end with the error; `at_once` breaks off a write that the reader does not take."""
        if self._finished is not None and not at_once:
            return
        self._finished = error
        self._wake.set()
        if at_once and self._pending and self._task is not None and not self._is_cut:
            self._is_cut = True
            self._task.cancel()

    async def run(self, source: Source) -> None:
        """Writes until the stream ends; to be awaited by the call's handler.

        Raises:
            ServiceError: what `finish` was given.
        """
        self._task = asyncio.current_task()
        try:
            await self._write_all(source)
        except asyncio.CancelledError:
            if self._task is None or not self._is_cut or self._finished is None:
                raise
            self._task.uncancel()
            raise self._finished from None
        finally:
            self._task = None

    async def _write_all(self, source: Source) -> None:
        while True:
            for message in self._pending:
                await self._context.write(message.data)
                source.on_written(message)
            self._pending = ()
            if self._finished is not None:
                raise self._finished
            self._wake.clear()
            source.on_writable()
            await self._wake.wait()
