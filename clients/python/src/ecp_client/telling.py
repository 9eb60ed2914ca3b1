"""Gives an application its events without letting its faults through."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

EventT = TypeVar("EventT")


class Teller(Generic[EventT]):
    """Calls the application's function, if there is one; what it raises is logged and counted in `errors`."""

    def __init__(self, on_event: Callable[[EventT], None] | None, logger: logging.Logger) -> None:
        self.errors = 0
        self._on_event = on_event
        self._logger = logger

    def tell(self, event: EventT) -> None:
        """Gives the application one event."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            # The application's own code: its faults must stop neither signals nor streams.
            self.errors += 1
            self._logger.exception("on_event failed for %r", event)
