"""A place in a master's stream, as a value that can be compared. Pure."""

from __future__ import annotations

from typing import NamedTuple

from execution.common.v1 import position_pb2


class Position(NamedTuple):
    """Epoch and sequence; (0, 0) stands before everything."""

    epoch: int
    sequence: int

    def to_pb(self) -> position_pb2.StreamPosition:
        """The message that says the same."""
        return position_pb2.StreamPosition(epoch=self.epoch, sequence=self.sequence)

    @classmethod
    def from_pb(cls, position: position_pb2.StreamPosition) -> Position:
        """The place that a message names."""
        return cls(position.epoch, position.sequence)


BEGINNING = Position(0, 0)
