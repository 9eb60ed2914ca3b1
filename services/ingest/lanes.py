"""The ways of sessions into the log, and what waits in them; nothing is sent from here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from services.ingest.domain.values import AppendResult, LogHead, Run, StoreSnapshot


class Owner(Protocol):
    """Who appends through a lane. All calls come synchronously, none may block."""

    def log_answered(self, result: AppendResult, sequence: int) -> None:
        """The answer to runs up to `sequence`."""

    def log_failed(self) -> None:
        """Nothing under way will be answered; `log_restored` follows when the log is back."""

    def log_restored(self, head: LogHead | None) -> None:
        """The log is back; this is the master's head."""

    def pause(self) -> None:
        """The log is behind: hand over no more."""

    def resume(self) -> None:
        """Go on."""


class Behind(NamedTuple):
    """A snapshot that follows runs which were not sent yet; the session's own limit bounds how many there are."""

    command: StoreSnapshot
    key_id: str
    now_us: int
    then: Callable[[bool], None]


class Way(Protocol):
    """Where a lane leads."""

    @property
    def is_behind(self) -> bool:
        """Whether sessions should be offered less."""

    def append(self, lane: Lane, runs: list[Run]) -> None:
        """See Publisher.append."""

    def discard(self, lane: Lane) -> None:
        """See Publisher.discard."""

    def leave(self, lane: Lane) -> None:
        """See Publisher.leave."""

    def store_snapshot(
        self, lane: Lane, command: StoreSnapshot, key_id: str, now_us: int, then: Callable[[bool], None]
    ) -> None:
        """See Publisher.store_snapshot."""


class Lane:
    """One session's way into the log."""

    __slots__ = (
        "behind",
        "is_paused",
        "is_queued",
        "master_id",
        "outstanding_bytes",
        "owner",
        "session_epoch",
        "waiting",
        "way",
    )

    def __init__(self, way: Way, owner: Owner, master_id: int, session_epoch: int) -> None:
        self.way = way
        self.owner = owner
        self.master_id = b"%d" % master_id
        self.session_epoch = b"%d" % session_epoch
        self.waiting: deque[Run] = deque()
        self.behind: list[Behind] = []
        self.outstanding_bytes = 0
        """Of runs that wait or are on their way."""
        self.is_queued = False
        self.is_paused = False

    def put(self, runs: list[Run]) -> int:
        """Adds runs; returns their size in bytes."""
        size_bytes = 0
        for run in runs:
            size_bytes += len(run.data)
        self.waiting.extend(runs)
        self.outstanding_bytes += size_bytes
        return size_bytes

    def take(self, room_bytes: int) -> list[Run]:
        """Removes the runs that fit, at least one of those that wait, so that none is too large for ever."""
        waiting = self.waiting
        if self.outstanding_bytes <= room_bytes:
            runs = list(waiting)
            waiting.clear()
            return runs
        runs = []
        while waiting and (room_bytes > 0 or not runs):
            run = waiting.popleft()
            room_bytes -= len(run.data)
            runs.append(run)
        return runs

    def drop_waiting(self) -> int:
        """Forgets what waits; returns its size in bytes."""
        size_bytes = sum(len(run.data) for run in self.waiting)
        self.waiting.clear()
        self.outstanding_bytes -= size_bytes
        return size_bytes

    def fail(self) -> None:
        """The log is gone: nothing that waits or is on its way will be answered."""
        self.waiting.clear()
        self.outstanding_bytes = 0
        self.is_queued = False
        behind, self.behind = self.behind, []
        for one in behind:
            one.then(False)
        self.owner.log_failed()


class Share(NamedTuple):
    """What one lane has in a flush."""

    lane: Lane
    last: int
    size_bytes: int


class Flush(NamedTuple):
    """What was sent in one call."""

    shares: list[Share]
    size_bytes: int
    sent_at_seconds: float
