"""`ecp torture ingest`: kills front door and Redis at random under load, then judges the log; it repairs nothing.

Redis is killed with SIGKILL; every other time its append-only file also loses its last bytes, as it might in a power
cut. What was acknowledged must be in the log once and in order, or be named as lost by a new epoch; and only a cut may
lose anything: each time history is lost, the file must have been cut since the time before.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from redis.asyncio import Redis

from bench.authority import answering
from bench.front_door import FrontDoorProcess, front_door
from bench.torture.log_reading import read_masters
from bench.torture.masters import WatchedMaster, trading
from bench.torture.promises import MasterLog, judge, unexplained_losses
from execution.common.v1 import position_pb2
from mesh.embedded import RedisServer, redis
from mesh.embedded.redis import AppendFsync
from mesh.errors import MeshError

Durability = Literal["APPENDED", "FSYNCED"]

_CUT_BYTES_MAX: Final = 30_000
_PAUSE_SECONDS_MAX: Final = 0.8
_PROGRESS_SECONDS_MAX: Final = 60.0
_POLL_SECONDS: Final = 0.02
_PROBLEMS_SHOWN: Final = 50


@dataclass(frozen=True, slots=True)
class TortureOptions:
    """What to do to it."""

    kills: int = 200
    redis_kills: int = 30
    masters: int = 20
    signals_per_second: float = 2_000.0
    durability: Durability = "APPENDED"
    seed: int = 0


@dataclass(slots=True)
class TortureReport:
    """What was done and what it led to; sound when `problems` is empty."""

    options: dict[str, Any]
    seconds: float = 0.0
    kills: int = 0
    redis_kills: int = 0
    redis_cuts: int = 0
    bytes_cut: int = 0
    acknowledged: int = 0
    lost_visibly: int = 0
    """Acknowledged, gone with the cut file, and named by a new epoch."""
    epochs_begun: int = 0
    gaps: int = 0
    sessions: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether every promise was kept or visibly broken by the cut."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"is_sound": self.is_sound, **asdict(self)}

    def summary(self) -> list[str]:
        """For people."""
        lines = [
            f"{self.kills} kills of the front door, {self.redis_kills} of Redis"
            f" ({self.redis_cuts} with {self.bytes_cut:,} bytes cut off) in {self.seconds:.0f} s",
            f"{self.acknowledged:,} signals acknowledged in {self.sessions:,} sessions:"
            f" {self.acknowledged - self.lost_visibly:,} in the log once and in order,"
            f" {self.lost_visibly:,} lost with {self.epochs_begun} new epochs that say so",
        ]
        lines += [f"VIOLATION {problem}" for problem in self.problems[:_PROBLEMS_SHOWN]]
        if len(self.problems) > _PROBLEMS_SHOWN:
            lines.append(f"and {len(self.problems) - _PROBLEMS_SHOWN} more violations")
        return [*lines, "sound" if self.is_sound else "NOT SOUND"]


@dataclass(slots=True)
class _Torture:
    options: TortureOptions
    tell: Callable[[str], None]
    server: RedisServer
    door: FrontDoorProcess
    masters: list[WatchedMaster]
    report: TortureReport
    random: random.Random
    cuts_at_us: list[int] = field(default_factory=list)
    """When the file was cut, before Redis was started on it again."""

    async def run(self) -> None:
        """Every kill, in random order, each while signals flow."""
        acts = ["door"] * self.options.kills + ["redis"] * self.options.redis_kills
        self.random.shuffle(acts)
        for number, act in enumerate(acts, 1):
            await self._progress()
            await asyncio.sleep(self.random.uniform(0, _PAUSE_SECONDS_MAX))
            if act == "door":
                await self._kill_door()
            else:
                await self._kill_redis()
            self.tell(
                f"{number}/{len(acts)}: {self.report.kills} kills, {self.report.redis_kills} of Redis"
                f" ({self.report.redis_cuts} cut), {self._acknowledged():,} acknowledged"
            )
        await self._progress()

    def _acknowledged(self) -> int:
        return sum(one.promises.sequence for one in self.masters)

    async def _progress(self) -> None:
        """Waits until signals are acknowledged again.

        Raises:
            MeshError: none for a long time.
        """
        goal = self._acknowledged() + len(self.masters)
        try:
            async with asyncio.timeout(_PROGRESS_SECONDS_MAX):
                while self._acknowledged() < goal:  # noqa: ASYNC110  (the masters' callbacks set no event)
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise MeshError(
                f"nothing was acknowledged for {_PROGRESS_SECONDS_MAX:.0f} s after a kill; see {self.door.log_file}"
            ) from None

    async def _kill_door(self) -> None:
        self.door.kill()
        self.report.kills += 1
        await self.door.start()

    async def _kill_redis(self) -> None:
        """Kills it, in one of three cases together with the front door, and cuts its file every other time."""
        takes_door_too = self.random.random() < 1 / 3
        self.server.kill()
        if takes_door_too:
            self.door.kill()
        self.report.redis_kills += 1
        if self.report.redis_kills % 2 == 0:
            self.report.bytes_cut += _cut(self.server.data_folder, self.random.randint(1, _CUT_BYTES_MAX))
            self.report.redis_cuts += 1
            self.cuts_at_us.append(time.time_ns() // 1_000)
        await self.server.start()
        if takes_door_too:
            await self.door.start()


def _cut(data_folder: Path, length_bytes: int) -> int:
    """Takes the last bytes off the newest append-only file; returns how many."""
    folder = data_folder / "appendonlydir"
    newest = max(folder.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    size = newest.stat().st_size
    length_bytes = min(length_bytes, size)
    os.truncate(newest, size - length_bytes)
    return length_bytes


async def torture(options: TortureOptions, tell: Callable[[str], None]) -> TortureReport:
    """Runs it whole and judges. `tell` gets a line for each kill.

    Raises:
        MeshError: something did not start, or nothing goes on.
    """
    report = TortureReport(asdict(options))
    started = time.monotonic()
    durable: AppendFsync = "always" if options.durability == "FSYNCED" else "everysec"
    async with answering() as authority_port, redis(appendfsync=durable) as server:
        environment = {
            "DURABILITY": options.durability,
            "SIGNAL_AGE_MS_MAX": "86400000",
            "LOG_ENTRIES_MAX": "0",
        }
        folder = server.run_folder
        async with front_door(server.url, authority_port, folder, environment=environment) as door:
            masters = trading(
                f"127.0.0.1:{door.port}",
                folder,
                masters=options.masters,
                signals_per_second=options.signals_per_second,
                durability=position_pb2.Durability.Value(f"DURABILITY_{options.durability}"),
            )
            async with masters as watched:
                acts = random.Random(options.seed or None)
                run = _Torture(options, tell, server, door, watched, report, acts)
                await run.run()
            async with Redis.from_url(server.url) as client:
                _judge_all(run, await read_masters(client))
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _judge_all(run: _Torture, logs: dict[int, MasterLog]) -> None:
    report = run.report
    for one in run.masters:
        log = logs.get(one.master_id, MasterLog(one.master_id))
        verdict = judge(one.promises, log)
        report.acknowledged += verdict.acknowledged
        report.lost_visibly += verdict.lost_visibly
        report.epochs_begun += len(log.lost)
        report.gaps += log.gaps
        report.sessions += one.master.stats.connections
        report.problems += [*one.problems, *verdict.problems]
        if log.last != one.master.last_sequence:
            report.problems.append(
                f"master {one.master_id}: the log ends at {log.last}, {one.master.last_sequence} was put in"
            )
        report.problems += unexplained_losses(log, run.cuts_at_us)
    if report.gaps:
        report.problems.append(f"{report.gaps} gaps are in the log though no signal was refused")
