"""The command line as a person meets it: quick to start, one line for what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def ecp(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "mesh.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **variables},
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


def test_an_interruption_while_it_loads_is_quiet() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "import runpy; runpy.run_module('mesh', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["no-such-command"], 2, "No such command"),
        (["check", "no-such-check"], 2, "ecp: no such check: no-such-check"),
        (["torture", "clients", "--client", "no-such-client"], 2, "ecp: no such client: no-such-client"),
        (["up", "--log-level", "LOUD"], 2, "Invalid value for '--log-level'"),
        (["bench", "fanout", "--edge", "h3"], 2, "Invalid value for '--edge'"),
        (["admin", "master", "rotate-key", "--", "-1"], 2, "Input should be"),
        (["admin", "master", "rotate-key", str(2**63)], 2, "Input should be"),
        (
            ["admin", "master", "rotate-key", "1", "--overlap-hours", "inf"],
            2,
            "Invalid value for '--overlap-",
        ),
        (
            ["admin", "master", "create", "--owner", "x", "--name", "x", "--signals-per-second", str(2**32)],
            2,
            "Invalid value for",
        ),
        (["admin", "resync", "--reason", "x", "--master", str(2**63)], 2, "Invalid value for '--master'"),
        (["admin", "subscription", "list", "--master-id", str(2**63)], 2, "Invalid value for '--master-id'"),
        *(
            (["admin", "subscription", "create", "x", "1", "--fee", fee], 2, "Invalid value for --fee")
            for fee in ("NaN", "-0.1", "Infinity", "1e30", "1e999999999", "1e-9", "free")
        ),
        (["admin", "user", "create", "--name", "x", "--email", "\udcff"], 2, "is not text in utf-8"),
        *(
            ([*command, ""], 2, "an empty name: name a folder")
            for command in (
                ["demo", "--data"],
                ["up", "--data"],
                ["status", "--data"],
                ["admin", "user", "list", "--data"],
                ["torture", "schedules", "--keep"],
            )
        ),
        (["torture", "schedules", "--keep", "/dev/null/x"], 3, "cannot write to /dev/null/x"),
        (["admin", "resync", "--reason", "x", "--master", "1", "--wait", "inf"], 2, "Invalid value for '--w"),
        (["bench", "fanout", "--idle", "99999999999"], 2, "Invalid value for '--idle'"),
        (["bench", "fanout", "--repeat-seconds", "inf"], 2, "Invalid value for '--repeat-seconds'"),
    ],
)
def test_a_mistake_costs_one_clear_message(arguments: list[str], exit_code: int, message: str) -> None:
    completed = ecp(*arguments)
    assert completed.returncode == exit_code
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr


def test_a_terminal_that_knows_few_letters_gets_the_others_replaced() -> None:
    completed = ecp("--help", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert completed.returncode == 0, completed.stderr
    assert " demo " in completed.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
@pytest.mark.parametrize("arguments", [["--version"], ["check", "format"]])
def test_a_full_disk_is_one_clear_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        completed = subprocess.run(
            [sys.executable, "-P", "-m", "mesh.cli", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert completed.returncode == 3
    assert completed.stderr == "ecp: cannot write the output: No space left on device\n"


@pytest.mark.parametrize(
    ("variables", "exit_code", "message"),
    [
        ({"LEDGER_ADDRESS": "127.0.0.1:1"}, 3, "ecp: OPERATOR_TOKEN is not set"),
        ({"LEDGER_ADDRESS": "127.0.0.1:1", "OPERATOR_TOKEN": "a\nb"}, 3, "ecp: OPERATOR_TOKEN holds"),
        ({"RISK_ADDRESS": "127.0.0.1:1", "OPERATOR_TOKEN": "x"}, 3, "ecp: LEDGER_ADDRESS is not set"),
    ],
)
def test_an_unfit_environment_is_one_clear_line(
    variables: dict[str, str], exit_code: int, message: str
) -> None:
    completed = ecp("admin", "user", "list", **variables)
    assert completed.returncode == exit_code
    assert completed.stderr.startswith(message)
    assert completed.stderr.count("\n") == 1


def test_what_status_finds_wrong_is_a_line_each_however_narrow_the_terminal() -> None:
    completed = ecp("status", RISK_ADDRESS="127.0.0.1:1", OPERATOR_TOKEN="x", COLUMNS="40")
    assert completed.returncode == 1
    [line] = [line for line in completed.stdout.splitlines() if line.startswith("risk: UNAVAILABLE")]
    assert line.endswith("is the mesh running? (`ecp up`)")


def test_status_of_some_services_says_which_addresses_are_missing() -> None:
    completed = ecp("status", "--json", RISK_ADDRESS="127.0.0.1:1", OPERATOR_TOKEN="x")
    assert completed.returncode == 1
    status = json.loads(completed.stdout)
    assert status["health"] == {
        "ingest": "UNKNOWN",
        "fanout": "UNKNOWN",
        "ledger": "UNKNOWN",
        "risk": "UNAVAILABLE",
    }
    assert "heads: INGEST_ADDRESS is not set: name where ingest answers" in status["problems"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any home folder")
def test_contracts_are_checked_without_a_home_folder() -> None:
    completed = ecp("check", "buf-lint", "buf-breaking", HOME="/nonexistent")
    assert completed.returncode == 0, completed.stdout + completed.stderr


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
