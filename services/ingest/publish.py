"""The frames of the front door over one gRPC stream: the same peers, another port; it knows no sockets."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

from execution.ingest.v1 import frames_pb2 as frames
from execution.ingest.v1 import ingest_service_pb2 as pb
from services.common.clock import now_us
from services.common.errors import ResourceExhaustedError
from services.ingest import metrics
from services.ingest.domain.addresses import host_of_grpc_peer
from services.ingest.domain.identities import masters_of
from services.ingest.peer import Door, Peer
from services.ingest.places import NETWORK

_PENDING_FRAMES_MAX: Final = 1_000
_TICK_SECONDS_MAX: Final = 0.5
_OUTPUT: Final = "output"

Write = Callable[[pb.PublishResponse], Awaitable[None]]


class PublishStream:
    """One stream: reads requests in a task of its own and hands out responses in order."""

    def __init__(self, door: Door, peer_address: str) -> None:
        self._door = door
        self.peer_address = peer_address
        self._pending: list[bytes] = []
        self._news = asyncio.Event()
        self._pauses: set[str] = set()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._is_over = False
        self._is_told_to_drain = False
        self.peer = Peer(door, self)

    # peer.Port

    def write(self, payloads: list[bytes]) -> None:
        """Queues frames; a client that does not take them is not read from either."""
        self._pending += payloads
        self._news.set()
        if len(self._pending) > _PENDING_FRAMES_MAX:
            self.pause(_OUTPUT)

    def close(self) -> None:
        """Ends the stream behind what was queued."""
        self._is_over = True
        self._news.set()

    def pause(self, reason: str) -> None:
        """Reads no more."""
        self._pauses.add(reason)
        self._may_read.clear()

    def resume(self, reason: str) -> None:
        """Reads again when nothing else speaks against it."""
        self._pauses.discard(reason)
        if not self._pauses:
            self._may_read.set()

    def opened(self) -> None:
        """It is no stranger any more."""
        self._door.streams.logged_in(self.peer)

    # The stream

    def enter(self, certificate_names: Iterable[str]) -> None:
        """Takes a place, or tells the client why there is none."""
        host = host_of_grpc_peer(self.peer_address)
        refusal = self._door.streams.refusal(host)
        if refusal is None:
            self._door.streams.enter(self.peer, host)
            self.peer.session.restrict_to(masters_of(certificate_names))
            return
        metrics.CUT.labels(refusal).inc()
        if refusal == NETWORK:
            self.peer.end(frames.REJECT_CODE_UNAUTHENTICATED, "this address may not connect")
        else:
            self.peer.end(frames.REJECT_CODE_TOO_MANY_CONNECTIONS, f"too many streams ({refusal})")

    async def read(self, requests: AsyncIterator[pb.PublishRequest]) -> None:
        """Takes frames until the client ends its side, or the call."""
        frame_bytes_max = self._door.settings.frame_bytes_max
        session = self.peer.session
        try:
            async for request in requests:
                if request.frame.ByteSize() > frame_bytes_max:
                    message = f"at most {frame_bytes_max} bytes are taken"
                    self.peer.end(frames.REJECT_CODE_TOO_LARGE, message)
                    return
                session.receive_frame(request.frame, now_us(), time.monotonic())
                self.peer.settle()
                await self._may_read.wait()
        finally:
            if not session.is_leaving:
                self.close()

    async def serve(self, write: Write) -> None:
        """Sends the frames as they come, until the session ends.

        Raises:
            ResourceExhaustedError: the client did not take one in time.
        """
        settings = self._door.settings
        tick_seconds = min(
            _TICK_SECONDS_MAX, settings.heartbeat_seconds / 8, settings.unauthenticated_seconds_max / 8
        )
        looked_at = time.monotonic()
        while True:
            pending, self._pending = self._pending, []
            for payload in pending:
                await self._send(write, payload)
            self.resume(_OUTPUT)
            if time.monotonic() - looked_at >= tick_seconds:
                # By time alone: there may always be something to send.
                looked_at = time.monotonic()
                self._look_at_the_clock()
            if self._pending:
                continue
            if self._is_over:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(tick_seconds):
                    await self._news.wait()
            self._news.clear()

    async def _send(self, write: Write, payload: bytes) -> None:
        """gRPC takes a response only when the client has room for it: one that does not read stops us here."""
        seconds_max = self._door.settings.output_seconds_max
        timeout = asyncio.timeout(seconds_max)
        try:
            async with timeout:
                await write(pb.PublishResponse(frame=frames.ServerFrame.FromString(payload)))
        except TimeoutError as error:
            if not timeout.expired():
                raise
            metrics.CUT.labels("slow_reader").inc()
            message = f"no response was read for {seconds_max:g} s"
            raise ResourceExhaustedError(message, reason="SLOW_READER") from error

    def _look_at_the_clock(self) -> None:
        if self._door.is_draining and not self._is_told_to_drain:
            self._is_told_to_drain = True
            spread_ms = int(self._door.settings.drain_spread_seconds * 1_000)
            self.peer.session.drain(random.randint(0, spread_ms))
            self.peer.send()
        self.peer.tick(now_us(), time.monotonic(), is_held=not self._may_read.is_set())


async def publish(
    door: Door,
    requests: AsyncIterator[pb.PublishRequest],
    write: Write,
    peer_address: str,
    certificate_names: Iterable[str],
) -> None:
    """Serves one stream from its first frame to its last.

    Raises:
        ResourceExhaustedError: the client does not read.
    """
    stream = PublishStream(door, peer_address)
    stream.enter(certificate_names)
    reading = asyncio.create_task(stream.read(requests), name=f"publish {peer_address}")
    try:
        await stream.serve(write)
        if reading.done() and not reading.cancelled():
            # A fault of ours must not pass for the client's end.
            reading.result()
    finally:
        door.streams.leave(stream.peer)
        reading.cancel()
        stream.peer.disconnected()
        await asyncio.gather(reading, return_exceptions=True)
