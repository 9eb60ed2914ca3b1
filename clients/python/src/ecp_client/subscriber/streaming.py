"""Opens one stream after the other, and acknowledges; what the messages mean is the processor's affair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from grpc import aio

from ecp_client.backoff import Backoff
from ecp_client.channels import open_channel
from ecp_client.errors import CertificatesError
from ecp_client.positions import Position
from ecp_client.subscriber.endings import STATUS_DETAILS_KEY, Outlook, StreamEnd, stream_end
from ecp_client.subscriber.events import StreamEnded, StreamOpened
from ecp_client.subscriber.processing import Processor
from ecp_client.subscriber.settings import SubscriberSettings
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1.fanout_service_pb2_grpc import FanoutServiceStub

if TYPE_CHECKING:
    # Known to the type stubs alone.
    from execution.fanout.v1.fanout_service_pb2_grpc import FanoutServiceAsyncStub

logger = logging.getLogger("ecp_client.subscriber")

Call = aio.UnaryStreamCall[pb.SubscribeRequest, pb.SubscribeResponse]
ACKNOWLEDGED_MAX = 100
WATCH_SECONDS = 0.5
JUMPED = "JUMPED"


class Streaming:
    """One subscriber's streams, one at a time."""

    def __init__(
        self,
        settings: SubscriberSettings,
        processor: Processor,
        handle: Callable[[pb.SubscribeResponse], Awaitable[None]],
        metadata: Callable[[], tuple[tuple[str, str], ...]],
        refresh: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        self._settings = settings
        self._processor = processor
        self._handle = handle
        self._metadata = metadata
        self._refresh = refresh
        self._turn = random.randrange(len(settings.addresses))
        self._channel: aio.Channel | None = None
        self._stub: FanoutServiceAsyncStub | None = None
        self._call: Call | None = None
        self._heard_at = 0.0
        self._restart_reason = ""
        self._drain_wait_ms = 0
        self._offers = 0
        """Streams in a row that ended with OUT_OF_RANGE."""
        self._wake = asyncio.Event()
        self._full_sync = Backoff(settings.full_sync_seconds_min, settings.full_sync_seconds_max)
        self._full_sync_at = 0.0

    def restart(self, reason: str) -> None:
        """Ends the stream, or a wait between two, and opens the next one at once."""
        self._restart_reason = reason
        self._wake.set()
        if self._call is not None:
            self._call.cancel()

    async def run(self) -> None:
        """Streams for ever.

        Raises:
            JournalError: the journal cannot be written, so that nothing may be received any more.
        """
        settings = self._settings
        backoff = Backoff(settings.reconnect_seconds_min, settings.reconnect_seconds_max)
        refused = Backoff(min(1.0, settings.reconnect_seconds_max), settings.refused_seconds_max)
        while True:
            address = settings.addresses[self._turn % len(settings.addresses)]
            messages = self._processor.stats.messages
            end = self._not_for_ever(await self._stream(address))
            self._processor.stream_ended(self._processor.session.stream_ended(end.unavailable))
            if end.unavailable is not None:
                # The server has just said what it has; what is wanted of it is asked for already.
                self._defer_full_syncs()
            self._processor.tell(StreamEnded(end.code, end.reason))
            if self._processor.stats.messages > messages and end.code != JUMPED:
                backoff.reset()
                refused.reset()
            await self._pause(await self._delay(end, backoff, refused))

    def _not_for_ever(self, end: StreamEnd) -> StreamEnd:
        """Who offers another place is asked for it at once; who then cannot serve that one either is not."""
        self._offers = 0 if end.unavailable is None else self._offers + 1
        return end if self._offers <= 1 else replace(end, outlook=Outlook.RETRY)

    async def _delay(self, end: StreamEnd, backoff: Backoff, refused: Backoff) -> float:
        if self._restart_reason:
            self._restart_reason = ""
            return 0.0
        if end.outlook is Outlook.AGAIN:
            wait, self._drain_wait_ms = self._drain_wait_ms / 1_000, 0
            if wait:
                await self._leave()
            return wait
        await self._leave()
        if end.outlook is Outlook.TOKEN and self._refresh is not None and await self._refresh():
            return 0.0
        return refused.next_delay() if end.outlook is not Outlook.RETRY else backoff.next_delay()

    async def _leave(self) -> None:
        """Goes on over a new connection, and at the next address."""
        await self._close_channel()
        self._turn += 1

    async def _pause(self, seconds: float) -> None:
        if seconds > 0 and not self._wake.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
        self._wake.clear()

    async def _stream(self, address: str) -> StreamEnd:
        """One stream from its request to its end."""
        self._restart_reason = ""
        self._drain_wait_ms = 0
        session = self._processor.session
        self._ask_for_full_sync()
        try:
            stub = self._connected(address)
        except CertificatesError as error:
            return StreamEnd(Outlook.RETRY, "UNAVAILABLE", str(error))
        call = stub.Subscribe(session.request(), metadata=self._metadata())
        self._call = call
        self._heard_at = time.monotonic()
        watch = asyncio.create_task(self._watch(call))
        is_open = False
        try:
            async for response in call:
                self._heard_at = time.monotonic()
                if not is_open:
                    is_open = True
                    self._processor.stats.streams += 1
                    self._processor.tell(StreamOpened(address))
                if response.HasField("drain"):
                    wait = response.drain.reconnect_after
                    wait_ms = wait.seconds * 1_000 + wait.nanos // 1_000_000
                    # However long the server would like: an address that serves is found by trying.
                    self._drain_wait_ms = min(wait_ms, int(self._settings.refused_seconds_max * 1_000))
                session.defers_full_syncs = self._heard_at < self._full_sync_at
                # While the application takes its time, it is not the stream that says nothing.
                self._heard_at = math.inf
                await self._handle(response)
                self._heard_at = time.monotonic()
                if session.wants_new_stream:
                    return self._asking_anew()
            return self._ended(stream_end("OK", "the server ended the stream", None))
        except aio.AioRpcError as error:
            return self._ended(_end_of(error))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            reason = self._restart_reason or "nothing was heard for too long"
            return StreamEnd(Outlook.RETRY, "CANCELLED", reason)
        finally:
            self._call = None
            watch.cancel()
            call.cancel()

    def _ended(self, end: StreamEnd) -> StreamEnd:
        if self._drain_wait_ms and end.outlook is Outlook.RETRY:
            return StreamEnd(Outlook.AGAIN, end.code, end.reason)
        return end

    def _asking_anew(self) -> StreamEnd:
        if self._processor.session.defers_full_syncs:
            # Only a stream that jumps without a word is left in spite of that; not too eagerly.
            return StreamEnd(Outlook.RETRY, JUMPED, "the stream left out signals")
        self._defer_full_syncs()
        return StreamEnd(Outlook.AGAIN, "CANCELLED", "signals are missing: asking for them")

    def _defer_full_syncs(self) -> None:
        """Full syncs that do not heal are asked for less and less often; meanwhile the stream goes on, degraded."""
        self._full_sync_at = time.monotonic() + self._full_sync.next_delay()

    def _ask_for_full_sync(self) -> bool:
        """Has the next stream begin with a full sync where one is due; whether one is."""
        session = self._processor.session
        if not session.misses_something or time.monotonic() < self._full_sync_at:
            return False
        self._defer_full_syncs()
        return session.ask_for_full_sync()

    async def _watch(self, call: Call) -> None:
        """Gives up a stream that says nothing, and asks for the full sync of what still misses something."""
        settings = self._settings
        session = self._processor.session
        while True:
            await asyncio.sleep(min(WATCH_SECONDS, settings.silence_seconds_max / 4))
            if time.monotonic() - self._heard_at > settings.silence_seconds_max:
                call.cancel()
                return
            if not session.misses_something:
                self._full_sync.reset()
            elif self._ask_for_full_sync():
                self.restart("full sync")
                return

    async def acknowledge_often(self) -> None:
        """Tells the server how far we are, every so often while that changes."""
        while True:
            await asyncio.sleep(self._settings.acknowledge_interval_seconds)
            if self._call is not None:
                await self._acknowledge()

    async def _acknowledge(self) -> None:
        """In as many calls as it takes: of more masters than one call may name, none is left out for good."""
        positions = list(self._processor.session.unacknowledged().items())
        for start in range(0, len(positions), ACKNOWLEDGED_MAX):
            if not await self._acknowledge_some(dict(positions[start : start + ACKNOWLEDGED_MAX])):
                return

    async def _acknowledge_some(self, positions: dict[int, Position]) -> bool:
        stub = self._stub
        if stub is None:
            return False
        request = pb.AcknowledgeRequest()
        for master_id, position in positions.items():
            entry = request.positions.add(master_id=master_id)
            entry.position.epoch, entry.position.sequence = position
        try:
            await stub.Acknowledge(
                request, metadata=self._metadata(), timeout=self._settings.call_timeout_seconds
            )
        except aio.AioRpcError as error:
            # Positions are cumulative: the next acknowledgement says it again.
            logger.debug("acknowledgement failed: %s %s", error.code().name, error.details())
            return False
        self._processor.session.acknowledged(positions)
        return True

    async def close(self) -> None:
        """Acknowledges what is left, once, and closes the channel; `run` must have ended."""
        await self._acknowledge()
        await self._close_channel()

    def _connected(self, address: str) -> FanoutServiceAsyncStub:
        if self._stub is None:
            settings = self._settings
            self._channel = open_channel(
                address,
                plaintext=settings.plaintext,
                ca_file=settings.ca_file,
                server_hostname=settings.server_hostname,
            )
            self._stub = FanoutServiceStub(self._channel)
        return self._stub

    async def _close_channel(self) -> None:
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()


def _end_of(error: aio.AioRpcError) -> StreamEnd:
    details = None
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            details = value
    return stream_end(error.code().name, error.details() or "", details)
