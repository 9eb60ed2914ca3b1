"""Who waits for which sequence to be acknowledged; it knows neither the network nor the disk."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from ecp_client.errors import ClientError, ClosedError, SignalRefusedError
from ecp_client.master.events import SequencesMoved, SignalRefused
from ecp_client.master.outbox import Outbox

REFUSED_REMEMBERED_MAX = 1_000
CANCELLED_KEPT_MAX = 1_000


class Waiters:
    """Futures by sequence. Use it on the event loop only."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tie = itertools.count()
        self._refused: dict[int, SignalRefusedError] = {}
        self._moves: list[SequencesMoved] = []
        self._cancelled = 0
        self._failure: ClientError | None = None

    async def wait(self, sequence: int, *, refused_is_fine: bool = False) -> None:
        """Returns when `sequence` is acknowledged.

        Raises:
            SignalRefusedError: it was refused for good, unless `refused_is_fine`.
            ClosedError, LoginRefusedError: the client stopped before.
        """
        sequence = self._now_called(sequence)
        if sequence > self._outbox.acknowledged:
            if self._failure is not None:
                raise self._failure
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (sequence, next(self._tie), future)
            heapq.heappush(self._heap, entry)
            try:
                await future
            except asyncio.CancelledError:
                self._forget_cancelled()
                raise
            sequence = self._now_called(sequence)
        refusal = self._refused.get(sequence)
        if refusal is not None and not refused_is_fine:
            raise refusal

    def acknowledged(self, sequence: int) -> None:
        """Wakes everybody who waits for `sequence` or less."""
        heap = self._heap
        while heap and heap[0][0] <= sequence:
            future = heapq.heappop(heap)[2]
            if not future.done():
                future.set_result(None)

    def refused(self, event: SignalRefused) -> None:
        """Remembers a refusal for whoever waits, or will ask soon."""
        self._refused[event.sequence] = SignalRefusedError(
            event.sequence, event.code, event.message, event.field
        )
        if len(self._refused) > REFUSED_REMEMBERED_MAX:
            del self._refused[next(iter(self._refused))]

    def moved(self, event: SequencesMoved) -> None:
        """Signals got later sequences: so do those who wait for them."""
        self._moves.append(event)
        moved = [
            (number + event.by if event.after < number <= event.upto else number, tie, future)
            for number, tie, future in self._heap
        ]
        heapq.heapify(moved)
        self._heap = moved

    def fail(self, error: ClientError) -> None:
        """Nothing will be acknowledged any more."""
        self._failure = error
        while self._heap:
            future = heapq.heappop(self._heap)[2]
            if not future.done():
                future.set_exception(error)

    def close(self) -> None:
        """The client is closed."""
        self.fail(ClosedError("the master was closed before the acknowledgement"))

    def _forget_cancelled(self) -> None:
        """While nothing is acknowledged, those who gave up waiting must not pile up."""
        self._cancelled += 1
        if self._cancelled > max(CANCELLED_KEPT_MAX, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _now_called(self, sequence: int) -> int:
        for move in self._moves:
            if move.after < sequence <= move.upto:
                sequence += move.by
        return sequence
