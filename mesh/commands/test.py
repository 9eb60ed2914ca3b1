"""`ecp test`: pytest in this clone's environment, with pytest's own arguments and exit code."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

import typer

from mesh.clone import ROOT

# More of them start more PostgreSQL and Redis servers than most machines bear.
PROCESSES_MAX = 4
# pytest's options whose next word is never a path, though a file of that name may be there.
OPTIONS_BEFORE_A_WORD = {"-k", "-m", "-n", "-o", "-p", "-r", "-W"}


def test(context: typer.Context) -> None:
    """Run the tests; all arguments go to pytest (ecp test -k gap, ecp test tests/unit, ecp test -n 0: one process)."""
    arguments = [*_processes(context.args), *_from_anywhere(context.args)]
    os.chdir(ROOT)
    # exec: signals and the exit code are pytest's own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "pytest", *arguments])


def _processes(arguments: list[str]) -> list[str]:
    """One process for each core, each with servers of its own; a file's tests stay together.

    One alone for servers that were given, because tests empty them, and where pytest is to talk to a person.
    """
    chosen = any(
        argument.startswith(("-n", "--numprocesses", "--pdb", "-s", "--dist")) for argument in arguments
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if chosen or cores < 2 or os.environ.get("DATABASE_URL") or os.environ.get("REDIS_URL"):
        return []
    return ["-n", str(min(cores, PROCESSES_MAX)), "--dist", "loadfile"]


def _from_anywhere(arguments: list[str]) -> list[str]:
    """Paths given relative to the caller's folder stay right after the change to the clone's root."""
    return [
        argument if before in OPTIONS_BEFORE_A_WORD else _absolute(argument)
        for before, argument in pairwise(["", *arguments])
    ]


def _absolute(argument: str) -> str:
    path, separator, node = argument.partition("::")
    if path.startswith("-") or not Path(path).exists():
        return argument
    return f"{Path(path).resolve()}{separator}{node}"
