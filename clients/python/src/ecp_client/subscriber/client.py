"""The asyncio client of a subscriber: streams, acknowledges and reports, reconnecting for ever."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Self

from ecp_client.addresses import check_license_token
from ecp_client.clock import ServerClock, monotonic_us, wall_us
from ecp_client.copying import Copier, EquitySource, PointValueSource, Protection, QuoteSource, Reason
from ecp_client.disk import FsyncPolicy
from ecp_client.errors import ClosedError
from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.events import Batch, StreamEnded, SubscriberEvent, SyncState
from ecp_client.subscriber.hooks import Hooks
from ecp_client.subscriber.journal import Journal
from ecp_client.subscriber.processing import Processor, SubscriberStats
from ecp_client.subscriber.recovery import recover
from ecp_client.subscriber.reporter import Reporter
from ecp_client.subscriber.reporting import outcome
from ecp_client.subscriber.settings import SubscriberSettings
from ecp_client.subscriber.streaming import Streaming
from execution.common.v1.signal_pb2 import SequencedSignal
from execution.fanout.v1 import fanout_service_pb2 as pb

logger = logging.getLogger("ecp_client.subscriber")

OnBatch = Callable[[Batch], "Awaitable[None] | None"]
RefreshToken = Callable[[], Awaitable[str]]


class Subscriber:
    """Follows masters: each signal reaches `on_batch` once and in order, with what the settings make of it.

    Use it as `async with Subscriber(settings, on_batch=...) as subscriber:`. Callbacks run on the event loop; what they
    raise is logged, counted, and stops nothing.

    - `on_batch` gets all new signals of one received message with their decisions; it may be a coroutine function, and
      the next message waits for it. The journal has them before, so that none is ever given twice.
    - `protection` is asked for each opening that the settings allow: any Reason but NONE refuses it.
    - `quotes` gives bid and ask of a symbol, for max_slippage_e8.
    - `equity` gives own equity, and `point_value` what a symbol's price is worth, for the scalings that need them.
    - `held_positions` gives the master's position_ids that the terminal really has, for full syncs: what is missing
      there was closed by hand and is never opened again, what the account should not have is closed, and what it did
      not know of is taken over. What `on_batch` has handed on and nobody has done yet is to be told as it will be.
    - `refresh_token` is awaited when the server no longer takes the license.
    """

    def __init__(
        self,
        settings: SubscriberSettings,
        *,
        on_batch: OnBatch | None = None,
        on_event: Callable[[SubscriberEvent], None] | None = None,
        protection: Protection | None = None,
        quotes: QuoteSource | None = None,
        held_positions: Callable[[int], Collection[int] | None] | None = None,
        equity: EquitySource | None = None,
        point_value: PointValueSource | None = None,
        refresh_token: RefreshToken | None = None,
    ) -> None:
        """Opens the journal and recovers from it; `start`, or entering the context, connects.

        Raises:
            JournalLockedError: another process uses the journal.
            JournalError: the journal cannot be used, or is damaged.
            SettingsError: ca_file cannot be read.
        """
        settings.check_ca_file()
        self.settings = settings
        self._on_batch = on_batch
        self._journal = None
        if settings.journal_folder is not None:
            self._journal = Journal(settings.journal_folder, settings.journal)
        try:
            recovered = {} if settings.journal_folder is None else recover(settings.journal_folder)
        except BaseException:
            if self._journal is not None:
                self._journal.close()
            raise
        self.clock = ServerClock(monotonic_us(), wall_us())
        hooks = Hooks(on_event, protection, quotes, equity, point_value, held_positions)
        self._processor = Processor(settings, hooks, self._journal, recovered, self.clock)
        self._token = settings.license_token
        self._streaming = Streaming(
            settings, self._processor, self._handle, self._metadata, self._refreshing(refresh_token)
        )
        self._reporter = Reporter(settings, self._processor.outcomes, self._metadata, self._processor.tell)
        self._tasks: list[asyncio.Task[None]] = []
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._failure: Exception | None = None
        self._closed = False
        self._under_way: asyncio.Future[None] | None = None
        """What `on_batch` has begun."""

    # Life

    async def start(self) -> None:
        """Begins to connect, and returns at once."""
        if self._tasks or self._closed:
            raise ClosedError("a subscriber can be started once")
        settings = self.settings
        self._tasks = [
            asyncio.create_task(self._guard(self._streaming.run), name="ecp-subscriber-stream"),
            asyncio.create_task(self._streaming.acknowledge_often(), name="ecp-subscriber-acknowledge"),
            asyncio.create_task(self._guard(self._checkpoint_often), name="ecp-subscriber-checkpoint"),
        ]
        if settings.risk_addresses:
            self._tasks.append(asyncio.create_task(self._reporter.run(), name="ecp-subscriber-report"))
        if self._journal is not None and settings.journal.fsync is FsyncPolicy.INTERVAL:
            sync = self._guard(functools.partial(self._sync_often, self._journal))
            self._tasks.append(asyncio.create_task(sync, name="ecp-subscriber-sync"))

    async def close(self) -> None:
        """Lets `on_batch` finish, acknowledges and reports what is left, writes a checkpoint and closes.

        Safe to repeat.
        """
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._finish_batch()
        await self._streaming.close()
        await self._reporter.close()
        self._fail_waiters(ClosedError("the subscriber was closed before"))
        if self._journal is not None:
            if self._failure is None:
                self._processor.checkpoint()
            self._journal.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Asking

    @property
    def stats(self) -> SubscriberStats:
        """Counts since the client was made."""
        return self._processor.stats

    @property
    def failure(self) -> Exception | None:
        """Why the client had to stop for good, if it had to."""
        return self._failure

    @property
    def outcomes_waiting(self) -> int:
        """Outcomes that the risk service has not taken yet."""
        return len(self._processor.outcomes)

    @property
    def master_ids(self) -> list[int]:
        """The masters that are followed."""
        return list(self._processor.session.tracks)

    def copier(self, master_id: int) -> Copier:
        """Mirror, account and settings of one master; to be read only. Raises KeyError when it is not followed."""
        return self._processor.following(master_id).copier

    def position(self, master_id: int) -> Position | None:
        """Everything up to here was processed; None before the stream began. Raises KeyError when not followed."""
        held = self._processor.session.tracks[master_id].held
        return None if held == BEGINNING else held

    def state(self, master_id: int) -> SyncState:
        """Where this subscriber stands with a master. Raises KeyError when it is not followed."""
        return self._processor.session.tracks[master_id].state

    async def wait_position(
        self, master_id: int, sequence: int, timeout_seconds: float | None = None
    ) -> None:
        """Returns when everything of a master up to `sequence` was processed.

        Raises:
            TimeoutError: it took longer than `timeout_seconds`.
            ClosedError: the client was closed before.
            JournalError: the journal cannot be written, and the client has stopped.
        """
        position = self.position(master_id)
        if position is not None and position.sequence >= sequence:
            return
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((master_id, sequence, future))
        async with asyncio.timeout(timeout_seconds):
            await future

    # Telling

    def set_license_token(self, token: str) -> None:
        """Uses another license from now on: the stream is opened anew with it and resumes where it was.

        Raises:
            SettingsError: it is none.
        """
        check_license_token(token)
        if token != self._token:
            self._token = token
            self._streaming.restart("another license token")

    def disconnect(self) -> None:
        """Drops the stream; the client opens another one by itself and resumes."""
        self._streaming.restart("disconnected by the application")

    def resync(self, master_id: int) -> None:
        """Asks for a full sync of a master. Raises KeyError when it is not followed."""
        self._processor.session.tracks[master_id].wants_snapshot = True
        self._streaming.restart("full sync asked for by the application")

    def closed_by_user(self, master_id: int, position_id: int) -> bool:
        """Notes that the user closed a copied position by hand: it is never opened again. Whether it was held."""
        return self._processor.closed_by_user(master_id, position_id, is_order=False)

    def order_cancelled_by_user(self, master_id: int, order_id: int) -> bool:
        """Notes that the user cancelled a copied order by hand: it is never placed again. Whether it was there."""
        return self._processor.closed_by_user(master_id, order_id, is_order=True)

    def report(
        self, sequenced: SequencedSignal, *, executed: bool, price_e8: int = 0, reason: Reason = Reason.NONE
    ) -> None:
        """Reports what the broker did with a signal. Refused: the account no longer counts it as held.

        `price_e8` is where it was executed, or what was refused. Reporting a signal again changes nothing.
        """
        if not executed:
            self._processor.refused_by_broker(sequenced, reason)
        if self.settings.risk_addresses:
            now_us = self.server_time_us()
            latency_us = max(0, now_us - sequenced.sent_at_us)
            report = outcome(sequenced, executed, reason, price_e8, latency_us, now_us)
            self._processor.outcomes.add(report)

    def server_time_us(self) -> int:
        """The server's time now, as well as it is known."""
        return self.clock.at(monotonic_us())

    # Inside

    async def _handle(self, response: pb.SubscribeResponse) -> None:
        batch = self._processor.handle(response)
        if batch is not None and self._on_batch is not None:
            try:
                answer = self._on_batch(batch)
                if inspect.isawaitable(answer):
                    # Closing ends the stream, but not what has been begun: the journal says that it was given.
                    self._under_way = asyncio.ensure_future(answer)
                    await asyncio.shield(self._under_way)
            except Exception:
                self._note_failed_batch()
        if self._waiters:
            self._wake_waiters()

    def _note_failed_batch(self) -> None:
        """The application's own code: its faults must not stop the stream."""
        self.stats.callback_errors += 1
        logger.exception("on_batch failed")

    async def _finish_batch(self) -> None:
        under_way = self._under_way
        if under_way is None or under_way.done() or under_way is asyncio.current_task():
            return
        try:
            async with asyncio.timeout(self.settings.close_timeout_seconds):
                await under_way
        except TimeoutError:
            logger.error("on_batch was cut off: it did not end within close_timeout_seconds")
        except Exception:
            # The application's code may raise anything, and the client is to close all the same.
            self._note_failed_batch()

    def _wake_waiters(self) -> None:
        waiting = []
        for entry in self._waiters:
            master_id, sequence, future = entry
            position = self._processor.session.tracks[master_id].held
            if position is not None and position.sequence >= sequence:
                if not future.done():
                    future.set_result(None)
            elif not future.done():
                waiting.append(entry)
        self._waiters = waiting

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token}"),)

    def _refreshing(self, refresh_token: RefreshToken | None) -> Callable[[], Awaitable[bool]] | None:
        """Whether a refused license was replaced by another one."""
        if refresh_token is None:
            return None

        async def refresh() -> bool:
            before = self._token
            try:
                token = await refresh_token()
                check_license_token(token)
                self._token = token
            except Exception:
                # The application's own code; the stream is tried again later.
                self.stats.callback_errors += 1
                logger.exception("refresh_token failed")
            return self._token != before

        return refresh

    async def _checkpoint_often(self) -> None:
        while True:
            await asyncio.sleep(self.settings.checkpoint_interval_seconds)
            self._processor.checkpoint()

    async def _sync_often(self, journal: Journal) -> None:
        while True:
            await asyncio.sleep(self.settings.fsync_interval_seconds)
            descriptor = journal.duplicate_descriptor()
            if descriptor is not None:
                try:
                    await asyncio.to_thread(os.fsync, descriptor)
                finally:
                    os.close(descriptor)

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Without a journal that can be written nothing may be received: says so, and ends the stream."""
        try:
            await work()
        except Exception as error:
            logger.exception("the subscriber stops")
            self._failure = error
            self._fail_waiters(error)
            self._processor.tell(StreamEnded("INTERNAL", f"the subscriber stops: {error}", is_final=True))
            for task in self._tasks:
                if task is not asyncio.current_task():
                    task.cancel()

    def _fail_waiters(self, error: Exception) -> None:
        waiters, self._waiters = self._waiters, []
        for _, _, future in waiters:
            if not future.done():
                future.set_exception(error)
