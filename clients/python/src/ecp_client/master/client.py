"""The asyncio client of a master: outbox, session and connection together, reconnecting for ever."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Self

from ecp_client.addresses import parse_address
from ecp_client.backoff import Backoff
from ecp_client.books import Book
from ecp_client.clock import ServerClock, monotonic_us, wall_us
from ecp_client.disk import FsyncPolicy
from ecp_client.errors import ClosedError, LoginRefusedError
from ecp_client.master import events
from ecp_client.master.connection import Connection
from ecp_client.master.endings import OUTBOX_BEHIND, End, Outlook
from ecp_client.master.events import MasterState
from ecp_client.master.outbox import Outbox
from ecp_client.master.session import Identity, MasterSession, Resume, SessionLimits
from ecp_client.master.settings import MasterSettings
from ecp_client.master.snapshots import SnapshotProvider, Snapshots
from ecp_client.master.waiting import Waiters
from ecp_client.signals import check
from ecp_client.version import CLIENT_NAME
from execution.common.v1 import position_pb2
from execution.common.v1.signal_pb2 import Signal
from execution.common.v1.snapshot_pb2 import Snapshot

logger = logging.getLogger("ecp_client.master")

OPEN_POLL_SECONDS = 0.05


@dataclasses.dataclass(slots=True)
class MasterStats:
    """Counts since the client was made."""

    put: int = 0
    sent: int = 0
    """Signals written to a connection, resent ones included."""
    acknowledged: int = 0
    refused: int = 0
    connections: int = 0
    snapshots: int = 0


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
        self.stats = MasterStats()
        self.state = MasterState.STOPPED
        self.last_end: End | None = None
        self._on_event = on_event
        self._tls = settings.tls()
        self._outbox = Outbox(settings.outbox_folder, settings.master_id, settings.outbox)
        self._book = book
        self._put_mutex = threading.Lock()
        self._license_token = settings.license_token
        self._maybe_sent = self._outbox.maybe_sent
        now_us = monotonic_us()
        self.clock = ServerClock(now_us, wall_us() + self._outbox.clock_offset_us)
        self._snapshots = Snapshots(
            settings, self._outbox, self._put_mutex, self.server_time_us, snapshot, book
        )
        self._waiters = Waiters(self._outbox)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._connection: Connection | None = None
        self._runner: asyncio.Task[None] | None = None
        self._syncer: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._opened = asyncio.Event()
        self._pump_is_due = False
        self._closing = False

    # Life

    async def start(self) -> None:
        """Begins to connect, and returns at once."""
        if self._runner is not None or self._closing:
            raise ClosedError("a master can be started once")
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self.state = MasterState.CONNECTING
        self._runner = asyncio.create_task(self._run(), name=f"ecp-master-{self.settings.master_id}")
        if self.settings.outbox.fsync is FsyncPolicy.INTERVAL:
            self._syncer = asyncio.create_task(self._sync_often())

    async def close(self) -> None:
        """Waits up to `close_timeout_seconds` for the last acknowledgements, says goodbye and closes; safe to repeat.

        What is not acknowledged then stays in the outbox and is sent by the next client that opens it.
        """
        if not self._closing:
            if self.state is MasterState.OPEN:
                with contextlib.suppress(TimeoutError):
                    await self.wait_all_acknowledged(self.settings.close_timeout_seconds)
            self._closing = True
            self._wake.set()
            if self._connection is not None and self._connection.session is not None:
                self._connection.session.say_bye("closing")
                self._connection.flush()
            await self._stop_tasks()
            self._waiters.close()
            self.state = MasterState.STOPPED
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
            while not self._opened.is_set():
                end = self.last_end
                if end is not None and end.outlook in (Outlook.REFUSED, Outlook.FATAL):
                    raise LoginRefusedError(end.code, end.reason)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OPEN_POLL_SECONDS):
                        await self._opened.wait()

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
        """Uses another license from the next login on; a client that waits after a refusal tries again at once."""
        self._license_token = token
        if self.last_end is not None and self.last_end.outlook is Outlook.REFUSED:
            self.last_end = None
        self._on_loop(self._wake.set)

    # Inside: connecting

    async def _run(self) -> None:
        settings = self.settings
        backoff = Backoff(settings.reconnect_seconds_min, settings.reconnect_seconds_max)
        refused = Backoff(min(1.0, settings.reconnect_seconds_max), settings.refused_seconds_max)
        turn = random.randrange(len(settings.addresses))
        fenced = 0
        while not self._closing:
            self.state = MasterState.CONNECTING
            progress = self._outbox.acknowledged
            end = await self._connect(settings.addresses[turn % len(settings.addresses)])
            turn += 1
            if self._outbox.acknowledged > progress:
                backoff.reset()
                refused.reset()
                fenced = 0
            fenced += end.outlook is Outlook.FENCED
            self.last_end = end
            if not self._closing:
                self._tell(events.Disconnected(end.reason, end.code))
            if end.outlook is Outlook.FATAL or fenced >= settings.fenced_max:
                self.state = MasterState.FAILED
                self._waiters.fail(LoginRefusedError(end.code, end.reason))
                return
            self.state = MasterState.BACKING_OFF
            await self._pause(self._delay(end, backoff, refused))

    def _delay(self, end: End, backoff: Backoff, refused: Backoff) -> float:
        match end.outlook:
            case Outlook.AGAIN:
                # Repeated without progress, "again" is no better than any failure.
                return max(end.wait_ms / 1_000, 0.0 if end.wait_ms else backoff.next_delay())
            case Outlook.REFUSED | Outlook.FENCED:
                return refused.next_delay()
            case _:
                return max(end.wait_ms / 1_000, backoff.next_delay())

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        if not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def _connect(self, address: str) -> End:
        """One connection from start to end."""
        host, port = parse_address(address)
        loop = asyncio.get_running_loop()
        connection = Connection(self._begin, self._on_change)
        self._connection = connection
        name = self.settings.server_hostname or host
        try:
            async with asyncio.timeout(self.settings.connect_timeout_seconds):
                await loop.create_connection(
                    lambda: connection,
                    host,
                    port,
                    ssl=self._tls,
                    server_hostname=name if self._tls is not None else None,
                )
        except (OSError, TimeoutError) as error:
            connection.abort()
            self._connection = None
            return End(Outlook.RETRY, f"{address}: {error or 'no answer in time'}")
        self.stats.connections += 1
        try:
            await connection.closed
        finally:
            self._opened.clear()
            self._connection = None
            connection.abort()
        session = connection.session
        assert session is not None
        return session.end or End(Outlook.RETRY, "the connection was lost")

    def _begin(self) -> MasterSession:
        settings = self.settings
        return MasterSession(
            Identity(
                settings.master_id,
                settings.key_id,
                settings.secret,
                self._license_token,
                settings.client or CLIENT_NAME,
            ),
            Resume(self._outbox.epoch, self._outbox.acknowledged, self._maybe_sent, self._outbox.begin_epoch),
            self.clock,
            monotonic_us(),
            secrets.token_bytes(32),
            SessionLimits(login_us_max=int(settings.login_timeout_seconds * 1e6)),
        )

    async def _stop_tasks(self) -> None:
        if self._runner is not None:
            done, _ = await asyncio.wait((self._runner,), timeout=self.settings.close_timeout_seconds)
            if not done:
                self._runner.cancel()
        for task in (self._runner, self._syncer):
            if task is not None and task is not asyncio.current_task():
                if task is self._syncer:
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _sync_often(self) -> None:
        while True:
            await asyncio.sleep(self.settings.fsync_interval_seconds)
            await asyncio.to_thread(self._outbox.sync)

    # Inside: the session

    def _on_change(self) -> None:
        connection = self._connection
        session = connection.session if connection is not None else None
        if session is None:
            return
        for event in session.take_events():
            self._take_event(event, session)
        if session.end is not None and session.end.code == OUTBOX_BEHIND:
            self._outbox.remember(begin_epoch=True)
        self._pump()

    def _take_event(self, event: events.MasterEvent, session: MasterSession) -> None:
        if isinstance(event, events.Acknowledged):
            self.stats.acknowledged = event.sequence
            self._outbox.acknowledge(event.epoch, event.sequence)
            self._waiters.acknowledged(event.sequence)
        elif isinstance(event, events.SessionOpened):
            event = self._take_welcome(event, session)
        elif isinstance(event, events.SignalRefused):
            self.stats.refused += 1
            self._waiters.refused(event)
            logger.warning("signal %d was refused: %s %s", event.sequence, event.code, event.message)
        elif isinstance(event, events.SnapshotRequested):
            self._snapshots.request()
        elif isinstance(event, events.SnapshotRefused):
            self._snapshots.refused(monotonic_us())
        elif isinstance(event, events.SnapshotStored):
            self.stats.snapshots += 1
        self._tell(event)

    def _take_welcome(self, event: events.SessionOpened, session: MasterSession) -> events.SessionOpened:
        outbox = self._outbox
        with self._put_mutex:
            by = event.sequence - self._maybe_sent
            moved = None
            if by > 0 and outbox.last_sequence > self._maybe_sent:
                moved = events.SequencesMoved(self._maybe_sent, outbox.last_sequence, by)
                outbox.move(self._maybe_sent, by)
                self._waiters.moved(moved)
            outbox.acknowledge(event.epoch, event.sequence)
        outbox.remember(
            begin_epoch=False if outbox.begin_epoch else None,
            clock_offset_us=self.server_time_us() - wall_us(),
        )
        self._maybe_sent = max(self._maybe_sent, event.sequence)
        self._waiters.acknowledged(event.sequence)
        if moved is not None:
            self._tell(moved)
        if session.welcome.snapshot_wanted or event.new_epoch:
            self._snapshots.request()
        self.state = MasterState.OPEN
        self.last_end = None
        self._opened.set()
        return dataclasses.replace(event, address=self._address())

    def _address(self) -> str:
        transport = self._connection.transport if self._connection is not None else None
        peer = transport.get_extra_info("peername") if transport is not None else None
        return f"{peer[0]}:{peer[1]}" if peer else ""

    def _schedule_pump(self) -> None:
        if not self._pump_is_due and self._connection is not None:
            self._pump_is_due = True
            self._on_loop(self._pump_once)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if threading.get_ident() == self._loop_thread:
            loop.call_soon(callback)
        else:
            loop.call_soon_threadsafe(callback)

    def _pump_once(self) -> None:
        self._pump_is_due = False
        self._pump()

    def _pump(self) -> None:
        """Sends as much of the outbox as the server takes, in as few frames as possible."""
        connection = self._connection
        session = connection.session if connection is not None else None
        if connection is None or session is None:
            return
        now_us = monotonic_us()
        while connection.is_writable and (room := session.room(now_us)) > 0:
            count = min(room, session.batch_signals_max)
            payloads = self._outbox.read(session.next_sequence, count, session.batch_bytes_max)
            if payloads:
                session.send_signals(payloads, now_us)
                self.stats.sent += len(payloads)
            elif not self._declare_hole(session, now_us):
                break
            self._maybe_sent = max(self._maybe_sent, session.next_sequence - 1)
        snapshot = self._snapshots.due(session, now_us)
        if snapshot is not None:
            session.send_snapshot(snapshot, now_us)
        connection.flush()

    def _declare_hole(self, session: MasterSession, now_us: int) -> bool:
        first = session.next_sequence
        last = self._outbox.hole_from(first)
        if last is None:
            return False
        logger.error("the outbox lost the signals %d to %d; they are declared as a gap", first, last)
        reason = position_pb2.GAP_REASON_MASTER_LOST
        session.send_gap_fill(last, reason, "not in the master's outbox", now_us)
        self._tell(events.SignalsLost(first, last))
        return True

    def _tell(self, event: events.MasterEvent) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            # The application's own code: its faults must not stop the signals.
            logger.exception("on_event failed for %r", event)


__all__ = ["Master", "MasterStats", "Snapshot"]
