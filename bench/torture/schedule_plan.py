"""Random schedules of what befalls the fan-out and its followers, each made from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

PAUSE_SECONDS_MAX: Final = 0.5
_STALL_SECONDS_MAX: Final = 3.0
_CUT_SECONDS_MAX: Final = 0.8
_TORN_BYTES_MAX: Final = 6_000


class Kind(StrEnum):
    """What one act does."""

    CONNECT = "connect"
    """A follower comes, or comes back, with its journal; `place` says where one without a journal begins."""
    LEAVE = "leave"
    """A follower closes its client."""
    DROP = "drop"
    """A follower's cable is cut, for `seconds`."""
    STALL = "stall"
    """A follower's cable carries nothing, for `seconds`, and nobody is told."""
    TRIM = "trim"
    """Everything that is archived goes from the log, but for its last entries."""
    DRAIN = "drain"
    """A fan-out process gets SIGTERM, and another one takes its place."""
    KILL = "kill"
    """A fan-out process gets SIGKILL, and another one takes its place."""
    SAVE = "save"
    """Redis is killed and its files are copied, to be restored later."""
    RESTORE = "restore"
    """Redis comes back with the files that were copied last."""
    TEAR = "tear"
    """Redis is killed and loses the last `bytes_torn` of its append-only file, as in a power cut."""
    PAUSE = "pause"
    """The operator pauses all of a follower's subscriptions, for `seconds`; `place` says what is withheld."""
    RESYNC = "resync"
    """The operator asks for a full sync of everybody who follows a master."""


@dataclass(frozen=True, slots=True)
class Act:
    """One act, after a pause. What does not concern its kind is 0."""

    pause_seconds: float
    kind: Kind
    who: int = 0
    """Number of the follower, of the fan-out process, or of the master."""
    seconds: float = 0.0
    bytes_torn: int = 0
    place: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many of each there are, and how long a schedule is."""

    masters: int = 2
    followers: int = 3
    fanouts: int = 2
    acts: int = 14


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens, in order. The first acts bring the followers in."""

    seed: int
    acts: tuple[Act, ...]

    def as_json(self) -> dict[str, Any]:
        """For a file or a failed test's message."""
        return {"seed": self.seed, "acts": [asdict(act) for act in self.acts]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Schedule:
        """What `as_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        acts = tuple(Act(**{**act, "kind": Kind(act["kind"])}) for act in data["acts"])
        return cls(int(data["seed"]), acts)


_PLACES: Final = ("beginning", "snapshot", "now")
_SCOPES: Final = ("CLOSE_ONLY", "ALL")
_WEIGHTS: Final = {
    Kind.CONNECT: 4,
    Kind.LEAVE: 2,
    Kind.DROP: 3,
    Kind.STALL: 2,
    Kind.TRIM: 3,
    Kind.DRAIN: 3,
    Kind.KILL: 3,
    Kind.SAVE: 1,
    Kind.RESTORE: 2,
    Kind.TEAR: 1,
    Kind.RESYNC: 2,
    Kind.PAUSE: 2,
}


def schedule(seed: int, sizes: Sizes) -> Schedule:
    """The schedule of a seed: the same for the same sizes, on every machine."""
    chance = random.Random(seed)
    acts = [
        Act(0.0, Kind.CONNECT, who, place=chance.choice(_PLACES))
        for who in range(sizes.followers)
        if who == 0 or chance.random() < 0.8
    ]
    kinds = list(_WEIGHTS)
    while len(acts) < sizes.acts:
        (kind,) = chance.choices(kinds, weights=list(_WEIGHTS.values()))
        acts.append(_MAKERS[kind](chance, round(chance.uniform(0, PAUSE_SECONDS_MAX), 3), sizes))
    return Schedule(seed, tuple(acts))


_SAID: Final = {Kind.CONNECT: _PLACES, Kind.PAUSE: _SCOPES}
_Maker = Callable[[random.Random, float, Sizes], Act]


def _of_follower(kind: Kind, seconds_max: float = 0.0) -> _Maker:
    def make(chance: random.Random, pause: float, sizes: Sizes) -> Act:
        who = chance.randrange(sizes.followers)
        seconds = round(chance.uniform(0.05, seconds_max), 3) if seconds_max else 0.0
        place = chance.choice(_SAID[kind]) if kind in _SAID else ""
        return Act(pause, kind, who, seconds, place=place)

    return make


def _of_fanout(kind: Kind) -> _Maker:
    return lambda chance, pause, sizes: Act(pause, kind, chance.randrange(sizes.fanouts))


def _of_log(kind: Kind) -> _Maker:
    return lambda _chance, pause, _sizes: Act(pause, kind)


_MAKERS: Final[dict[Kind, _Maker]] = {
    Kind.CONNECT: _of_follower(Kind.CONNECT),
    Kind.LEAVE: _of_follower(Kind.LEAVE),
    Kind.DROP: _of_follower(Kind.DROP, _CUT_SECONDS_MAX),
    Kind.STALL: _of_follower(Kind.STALL, _STALL_SECONDS_MAX),
    Kind.PAUSE: _of_follower(Kind.PAUSE, _STALL_SECONDS_MAX),
    Kind.TRIM: _of_log(Kind.TRIM),
    Kind.DRAIN: _of_fanout(Kind.DRAIN),
    Kind.KILL: _of_fanout(Kind.KILL),
    Kind.SAVE: _of_log(Kind.SAVE),
    Kind.RESTORE: _of_log(Kind.RESTORE),
    Kind.TEAR: lambda chance, pause, _sizes: Act(
        pause, Kind.TEAR, bytes_torn=chance.randint(1, _TORN_BYTES_MAX)
    ),
    Kind.RESYNC: lambda chance, pause, sizes: Act(pause, Kind.RESYNC, chance.randrange(sizes.masters)),
}
