"""What a full sync cannot know while signals are withheld or missing behind its snapshot. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from ecp_client.account import Holding, HoldingState, OrderHolding
from execution.common.v1 import signal_pb2 as pb


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """What a plan leaves alone: the tickets that were stated later than in the snapshot, where it is not told again.

    Nobody knows whether the master still has them.
    """

    positions: frozenset[int] = frozenset()
    orders: frozenset[int] = frozenset()
    opens_nothing: bool = False
    """What the snapshot has may have ended where it is not told again: the plan takes on no risk."""


def is_unconfirmed(entry: Holding | OrderHolding, unconfirmed: Unconfirmed | None) -> bool:
    """Whether an entry that the mirror lacks is to stay: of those without a side, nobody knows where they came from."""
    is_unknown = entry.side == pb.SIDE_UNSPECIFIED and entry.state is HoldingState.HELD
    return unconfirmed is not None and is_unknown
