"""Limits of open files: raised as far as the system allows, and said in one line when that is not enough."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, int(sys.argv[1])));"


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", LIMITED + code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("hard", "allowed"), [(1_000, 500), (300, 300), (200, 200)])
def test_the_limit_is_raised_as_far_as_is_wanted_and_allowed(hard: int, allowed: int) -> None:
    code = "from mesh.open_files import allow_open_files; limit = resource.RLIMIT_NOFILE;"
    code += "print(allow_open_files(500), *resource.getrlimit(limit))"
    assert run(code, str(hard)).stdout.split() == [str(allowed), str(allowed), str(hard)]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("demo --subscribers 100 --seconds 5", "a demo with 100 subscribers needs 600 open files"),
        ("bench fanout --subscribers 500", "reading 500 streams needs 800 open files"),
    ],
)
def test_too_few_are_one_clear_line(command: str, message: str) -> None:
    done = run("sys.argv[1:] = sys.argv[2:]; from mesh.cli import main; main()", "300", *command.split())
    assert (done.returncode, done.stderr) == (
        3,
        f"ecp: {message} and the system allows 300: raise the limit (ulimit -n) or ask for fewer\n",
    )
