"""The machine that a benchmark runs on: what it is, who uses its cores meanwhile, and pinning to one; Linux only."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import ConfigurationError

DISTURBED_CORES: Final = 0.25
"""So much of a core taken by the hypervisor and by strangers makes a run one to repeat."""

_PROC: Final = Path("/proc")
_USER, _NICE, _SYSTEM, _STEAL = 0, 1, 2, 7
# /proc/PID/stat behind the name in parentheses: utime and stime are its 12th and 13th fields.
_UTIME, _STIME = 11, 12


def describe() -> dict[str, Any]:
    """What a reader of figures must know of the machine."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": _memory_mib(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _cpu_model() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_048_576


def two_cores() -> tuple[int, int]:
    """The core for what is measured and the core for everything around it.

    Raises:
        ConfigurationError: there are not two to use, or processes cannot be pinned here.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigurationError("benchmarks pin processes to cores, which only Linux can: run them there")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ConfigurationError("a benchmark needs two cores: one to measure, one for the load")
    return cores[-1], cores[0]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread, and what it starts meanwhile, run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def resident_bytes(pid: int) -> int:
    """What a process has in memory now; 0 when it is gone."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def write_calls(pid: int) -> int:
    """How often a process has asked the kernel to write; 0 where that is not to be known."""
    try:
        lines = (_PROC / str(pid) / "io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("syscw:")), 0)


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of processor time since the machine or each process began."""

    wall_seconds: float
    busy_seconds: float
    """Of all processes; without interrupts, which belong to nobody."""
    steal_seconds: float
    process_seconds: dict[int, float]

    @classmethod
    def now(cls, pids: Iterable[int], wall_seconds: float) -> CpuTimes:
        """As it is now, with the named processes (all their threads) each on its own."""
        ticks = os.sysconf("SC_CLK_TCK")
        words = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        times = [int(word) / ticks for word in words]
        return cls(
            wall_seconds,
            times[_USER] + times[_NICE] + times[_SYSTEM],
            times[_STEAL],
            {pid: _process_seconds(pid, ticks) for pid in pids},
        )


def _process_seconds(pid: int, ticks: int) -> float:
    try:
        words = (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[_UTIME]) + int(words[_STIME])) / ticks


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Who used the cores between two moments, in cores (1.0 is one core all the time)."""

    steal_cores: float
    others_cores: float
    process_cores: dict[int, float]

    @property
    def is_too_much(self) -> bool:
        """Whether the run should be repeated."""
        return self.steal_cores + self.others_cores > DISTURBED_CORES

    @classmethod
    def between(cls, start: CpuTimes, end: CpuTimes) -> Disturbance:
        """What happened from `start` to `end`, of the processes that `end` names."""
        seconds = max(end.wall_seconds - start.wall_seconds, 1e-9)
        ours = {
            pid: max(0.0, used - start.process_seconds.get(pid, 0.0))
            for pid, used in end.process_seconds.items()
        }
        others = end.busy_seconds - start.busy_seconds - sum(ours.values())
        return cls(
            round((end.steal_seconds - start.steal_seconds) / seconds, 3),
            round(max(0.0, others) / seconds, 3),
            {pid: round(used / seconds, 3) for pid, used in ours.items()},
        )
