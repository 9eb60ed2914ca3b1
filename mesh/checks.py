"""The checks of the source, each by its name; they report on stdout, change nothing, and judge no tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

from mesh import codegen, documents
from mesh.clone import ROOT
from mesh.errors import MeshError, UsageError

CLIENT_SOURCE = "clients/python/src"
TYPED_FOLDERS = ("services", "mesh", "bench", CLIENT_SOURCE, "clients/betterproto")

MAIN = "main"

Check = Callable[[str | None], bool]


def run(names: list[str], *, against: str | None) -> list[str]:
    """Runs the named checks, or all of them, to the end. Returns the names of those that failed.

    `against` is the branch or tag whose contracts must not be broken; without one it is main, where there is a main.

    Raises:
        UsageError: a name that is not a check.
    """
    unknown = sorted(set(names) - CHECKS.keys())
    if unknown:
        raise UsageError(f"no such check: {', '.join(unknown)} (there are {', '.join(CHECKS)})")
    failed = []
    for name in names or CHECKS:
        started = time.monotonic()
        print(f"== {name}", flush=True)
        passed = CHECKS[name](against)
        print(f"== {name}: {'ok' if passed else 'FAILED'} ({time.monotonic() - started:.1f} s)", flush=True)
        if not passed:
            failed.append(name)
    return failed


def _tool(name: str, *arguments: str) -> bool:
    binary = Path(sys.executable).with_name(name)
    environment = {**os.environ, **codegen.BUF_ENVIRONMENT}
    return subprocess.run([binary, *arguments], cwd=ROOT, env=environment, check=False).returncode == 0


def _ruff(_: str | None) -> bool:
    return _tool("ruff", "check", ".")


def _format(_: str | None) -> bool:
    return _tool("ruff", "format", "--check", ".")


def _mypy(_: str | None) -> bool:
    return _tool("mypy", *(folder for folder in TYPED_FOLDERS if (ROOT / folder).is_dir()))


def _mypy_windows(_: str | None) -> bool:
    # Bridges run beside the MetaTrader terminal, so what they import must type-check there too.
    return _tool("mypy", "--platform", "win32", CLIENT_SOURCE)


def _imports(_: str | None) -> bool:
    return _tool("lint-imports", "--no-logo")


def _buf_lint(_: str | None) -> bool:
    return _tool("buf", "lint")


def _buf_format(_: str | None) -> bool:
    return _tool("buf", "format", "--diff", "--exit-code")


def _buf_breaking(against: str | None) -> bool:
    passed = True
    released = codegen.RELEASED_CONTRACTS
    if (ROOT / released).exists():
        print(f"against {released}", flush=True)
        passed = _tool("buf", "breaking", "--against", released)
    commit = _commit(against or MAIN)
    if commit is None:
        print(f"there is no {against or MAIN} to compare with", flush=True)
        return passed and against is None
    archive = _archived_contracts(commit)
    if archive is None:
        print(f"{against or MAIN} has no contracts to compare with", flush=True)
        return passed
    with tempfile.TemporaryDirectory(prefix="ecp-contracts-") as folder:
        with ZipFile(BytesIO(archive)) as contracts:
            contracts.extractall(folder)
        print(f"against {against or MAIN}", flush=True)
        return _tool("buf", "breaking", "--against", folder) and passed


def _commit(ref: str) -> str | None:
    """The commit that a branch or tag names; also of a branch that only the remote has."""
    for candidate in (ref, f"origin/{ref}"):
        command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{candidate}^{{commit}}"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    return None


def _archived_contracts(commit: str) -> bytes | None:
    """The contracts of a commit as a zip archive; None when it has none."""
    command = ["git", "archive", "--format=zip", commit, "--", "buf.yaml", "protos"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return archive.stdout if archive.returncode == 0 else None


def _generated(_: str | None) -> bool:
    try:
        stale = codegen.stale_files()
    except MeshError as error:
        print(error, flush=True)
        return False
    for name in stale:
        print(f"{name} differs from what protos/ gives: run ./ecp gen", flush=True)
    return not stale and codegen.runs_on_oldest_protobuf()


def _documents(_: str | None) -> bool:
    found = documents.faults(ROOT)
    for fault in found:
        print(fault, flush=True)
    return not found


CHECKS: dict[str, Check] = {
    "ruff": _ruff,
    "format": _format,
    "mypy": _mypy,
    "mypy-windows": _mypy_windows,
    "imports": _imports,
    "buf-lint": _buf_lint,
    "buf-format": _buf_format,
    "buf-breaking": _buf_breaking,
    "gen": _generated,
    "docs": _documents,
}
