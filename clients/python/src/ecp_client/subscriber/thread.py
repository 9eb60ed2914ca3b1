"""The subscriber's client for programs without an event loop: it runs one in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Self

from ecp_client.addresses import check_license_token
from ecp_client.clock import wall_us
from ecp_client.copying import Copier, EquitySource, PointValueSource, Protection, QuoteSource, Reason
from ecp_client.errors import ClosedError
from ecp_client.looping import LoopThread
from ecp_client.positions import Position
from ecp_client.subscriber.client import RefreshToken, Subscriber
from ecp_client.subscriber.events import Batch, Resynced, StreamEnded, SubscriberEvent, SyncState
from ecp_client.subscriber.handing_over import HandingOver
from ecp_client.subscriber.processing import SubscriberStats
from ecp_client.subscriber.settings import SubscriberSettings
from execution.common.v1.signal_pb2 import SequencedSignal

ANSWER_SECONDS_MAX = 30.0
BATCHES_MAX = 1_000
FULL_WAIT_SECONDS = 0.005


class SubscriberThread:
    """As Subscriber, for a plain thread that polls: `poll` gives one batch after the other.

    While the program does not poll, up to 1,000 batches wait; then the stream waits too, and what follows waits in the
    server. `on_event`, `protection` and the sources of quotes, equity, values and held positions are called
    in the client's own thread; a call that waits for the client raises WrongThreadError there. What a thread polled
    counts as under way until that thread polls again: till then `held_positions` is not believed about it.

    After `close`, all but `poll` and what only reads raises ClosedError.
    """

    def __init__(
        self,
        settings: SubscriberSettings,
        *,
        on_event: Callable[[SubscriberEvent], None] | None = None,
        protection: Protection | None = None,
        quotes: QuoteSource | None = None,
        held_positions: Callable[[int], Collection[int] | None] | None = None,
        equity: EquitySource | None = None,
        point_value: PointValueSource | None = None,
        refresh_token: RefreshToken | None = None,
    ) -> None:
        """Opens the journal; `start`, or entering the context, connects. Raises as Subscriber does."""
        self._batches = HandingOver(BATCHES_MAX)
        self._on_event = on_event
        self._held_positions = held_positions
        self._loop = LoopThread("ecp-subscriber")
        self._closed = False

        async def make() -> Subscriber:
            return Subscriber(
                settings,
                on_batch=self._enqueue,
                on_event=self._take_event,
                protection=protection,
                quotes=quotes,
                held_positions=None if held_positions is None else self._held,
                equity=equity,
                point_value=point_value,
                refresh_token=refresh_token,
            )

        try:
            self._subscriber = self._loop.call(make(), timeout_seconds=ANSWER_SECONDS_MAX)
        except BaseException:
            self._loop.stop()
            raise

    def start(self) -> None:
        """Begins to connect, and returns at once."""
        self._loop.call(self._subscriber.start(), timeout_seconds=ANSWER_SECONDS_MAX)

    def close(self) -> None:
        """As Subscriber.close; ends the thread. Safe to repeat."""
        self._loop.check_other()
        if self._closed:
            return
        self._closed = True
        seconds_max = ANSWER_SECONDS_MAX + self._subscriber.settings.close_timeout_seconds
        try:
            self._loop.call(self._subscriber.close(), timeout_seconds=seconds_max)
        finally:
            self._loop.stop()
            self._batches.end(ClosedError("the subscriber is closed"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self, timeout_seconds: float = 0.0) -> Batch | None:
        """The next batch, or None when none came within `timeout_seconds`.

        The plan of a full sync comes in its place among the signals, as `Batch.resynced`; `on_event` hears of it before
        that, and must leave it to whoever polls.

        Raises:
            JournalError: the journal cannot be written, and the client has stopped.
            ClosedError: the client was closed, and all that had come was polled.
        """
        self._loop.check_other()
        return self._batches.take(timeout_seconds)

    def _enqueue(self, batch: Batch) -> Awaitable[None] | None:
        return None if self._batches.put(batch) else self._wait_for_room(batch)

    async def _wait_for_room(self, batch: Batch) -> None:
        """The journal has it: when the client is closed meanwhile, it can still be polled."""
        while True:
            if self._batches.put(batch, beyond=self._closed):
                return
            await asyncio.sleep(FULL_WAIT_SECONDS)

    def _take_event(self, event: SubscriberEvent) -> None:
        if isinstance(event, StreamEnded) and event.is_final:
            self._batches.end(self._subscriber.failure or ClosedError(event.reason))
        elif isinstance(event, Resynced):
            batch = Batch([], [], wall_us(), self._subscriber.server_time_us(), event)
            self._batches.put(batch, beyond=True)
        if self._on_event is not None:
            self._on_event(event)

    def _held(self, master_id: int) -> Collection[int] | None:
        """What the terminal has, as soon as the program has done what it was given, or will be."""
        held = self._held_positions(master_id) if self._held_positions is not None else None
        if held is None or not isinstance(held, Collection):
            return held
        account = self._subscriber.copier(master_id).account
        under_way = self._batches.under_way(master_id)
        kept = [ticket for ticket in held if ticket not in under_way]
        return [*kept, *(entry.position_id for entry in account.held() if entry.position_id in under_way)]

    @property
    def stats(self) -> SubscriberStats:
        """Counts since the client was made."""
        return self._subscriber.stats

    @property
    def outcomes_waiting(self) -> int:
        """As Subscriber.outcomes_waiting."""
        return self._subscriber.outcomes_waiting

    @property
    def master_ids(self) -> list[int]:
        """As Subscriber.master_ids."""
        return self._subscriber.master_ids

    def copier(self, master_id: int) -> Copier:
        """As Subscriber.copier; read it while nothing is being received, or take it as a moment's picture."""
        return self._subscriber.copier(master_id)

    def position(self, master_id: int) -> Position | None:
        """As Subscriber.position."""
        return self._subscriber.position(master_id)

    def state(self, master_id: int) -> SyncState:
        """As Subscriber.state."""
        return self._subscriber.state(master_id)

    def wait_position(self, master_id: int, sequence: int, timeout_seconds: float) -> None:
        """As Subscriber.wait_position; what it waits for may still wait to be polled."""
        waiting = self._subscriber.wait_position(master_id, sequence, timeout_seconds)
        self._loop.call(waiting, timeout_seconds=timeout_seconds + ANSWER_SECONDS_MAX)

    def server_time_us(self) -> int:
        """As Subscriber.server_time_us."""
        return self._subscriber.server_time_us()

    def set_license_token(self, token: str) -> None:
        """As Subscriber.set_license_token."""
        check_license_token(token)
        self._loop.call_soon(self._subscriber.set_license_token, token)

    def disconnect(self) -> None:
        """As Subscriber.disconnect."""
        self._loop.call_soon(self._subscriber.disconnect)

    def resync(self, master_id: int) -> None:
        """As Subscriber.resync. Raises KeyError when it is not followed."""
        self._subscriber.state(master_id)
        self._loop.call_soon(self._subscriber.resync, master_id)

    def closed_by_user(self, master_id: int, position_id: int) -> None:
        """As Subscriber.closed_by_user."""
        self._loop.call_soon(self._subscriber.closed_by_user, master_id, position_id)

    def order_cancelled_by_user(self, master_id: int, order_id: int) -> None:
        """As Subscriber.order_cancelled_by_user."""
        self._loop.call_soon(self._subscriber.order_cancelled_by_user, master_id, order_id)

    def report(
        self, sequenced: SequencedSignal, *, executed: bool, price_e8: int = 0, reason: Reason = Reason.NONE
    ) -> None:
        """As Subscriber.report."""
        self._loop.call_soon(
            lambda: self._subscriber.report(sequenced, executed=executed, price_e8=price_e8, reason=reason)
        )
