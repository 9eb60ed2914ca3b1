"""The asyncio client of a master: outbox, session and connection together, reconnecting for ever."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Self

from ecp_client.addresses import check_license_token
from ecp_client.books import Book
from ecp_client.clock import ServerClock, monotonic_us, wall_us
from ecp_client.disk import FsyncPolicy
from ecp_client.errors import ClientError, ClosedError, LoginRefusedError, OutboxError
from ecp_client.master import events
from ecp_client.master.connecting import Connecting
from ecp_client.master.delivery import Delivery, MasterStats
from ecp_client.master.endings import End, Outlook
from ecp_client.master.events import MasterState
from ecp_client.master.outbox import Outbox
from ecp_client.master.settings import MasterSettings
from ecp_client.master.snapshots import SnapshotProvider, Snapshots
from ecp_client.master.waiting import Waiters
from ecp_client.signals import check
from ecp_client.telling import Teller
from execution.common.v1.signal_pb2 import Signal

logger = logging.getLogger("ecp_client.master")

# Sending takes at most a quarter of the time, as long as that delays nothing by more than the settings allow.
RESTS_PER_WORK = 3


class Master:
    """Sends one master's signals: each is in the log exactly once and in order, or named as refused or lost.

    Use it as `async with Master(settings) as master:`. `put` and `send` return as soon as the outbox has the signal;
    everything else goes on by itself. `on_event` is called on the event loop; what it raises is logged.

    A snapshot of the account is needed now and then. Either give a `book`, to which every signal is applied as it is
    put in, or a `snapshot` function, which sets as_of.sequence to the last signal that its state contains (0: all that
    were put in).
    """

    def __init__(
        self,
        settings: MasterSettings,
        *,
        on_event: Callable[[events.MasterEvent], None] | None = None,
        snapshot: SnapshotProvider | None = None,
        book: Book | None = None,
    ) -> None:
        """Opens the outbox; `start`, or entering the context, connects.

        Raises:
            OutboxLockedError: another process uses the outbox.
            OutboxError: the outbox cannot be used.
        """
        self.settings = settings
        self._tell = Teller(on_event, logger).tell
        self._put_mutex = threading.Lock()
        self._book = book
        tls = settings.tls()
        self._outbox = Outbox(settings.outbox_folder, settings.master_id, settings.outbox)
        self.clock = ServerClock(monotonic_us(), wall_us() + self._outbox.clock_offset_us)
        self._snapshots = Snapshots(
            settings, self._outbox, self._put_mutex, self.server_time_us, snapshot, book
        )
        self._delivery = Delivery(self._outbox, self._snapshots, self.clock, self._put_mutex)
        self._connecting = Connecting(settings, self._delivery, self.clock, tls, self._on_change, self._tell)
        self._waiters = Waiters(self._outbox)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._runner: asyncio.Task[None] | None = None
        self._syncer: asyncio.Task[None] | None = None
        self._pump_is_due = False
        self._rested_at = 0.0
        self._closing = False

    # Life

    async def start(self) -> None:
        """Begins to connect, and returns at once."""
        if self._runner is not None or self._closing:
            raise ClosedError("a master can be started once")
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._runner = asyncio.create_task(self._run(), name=f"ecp-master-{self.settings.master_id}")
        if self.settings.outbox.fsync is not FsyncPolicy.NEVER:
            self._syncer = asyncio.create_task(self._sync_often())

    async def close(self) -> None:
        """Waits up to `close_timeout_seconds` for the last acknowledgements, says goodbye and closes; safe to repeat.

        What is not acknowledged then stays in the outbox and is sent by the next client that opens it.
        """
        if self._closing:
            return
        if self.state is MasterState.OPEN:
            with contextlib.suppress(TimeoutError, ClientError):
                await self.wait_all_acknowledged(self.settings.close_timeout_seconds)
        self._closing = True
        is_leaving = self._connecting.close()
        await self._stop_tasks(self.settings.close_timeout_seconds if is_leaving else 0.0)
        self._connecting.ended()
        self._waiters.close()
        await asyncio.to_thread(self._outbox.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Sending

    def put(self, signal: Signal) -> int:
        """Puts a signal into the outbox and returns its sequence; may be called from any thread.

        An `occurred_at_us` of 0 becomes now. Under FsyncPolicy.ALWAYS this blocks for as long as the disk takes.

        Raises:
            SignalInvalidError: a field is wrong; nothing was taken.
            OutboxFullError: too much is unacknowledged; nothing was taken.
            OutboxError: the disk cannot be written; nothing was taken.
            ClosedError: the client is closed.
        """
        return self.put_many((signal,))[0]

    def put_many(self, signals: Sequence[Signal]) -> range:
        """Puts several signals in, all or none, with one write; returns their sequences. Raises as `put` does."""
        if not signals:
            return range(0)
        payloads = []
        for signal in signals:
            if not signal.occurred_at_us:
                signal.occurred_at_us = self.server_time_us()
            check(signal)
            payloads.append(signal.SerializeToString())
        with self._put_mutex:
            if self._closing:
                raise ClosedError("the master is closed")
            first = self._outbox.put_many(payloads)
            if self._book is not None:
                for index, signal in enumerate(signals):
                    self._book.apply(signal, first + index)
        self.stats.put += len(payloads)
        self._schedule_pump()
        return range(first, first + len(payloads))

    async def send(self, signal: Signal) -> int:
        """As `put`; under FsyncPolicy.ALWAYS the event loop goes on while the disk works."""
        return (await self.send_many((signal,)))[0]

    async def send_many(self, signals: Sequence[Signal]) -> range:
        """As `put_many`; under FsyncPolicy.ALWAYS the event loop goes on while the disk works."""
        if self.settings.outbox.fsync is FsyncPolicy.ALWAYS:
            return await asyncio.to_thread(self.put_many, signals)
        return self.put_many(signals)

    def send_snapshot(self) -> None:
        """Makes a snapshot now and sends it as soon as what it contains is under way; call it on the event loop."""
        self._snapshots.request()
        self._schedule_pump()

    # Waiting

    async def wait_open(self, timeout_seconds: float | None = None) -> None:
        """Returns when the server has welcomed this client.

        Raises:
            LoginRefusedError: the server refused it.
            TimeoutError: neither happened in time.
        """
        async with asyncio.timeout(timeout_seconds):
            await self._connecting.wait_open()

    async def wait_acknowledged(self, sequence: int, timeout_seconds: float | None = None) -> None:
        """Returns when `sequence` is in the log.

        Raises:
            SignalRefusedError: the server refused it for good.
            ClosedError: the client was closed before.
            TimeoutError: it took longer than `timeout_seconds`.
        """
        async with asyncio.timeout(timeout_seconds):
            await self._waiters.wait(sequence)

    async def wait_all_acknowledged(self, timeout_seconds: float | None = None) -> None:
        """Returns when everything that was put in so far is acknowledged or declared as a gap. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            await self._waiters.wait(self._outbox.last_sequence, refused_is_fine=True)

    # Asking

    @property
    def state(self) -> MasterState:
        """Where the client stands."""
        return self._connecting.state

    @property
    def stats(self) -> MasterStats:
        """Counts since the client was made."""
        return self._delivery.stats

    @property
    def acknowledged(self) -> tuple[int, int]:
        """Epoch and sequence of the last acknowledged position."""
        return self._outbox.epoch, self._outbox.acknowledged

    @property
    def last_sequence(self) -> int:
        """Sequence of the last signal that was put in."""
        return self._outbox.last_sequence

    @property
    def pending(self) -> int:
        """How many sequences are not acknowledged."""
        return self._outbox.pending

    def server_time_us(self) -> int:
        """The server's time now, as well as it is known."""
        return self.clock.at(monotonic_us())

    def set_license_token(self, token: str) -> None:
        """Uses another license from the next login on; a client that waits after a refusal tries again at once.

        Raises:
            SettingsError: it is none.
        """
        check_license_token(token)
        self._on_loop(lambda: self._connecting.set_license_token(token))

    # Inside

    async def _run(self) -> None:
        try:
            end = await self._connecting.run()
        except Exception:
            # A fault of this library: it must be seen, and nobody may wait for what will not come.
            logger.exception("master %d: the client failed", self.settings.master_id)
            end = End(Outlook.FATAL, "the client failed; see the log")
        self._connecting.ended()
        if not self._closing:
            self._waiters.fail(LoginRefusedError(end.code, end.reason))

    async def _stop_tasks(self, patience_seconds: float) -> None:
        if self._runner is not None and patience_seconds:
            await asyncio.wait((self._runner,), timeout=patience_seconds)
        for task in (self._runner, self._syncer):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _sync_often(self) -> None:
        failed = ""
        while True:
            await asyncio.sleep(self.settings.fsync_interval_seconds)
            try:
                await asyncio.to_thread(self._outbox.sync)
                failed = ""
            except OutboxError as error:
                if str(error) != failed:
                    failed = str(error)
                    logger.error("the outbox is not safe from a power cut: %s", failed)

    def _on_change(self) -> None:
        connection = self._connecting.connection
        if connection is None or connection.session is None:
            return
        for event in self._delivery.take_events(connection.session):
            self._take_event(event)
        self._pump()

    def _take_event(self, event: events.MasterEvent) -> None:
        if isinstance(event, events.Acknowledged):
            self._waiters.acknowledged(event.sequence)
        elif isinstance(event, events.SignalRefused):
            self._waiters.refused(event)
        elif isinstance(event, events.SequencesMoved):
            self._waiters.moved(event)
        elif isinstance(event, events.SessionOpened):
            self._waiters.acknowledged(event.sequence)
            self._connecting.opened()
            if self._connecting.connection is not None:
                event = dataclasses.replace(event, address=self._connecting.connection.peer)
        self._tell(event)

    def _schedule_pump(self) -> None:
        if not self._pump_is_due and self._connecting.connection is not None:
            self._pump_is_due = True
            self._on_loop(self._pump_when_rested)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if threading.get_ident() == self._loop_thread:
            loop.call_soon(callback)
        else:
            loop.call_soon_threadsafe(callback)

    def _pump_when_rested(self) -> None:
        """Sending costs a system call a frame: under load a short rest lets more signals gather for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now < self._rested_at:
            loop.call_at(self._rested_at, self._pump_when_rested)
            return
        self._pump_is_due = False
        self._pump()
        took = loop.time() - now
        self._rested_at = now + took + min(took * RESTS_PER_WORK, self.settings.batch_delay_seconds_max)

    def _pump(self) -> None:
        """Sends what can be sent now."""
        connection = self._connecting.connection
        if connection is None or connection.session is None:
            return
        if connection.is_writable:
            for event in self._delivery.feed(connection.session, monotonic_us()):
                self._tell(event)
        connection.flush()
