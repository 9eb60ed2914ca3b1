"""Keeps full garbage collections short: what has survived one is set aside and not looked through again and again.

In a full collection everything stands still while CPython looks at every container of the process: 0.3 s with ten
thousand open streams, each time that a quarter more have come. Reference counts free what was set aside as they free
everything else. Only circles in it would stay, so it is looked through again when it has grown to twice its size, and
now and then: as often as costs a ten thousandth of the time.
"""

from __future__ import annotations

import gc
import time
from typing import Any, Final, Literal, Self

from prometheus_client import Histogram

FULL_COLLECTIONS: Final = Histogram(
    "python_gc_full_collection_seconds",
    "How long the process stood still for a full garbage collection.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)

# About 20,000 new containers: they are looked through in 5 ms.
_MIDDLE_COLLECTIONS: Final = 2
_OLDEST: Final = 2
# Counting what is set aside takes 10 ms for a million containers.
_COLLECTIONS_PER_COUNT: Final = 64
_GROWTH: Final = 2
_SHARE_OF_TIME_MAX: Final = 0.000_1
_SMALL_OBJECTS: Final = 100_000


class LongLived:
    """While the block runs, whatever survives a full collection is set aside."""

    def __init__(
        self,
        *,
        collections_per_count: int = _COLLECTIONS_PER_COUNT,
        share_of_time_max: float = _SHARE_OF_TIME_MAX,
    ) -> None:
        self._collections_per_count = collections_per_count
        self._share_of_time_max = share_of_time_max
        self._collections = 0
        self._objects_before = 0
        """That were set aside when everything was looked through last."""
        self._is_due = True
        """Whether the next collection looks through everything; the first one does."""
        self._due_seconds = 0.0
        """When time alone makes one due."""
        self._began_seconds = 0.0
        self._thresholds = gc.get_threshold()

    def __enter__(self) -> Self:
        youngest, middle, oldest = self._thresholds = gc.get_threshold()
        # Where full collections are not made by count (CPython 3.14), that stays so.
        gc.set_threshold(youngest, middle, min(oldest, _MIDDLE_COLLECTIONS))
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._on_collection)
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()

    def _on_collection(self, phase: Literal["start", "stop"], info: dict[str, Any]) -> None:
        if info["generation"] < _OLDEST:
            return
        if phase == "start":
            self._began_seconds = time.perf_counter()
            return
        now_seconds = time.perf_counter()
        took_seconds = now_seconds - self._began_seconds
        FULL_COLLECTIONS.observe(took_seconds)
        self._collections += 1
        gc.freeze()
        if self._is_due:
            # Everything was looked through, and what is left is what is needed.
            self._is_due = False
            self._objects_before = gc.get_freeze_count()
            self._due_seconds = now_seconds + took_seconds / self._share_of_time_max
        elif now_seconds >= self._due_seconds or self._has_grown():
            self._is_due = True
            gc.unfreeze()

    def _has_grown(self) -> bool:
        """Whether twice as much is set aside as when everything was looked through last; not looked at each time."""
        if self._collections % self._collections_per_count:
            return False
        return gc.get_freeze_count() > _GROWTH * max(self._objects_before, _SMALL_OBJECTS)
