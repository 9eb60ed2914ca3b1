"""How far each master's stream goes, to tell outcomes of signals that never were; without Redis it lets all pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from services.common import log
from services.common.errors import UnavailableError
from services.risk import metrics
from services.risk.intake import NewOutcomes

_log = logging.getLogger(__name__)

Position = tuple[int, int]


class LogHeads:
    """The furthest position seen of each master. It only moves forward: a log that came back with less must not make
    honest reports on what it lost look invented.
    """

    def __init__(self, signal_log: log.SignalLog | None, *, masters_max: int) -> None:
        """Without a log every position is taken for known."""
        self._log = signal_log
        self._masters_max = masters_max
        self._heads: dict[int, Position] = {}

    async def unknown(self, outcomes: NewOutcomes) -> list[int]:
        """Indexes of the outcomes whose position is beyond the end of the master's stream; none while Redis is away."""
        if self._log is None:
            return []
        beyond = self._beyond(outcomes, range(len(outcomes)))
        if not beyond:
            return []
        try:
            await self._read(self._log, sorted({outcomes.master_ids[index] for index in beyond}))
        except UnavailableError as error:
            metrics.HEADS_UNREAD.inc()
            _log.debug("positions are not compared with the log: %s", error.message)
            return []
        return self._beyond(outcomes, beyond)

    def _beyond(self, outcomes: NewOutcomes, indexes: Sequence[int]) -> list[int]:
        heads, nowhere = self._heads, (0, 0)
        return [
            index
            for index in indexes
            if (outcomes.epochs[index], outcomes.sequences[index])
            > heads.get(outcomes.master_ids[index], nowhere)
        ]

    async def _read(self, signal_log: log.SignalLog, masters: Sequence[int]) -> None:
        for master, head in (await signal_log.read_heads(masters)).items():
            if len(self._heads) >= self._masters_max and master not in self._heads:
                self._heads.clear()
            self._heads[master] = max(head.position, self._heads.get(master, (0, 0)))
