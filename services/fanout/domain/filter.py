"""What a pause lets through; it knows signals and nothing of streams.

A paused subscriber still gets what can only lower its risk. Whether a MODIFY tightens a stop loss depends on the
position's side and on the stop that this subscriber holds, so positions are tracked from the stream itself.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from execution.common.v1 import signal_pb2
from execution.common.v1.signal_pb2 import (
    SIDE_BUY,
    SIGNAL_KIND_CLOSE,
    SIGNAL_KIND_CLOSE_BY,
    SIGNAL_KIND_MODIFY,
    SIGNAL_KIND_OPEN,
    SIGNAL_KIND_PARTIAL_CLOSE,
    SIGNAL_KIND_PENDING_CANCEL,
    SIGNAL_KIND_PENDING_FILL,
)


class Pause(IntEnum):
    """What is withheld from a subscriber; the values are those of execution.ledger.v1.PauseScope."""

    NONE = 0
    CLOSE_ONLY = 1
    ALL = 2


_CLOSES: Final = frozenset({SIGNAL_KIND_CLOSE, SIGNAL_KIND_PARTIAL_CLOSE, SIGNAL_KIND_CLOSE_BY})
_OPENS: Final = frozenset({SIGNAL_KIND_OPEN, SIGNAL_KIND_PENDING_FILL})

PASSES_CLOSE_ONLY: Final = 1
PASSES_ALL: Final = 2
"""Bits of `passes`: whether a signal passes a CLOSE_ONLY and an ALL pause whatever the subscriber holds."""


_STOP_MIN_E8: Final = 1
_STOP_MAX_E8: Final = 2**63 - 1


class StopChange(NamedTuple):
    """A MODIFY of a position whose side is known, or an opening that states one anew (netting)."""

    position_id: int
    is_buy: bool
    stop_before_e8: int
    """The master's stop before; what a subscriber holds differs only where an earlier MODIFY was withheld."""
    stop_after_e8: int
    is_opening: bool = False
    """Then it never passes by its stop: it may enlarge the position."""
    turns: bool = False
    """The opening changed the side: who did not get it holds a position that no stop of the new side can tighten."""

    def stop_held_without(self) -> int:
        """The stop that a subscriber holds from whom this was withheld; where it turns, one that nothing tightens."""
        if not self.turns:
            return self.stop_before_e8
        return _STOP_MAX_E8 if self.is_buy else _STOP_MIN_E8

    def tightens(self, stop_held_e8: int) -> bool:
        """Whether a subscriber whose stop is `stop_held_e8` (0 is none) risks less with the new one."""
        if self.stop_after_e8 == 0:
            return False
        if stop_held_e8 == 0:
            return True
        if self.is_buy:
            return self.stop_after_e8 > stop_held_e8
        return self.stop_after_e8 < stop_held_e8


def passes(signal: signal_pb2.Signal) -> int:
    """Which pauses let a signal through by its kind alone; a MODIFY is judged by its StopChange instead."""
    kind = signal.kind
    if kind in _CLOSES:
        return PASSES_CLOSE_ONLY | PASSES_ALL
    if kind == SIGNAL_KIND_PENDING_CANCEL:
        return PASSES_CLOSE_ONLY
    return 0


class StopTracker:
    """Side and stop loss of one master's open positions, as its signals tell them.

    Holds at most `positions_max`; the oldest is forgotten first. A MODIFY of a forgotten or never seen position cannot
    be judged and passes: it opens no risk.
    """

    def __init__(self, positions_max: int) -> None:
        self._positions_max = positions_max
        self._stops: dict[int, tuple[bool, int]] = {}

    def __len__(self) -> int:
        return len(self._stops)

    def observe(self, signal: signal_pb2.Signal) -> StopChange | None:
        """Takes note of the next signal in order; returns what a MODIFY or an opening changed of a position that is
        known, None for all else."""
        kind = signal.kind
        if kind == SIGNAL_KIND_MODIFY:
            return self._modify(signal.position_id, signal.stop_loss_e8)
        if kind in _OPENS:
            return self._open(signal.position_id, signal.side == SIDE_BUY, signal.stop_loss_e8)
        if kind == SIGNAL_KIND_CLOSE:
            self._stops.pop(signal.position_id, None)
        elif kind == SIGNAL_KIND_CLOSE_BY and signal.volume_lots_e8 == 0:
            self._stops.pop(signal.position_id, None)
            self._stops.pop(signal.opposite_position_id, None)
        return None

    def know(self, position_id: int, *, is_buy: bool, stop_loss_e8: int) -> None:
        """Takes note of an open position."""
        self._stops.pop(position_id, None)
        if len(self._stops) >= self._positions_max:
            del self._stops[next(iter(self._stops))]
        self._stops[position_id] = (is_buy, stop_loss_e8)

    def _open(self, position_id: int, is_buy: bool, stop_after_e8: int) -> StopChange | None:
        known = self._stops.get(position_id)
        self.know(position_id, is_buy=is_buy, stop_loss_e8=stop_after_e8)
        if known is None:
            return None
        was_buy, stop_before_e8 = known
        turns = is_buy is not was_buy
        return StopChange(position_id, is_buy, stop_before_e8, stop_after_e8, is_opening=True, turns=turns)

    def _modify(self, position_id: int, stop_after_e8: int) -> StopChange | None:
        known = self._stops.get(position_id)
        if known is None:
            return None
        is_buy, stop_before_e8 = known
        self._stops[position_id] = (is_buy, stop_after_e8)
        return StopChange(position_id, is_buy, stop_before_e8, stop_after_e8)
