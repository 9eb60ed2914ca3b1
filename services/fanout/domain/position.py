"""Places in a master's stream and how they follow one another; nothing here knows signals."""

from __future__ import annotations

from typing import Final, NamedTuple

SEQUENCE_MAX: Final = 2**53 - 1
EPOCH_MAX: Final = 2**63 - 1


class Position(NamedTuple):
    """A place in a master's stream. Positions of one master compare in the order in which they were given."""

    epoch: int
    sequence: int


ZERO: Final = Position(0, 0)
FIRST_EPOCH: Final = 1
BEGINNING: Final = Position(FIRST_EPOCH, 0)
"""What stands before the first signal of a master whose history was never lost."""


def held(position: Position) -> Position:
    """What a reader at `position` holds as the log counts: the zero position is the beginning of epoch 1."""
    return BEGINNING if position == ZERO else position
