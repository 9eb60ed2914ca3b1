"""Whether a stream can begin behind a position, as far as the ring can tell; it reads nothing."""

from __future__ import annotations

from enum import Enum

from services.fanout.domain.position import Position
from services.fanout.domain.ring import MasterLog


class Reach(Enum):
    """Where what follows a position is to be found."""

    RING = "ring"
    """In the ring, or it has not happened yet."""
    BEHIND = "behind"
    """Before the ring's oldest record: in the log or the archive, if anywhere."""
    AHEAD = "ahead"
    """Beyond what this process has read: right if the log has come that far meanwhile, impossible if not."""


def reach_of(log: MasterLog, after: Position) -> Reach:
    """Where to look for what follows `after`.

    A position of an earlier epoch counts as reachable when the ring holds the start of the epoch that followed: the
    reader is then told what that means for it.
    """
    if after > log.head:
        return Reach.AHEAD
    return Reach.RING if log.covers(after) else Reach.BEHIND
