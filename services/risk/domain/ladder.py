"""From a score to what is withheld: warn, close-only, pause, with hysteresis; it knows no storage and calls nobody."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Level(StrEnum):
    """The step of the ladder."""

    GOOD = "good"
    WARN = "warn"
    CLOSE_ONLY = "close_only"
    PAUSED = "paused"

    @property
    def withholds(self) -> bool:
        """Whether signals are withheld on this step."""
        return self in (Level.CLOSE_ONLY, Level.PAUSED)


@dataclass(frozen=True, slots=True)
class Ladder:
    """The scores at which the steps begin. A step down that withholds needs two checks in a row."""

    warn_below: float = 65.0
    close_only_below: float = 50.0
    pause_below: float = 25.0
    resume_from: float = 65.0
    signals_min: int = 20
    """Nobody is paused on fewer signals."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a user stands after the last check: the score of that check and the step."""

    checked_score: float
    level: Level


LADDER: Final = Ladder()
NEWCOMER: Final = Standing(checked_score=100.0, level=Level.GOOD)


def next_level(before: Standing, score: float, signals: int, ladder: Ladder = LADDER) -> Level:
    """The step after a check that gave `score` on `signals` signals.

    "Below on two checks in a row" is the same as "the better of the last two scores is below". A user who is withheld
    stays so until `resume_from`, and may only step further down until then.
    """
    unpaused = Level.WARN if score < ladder.warn_below else Level.GOOD
    if signals < ladder.signals_min:
        return unpaused
    better = max(before.checked_score, score)
    if before.level.withholds:
        if score >= ladder.resume_from:
            return unpaused
        return Level.PAUSED if better < ladder.pause_below else before.level
    if better < ladder.pause_below:
        return Level.PAUSED
    return Level.CLOSE_ONLY if better < ladder.close_only_below else unpaused


def level_of_override(score: float, ladder: Ladder = LADDER) -> Level:
    """The step after an operator's word: never one that withholds."""
    return Level.WARN if score < ladder.warn_below else Level.GOOD
