"""One TCP connection to a front door: moves bytes between the socket and a session; it decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from ecp_client.clock import monotonic_us
from ecp_client.master.session import MasterSession

# Beyond this many unsent bytes the transport says stop: what is queued waits in the outbox, not in memory.
WRITE_BUFFER_BYTES_MAX = 1 << 20


class Connection(asyncio.Protocol):
    """Feeds a session. `on_change` runs after each input, on the event loop."""

    def __init__(self, begin: Callable[[], MasterSession], on_change: Callable[[], None]) -> None:
        self._begin = begin
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_us = 0
        self.session: MasterSession | None = None
        self.is_writable = False
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of it.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self.session = self._begin()
        self.is_writable = True
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self.session is not None:
            self.session.receive_data(data, monotonic_us())
            self._on_change()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_writable = False
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self.session is not None:
                self.session.connection_lost(f"the connection was lost: {exc or 'closed by the server'}")
                self._on_change()
        finally:
            if not self.closed.done():
                self.closed.set_result(None)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._on_change()

    @property
    def peer(self) -> str:
        """The server's address."""
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        return f"{peer[0]}:{peer[1]}" if peer else ""

    def flush(self) -> None:
        """Writes what the session has to send, closes when it has ended, and sets the timer for its next deadline."""
        session, transport = self.session, self.transport
        if session is None or transport is None:
            return
        data = session.data_to_send()
        if data and not transport.is_closing():
            transport.write(data)
        if session.end is not None:
            transport.close()
        elif session.deadline_us < self._timer_at_us or self._timer is None:
            self._arm(session.deadline_us)

    def abort(self) -> None:
        """Drops the connection without waiting for anything."""
        if self.transport is not None:
            self.transport.abort()

    def _arm(self, deadline_us: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_us = deadline_us
        delay = max(0.0, (deadline_us - monotonic_us()) / 1e6)
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.session is not None and self.session.end is None:
            self.session.tick(monotonic_us())
            self._on_change()
