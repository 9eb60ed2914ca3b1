"""Batches on their way from the client's thread to the program's own; it knows what the program has not done yet."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from ecp_client.subscriber.events import Batch


class HandingOver:
    """A bounded queue. What a thread was given counts as under way until it comes for more."""

    def __init__(self, batches_max: int) -> None:
        self._batches: deque[Batch] = deque()
        self._max = batches_max
        self._changed = threading.Condition()
        self._in_hands: dict[int, Batch] = {}
        self._ended: Exception | None = None

    def put(self, batch: Batch, *, beyond: bool = False) -> bool:
        """Adds a batch, unless there is no room and it is not to go `beyond`; whether it did."""
        with self._changed:
            if len(self._batches) >= self._max and not beyond:
                return False
            self._batches.append(batch)
            self._changed.notify()
            return True

    def take(self, timeout_seconds: float) -> Batch | None:
        """The oldest batch, or None when none came in time. Raises what `end` was given when none will come."""
        thread = threading.get_ident()
        until = time.monotonic() + timeout_seconds
        with self._changed:
            self._in_hands.pop(thread, None)
            while not self._batches:
                if self._ended is not None:
                    raise self._ended
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            batch = self._in_hands[thread] = self._batches.popleft()
            return batch

    def end(self, reason: Exception) -> None:
        """Nothing more will come: whoever waits is told why, after what is there. The first reason counts."""
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify_all()

    def under_way(self, master_id: int) -> set[int]:
        """Positions that the program may not have opened, changed or closed yet."""
        with self._changed:
            batches = [*self._in_hands.values(), *self._batches]
        return {ticket for batch in batches for ticket in _tickets(batch, master_id)}


def _tickets(batch: Batch, master_id: int) -> Iterator[int]:
    for sequenced in batch.signals:
        if sequenced.master_id == master_id:
            yield sequenced.signal.position_id
            yield sequenced.signal.opposite_position_id
    if batch.resynced is not None and batch.resynced.master_id == master_id:
        yield from (action.ticket for action in batch.resynced.plan.actions)
