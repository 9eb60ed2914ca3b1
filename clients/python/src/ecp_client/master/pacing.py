"""How long a master waits before it connects again, and when it gives up. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable

from ecp_client.backoff import Backoff
from ecp_client.master.endings import End, Outlook
from ecp_client.master.settings import MasterSettings

# A session that was open for so long was a good one, whether or not there was anything to send.
GOOD_SECONDS_MIN = 10.0
# Two clients with one identity fence each other again and again, each with progress in between; only time is peace.
PEACE_SECONDS_MIN = 60.0


class Pacing:
    """The waits of one client. A session with progress (a signal acknowledged), or a long one, starts them over."""

    def __init__(
        self, settings: MasterSettings, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        lowest, highest = settings.reconnect_seconds_min, settings.reconnect_seconds_max
        self._failed = Backoff(lowest, highest, uniform)
        self._refused = Backoff(min(1.0, highest), settings.refused_seconds_max, uniform)
        self._told_max = settings.refused_seconds_max
        self._fenced_max = settings.fenced_max
        self._fenced = 0

    def delay(self, end: End, progress: bool, open_seconds: float) -> float | None:
        """Seconds to wait after a session that ended so, or None to give up."""
        if progress or open_seconds >= GOOD_SECONDS_MIN:
            self._failed.reset()
        if open_seconds >= PEACE_SECONDS_MIN:
            self._refused.reset()
            self._fenced = 0
        self._fenced += end.outlook is Outlook.FENCED
        if end.outlook is Outlook.FATAL or self._fenced >= self._fenced_max:
            return None
        if end.outlook in (Outlook.REFUSED, Outlook.FENCED):
            return self._refused.next_delay()
        told = min(end.wait_ms / 1_000, self._told_max)
        if end.outlook is Outlook.AGAIN and told:
            return told
        # "Again" without a time means soon: the shortest wait, and longer ones if it leads nowhere.
        return max(told, self._failed.next_delay())
