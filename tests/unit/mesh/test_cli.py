"""The command line as a person meets it: quick to start, one line for what goes wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mesh import __version__
from mesh.clone import ROOT

HEAVY = {
    "grpc",
    "redis",
    "asyncpg",
    "pydantic",
    "google",
    "cryptography",
    "opentelemetry",
    "structlog",
    "pytest",
}


def ecp(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "mesh.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def test_the_version_is_printed() -> None:
    assert ecp("--version").stdout == f"ecp {__version__}\n"


def test_help_lists_the_commands() -> None:
    completed = ecp("--help")
    assert completed.returncode == 0
    for command in ("test", "check", "gen", "lock"):
        assert f" {command} " in completed.stdout


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, mesh.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not HEAVY & set(loaded.split())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["no-such-command"], 2, "No such command"),
        (["check", "no-such-check"], 2, "ecp: no such check: no-such-check"),
        (["torture", "clients", "--client", "no-such-client"], 2, "ecp: no such client: no-such-client"),
        (["up", "--log-level", "LOUD"], 2, "Invalid value for '--log-level'"),
        (["bench", "fanout", "--edge", "h3"], 2, "Invalid value for '--edge'"),
    ],
)
def test_a_mistake_costs_one_clear_message(arguments: list[str], exit_code: int, message: str) -> None:
    completed = ecp(*arguments)
    assert completed.returncode == exit_code
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr


def test_contracts_of_a_branch_that_is_not_there_are_not_said_to_be_kept() -> None:
    completed = ecp("check", "buf-breaking", "--against", "no-such-branch")
    assert completed.returncode == 1
    assert "there is no no-such-branch to compare with" in completed.stdout


def test_arguments_of_test_reach_pytest_as_they_are() -> None:
    completed = ecp(
        "test", "--collect-only", "-q", "-k", "the_version_is_printed", str(ROOT / "tests/unit/mesh")
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "test_cli.py::test_the_version_is_printed" in completed.stdout
