"""The subscribers' process of `ecp torture fanout`: `python -m bench.torture.followers JSON`, then a word a line.

It feeds the log all the while. `status` prints how far everybody is; `finish` ends the feed, waits until everybody has
everything, prints what came of it, and ends. So does the end of its standard input, without a word.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import uvloop

from bench.feeders import LogFeeder
from bench.torture.follower import Follower

_FEED_SECONDS: Final = 0.005
_POLL_SECONDS: Final = 0.02
_PROBLEMS_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to follow."""

    redis_url: str
    ports: tuple[int, ...]
    subscribers: int
    signals_per_second: float
    finish_seconds_max: float = 60.0


@dataclass(frozen=True, slots=True)
class Status:
    """How far everybody is."""

    fed: int
    held_min: int
    streaming: int


@dataclass(slots=True)
class Outcome:
    """What became of all subscribers."""

    signals: int
    feed_pause_seconds_max: float = 0.0
    """The longest time without a new signal in the log: of a longer silence so much is not the fan-out's."""
    deliveries: int = 0
    missing: int = 0
    doubled: int = 0
    streams: int = 0
    drains: int = 0
    silences_seconds: list[float] = field(default_factory=list)
    """The longest of each subscriber, in ascending order."""
    ends: dict[str, int] = field(default_factory=dict)
    """How streams ended."""
    problems: list[str] = field(default_factory=list)


class Followers:
    """All subscribers, and the feed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._feeder = LogFeeder(plan.redis_url)
        self._fed = 0
        self._feed_pause_seconds_max = 0.0
        self._followers = [
            Follower(f"license-{number}", plan.ports, number) for number in range(plan.subscribers)
        ]

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Does as told until the commands end."""
        following = [asyncio.create_task(follower.follow()) for follower in self._followers]
        feeding = asyncio.create_task(self._feed())
        gc.collect()
        gc.freeze()
        while word := (await commands.readline()).decode().strip():
            if word == "status":
                _print(asdict(self._status()))
            elif word == "finish":
                feeding.cancel()
                await self._until_told()
                _print(asdict(self._outcome()))
                break
        for task in (*following, feeding):
            task.cancel()
        await asyncio.gather(*following, feeding, return_exceptions=True)

    async def _feed(self) -> None:
        interval_us = 1e6 / self._plan.signals_per_second
        began_us = time.time_ns() // 1_000
        fed_at = time.monotonic()
        while True:
            due = int((time.time_ns() // 1_000 - began_us) / interval_us)
            self._feeder.feed([began_us + int(number * interval_us) for number in range(self._fed, due)])
            if due > self._fed:
                self._fed, last_at, fed_at = due, fed_at, time.monotonic()
                self._feed_pause_seconds_max = max(self._feed_pause_seconds_max, fed_at - last_at)
            await asyncio.sleep(_FEED_SECONDS)

    def _status(self) -> Status:
        return Status(
            fed=self._fed,
            held_min=min(follower.told.held for follower in self._followers),
            streaming=sum(follower.is_streaming for follower in self._followers),
        )

    async def _until_told(self) -> None:
        """Waits until everybody has every signal, or for too long."""
        ends_at = time.monotonic() + self._plan.finish_seconds_max
        while self._status().held_min < self._fed and time.monotonic() < ends_at:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(_POLL_SECONDS)

    def _outcome(self) -> Outcome:
        outcome = Outcome(self._fed, round(self._feed_pause_seconds_max, 3))
        ends: Counter[str] = Counter()
        for follower in self._followers:
            told = follower.told
            told.is_told(self._fed)
            outcome.deliveries += told.delivered
            outcome.missing += told.missing
            outcome.doubled += told.doubled
            outcome.streams += follower.streams
            outcome.drains += follower.drains
            ends.update(follower.ends)
            outcome.problems += [f"{follower.token}: {problem}" for problem in told.problems]
        outcome.silences_seconds = sorted(follower.told.silence_seconds_max for follower in self._followers)
        outcome.ends = dict(ends)
        del outcome.problems[_PROBLEMS_MAX:]
        return outcome


def _print(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


async def _main(plan: Plan) -> None:
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await Followers(plan).run(commands)


def main() -> None:
    """Carries the plan out."""
    values = json.loads(sys.argv[1])
    uvloop.run(_main(Plan(**{**values, "ports": tuple(values["ports"])})))


if __name__ == "__main__":
    main()
