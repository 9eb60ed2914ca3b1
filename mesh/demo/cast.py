"""Who plays in the demo: masters, subscribers, and how each behaves. Pure; knows no network and no files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mesh.demo.strategies import STRATEGIES


class Behaviour(StrEnum):
    """How a subscriber behaves."""

    HONEST = "honest"
    CUT_OFF = "cut off"
    ROTATES = "rotates its license"
    CHEATS = "fakes protections"


@dataclass(frozen=True, slots=True)
class MasterRole:
    """A master and the index of its strategy in STRATEGIES."""

    name: str
    strategy: int


@dataclass(frozen=True, slots=True)
class SubscriberRole:
    """A subscriber; follows holds indices of masters, volume_percent scales their volumes."""

    name: str
    follows: tuple[int, ...]
    volume_percent: int
    behaviour: Behaviour


def masters() -> list[MasterRole]:
    """One master per strategy."""
    return [MasterRole(strategy.name, index) for index, strategy in enumerate(STRATEGIES)]


def subscribers(count: int) -> list[SubscriberRole]:
    """`count` subscribers: one is cut off, one cheats, one rotates its license, the rest are plain.

    Some follow all masters, so that each signal has peers to be compared with; the others follow one.
    """
    special = {0: Behaviour.CUT_OFF, 1: Behaviour.CHEATS, 2: Behaviour.ROTATES}
    roles = []
    for index in range(count):
        everybody = tuple(range(len(STRATEGIES)))
        follows = everybody if index % 10 < 4 and index < 20 else (index % len(STRATEGIES),)
        behaviour = special.get(index, Behaviour.HONEST)
        roles.append(
            SubscriberRole(f"subscriber-{index + 1:02d}", follows, (50, 100, 200)[index % 3], behaviour)
        )
    return roles
