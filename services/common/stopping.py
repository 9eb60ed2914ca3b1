"""How a running process is asked to end; it handles no signals itself."""

from __future__ import annotations

import asyncio


class Stop:
    """How a running process is asked to end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set by the first signal."""
        self.is_graceful = False
        self.was_forced = False

    def begin_graceful(self) -> None:
        """From now on a signal sets `asked` and does no more; before, it cancels what runs."""
        self.is_graceful = True
