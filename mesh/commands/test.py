"""`ecp test`: pytest in this clone's environment, with pytest's own arguments and exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from mesh.clone import ROOT


def test(context: typer.Context) -> None:
    """Run the tests; all arguments go to pytest (ecp test -k gap, ecp test tests/unit)."""
    arguments = [_from_anywhere(argument) for argument in context.args]
    os.chdir(ROOT)
    # exec: signals and the exit code are pytest's own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "pytest", *arguments])


def _from_anywhere(argument: str) -> str:
    """A path given relative to the caller's folder stays right after the change to the clone's root."""
    path, separator, node = argument.partition("::")
    if path.startswith("-") or not Path(path).exists():
        return argument
    return f"{Path(path).resolve()}{separator}{node}"
