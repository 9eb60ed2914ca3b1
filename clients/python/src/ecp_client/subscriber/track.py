"""Where one master's stream stands, for a subscriber; the session moves it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.events import SyncState


class Start(enum.Enum):
    """Where to begin with a master of whom nothing is known yet."""

    SNAPSHOT = "snapshot"
    """With all that the master has open, then everything after it."""
    NOW = "now"
    """With the next signal."""
    BEGINNING = "beginning"
    """With the first signal that the server still has of the whole history."""


@dataclass(slots=True)
class Track:
    """Where one master's stream stands."""

    master_id: int
    start: Start
    held: Position | None = None
    """Everything up to here was received, or was told not to come; None before the start is known."""
    processed: Position = BEGINNING
    """Signals up to here were delivered before, by this process or by one before it: they come as replays."""
    degraded_at: Position | None = None
    """The full sync must reach beyond this, where the last gap ended; None when nothing is missing."""
    heard_of: bool = False
    """Some stream has said something about this master."""
    pause: SyncState | None = None
    """As the server told it last."""
    pause_told: bool = False
    """This stream told the pause, so that it goes on; a stream tells it before anything else of the master."""
    is_cancelled: bool = False
    wants_snapshot: bool = False
    """The next request asks for a full sync."""
    awaits_snapshot: bool = False
    """A full sync was asked for and has not begun."""
    resyncing: bool = False
    """The server said that a full sync is under way on this stream, and its snapshot has not come."""
    withheld: bool = False
    """A pause withheld signals: the mirror is incomplete until the next full sync."""
    stalled: bool = False
    """The stream jumped without a word: nothing more is taken from it."""
    jumped_at: Position | None = None
    """Where that happened last; twice at the same place asks for a full sync."""
    snapshots_missed: int = 0
    """Streams that ended before the snapshot that was asked for came."""

    @property
    def degraded(self) -> bool:
        """Whether signals are missing, so that only what reduces risk is safe."""
        return self.degraded_at is not None

    def unseen(self, first: Position, last: Position, resume_after: Position) -> tuple[Position, Position]:
        """What is missing of `first` to `last` without what came before: a sequence means one signal for ever.

        Behind an older snapshot, the log may lack what had been delivered from there. Where nothing is missing then,
        both are `resume_after`, as where a new epoch begins.
        """
        if first.sequence > self.processed.sequence:
            return first, last
        if last.sequence <= self.processed.sequence:
            return resume_after, resume_after
        return Position(first.epoch, self.processed.sequence + 1), last

    @property
    def state(self) -> SyncState:
        """The state as the application sees it."""
        if self.is_cancelled:
            return SyncState.CANCELLED
        if self.pause is not None:
            return self.pause
        if (self.awaits_snapshot or self.resyncing) and self.held is not None:
            return SyncState.RESYNCING
        if self.degraded:
            return SyncState.DEGRADED
        return SyncState.SYNCED if self.heard_of and self.held is not None else SyncState.STARTING
