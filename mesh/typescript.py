"""Builds the TypeScript example where node and npm are there, once for each state of its sources; it runs no client."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mesh.clone import ROOT
from mesh.errors import MeshError

FOLDER: Final = ROOT / "clients" / "typescript"
PROGRAM: Final = FOLDER / "build" / "subscriber.js"
NODE_MAJOR_MIN: Final = 20
_INSTALL_SECONDS_MAX: Final = 300
_BUILD_SECONDS_MAX: Final = 120
_INSTALLED_FROM: Final = ("package.json", "package-lock.json")
_BUILT_FROM: Final = ("package.json", "package-lock.json", "tsconfig.json", "src/*.ts", "protos/**/*.proto")


class NoNodeError(MeshError):
    """This machine has no node or npm that would do, or npm cannot reach its registry."""


def command() -> list[str]:
    """What runs the built example, without its arguments; builds it first when its sources have changed.

    Raises:
        NoNodeError: it cannot be built here; the message says what is missing.
        MeshError: it does not compile.
    """
    node, npm = _node(), shutil.which("npm")
    if npm is None:
        raise NoNodeError("there is no npm on this machine")
    with _alone():
        _once(FOLDER / "node_modules", _INSTALLED_FROM, lambda: _install(npm))
        _once(PROGRAM.parent, _BUILT_FROM, lambda: _build(npm))
    return [node, str(PROGRAM)]


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        raise NoNodeError("there is no node on this machine")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=False)
    version = said.stdout.strip()
    major = version.removeprefix("v").partition(".")[0]
    if not major.isdigit() or int(major) < NODE_MAJOR_MIN:
        raise NoNodeError(f"node {version or 'does not start'}: {NODE_MAJOR_MIN} or newer is needed")
    return node


def _install(npm: str) -> None:
    # The lock file has a hash for each package; none needs its install script.
    done = _npm(npm, _INSTALL_SECONDS_MAX, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    if done.returncode:
        raise NoNodeError(f"npm ci failed: {_last_line(done)}")


def _build(npm: str) -> None:
    done = _npm(npm, _BUILD_SECONDS_MAX, "run", "--silent", "build")
    if done.returncode:
        raise MeshError(f"the TypeScript example does not compile:\n{done.stdout}{done.stderr}")


def _npm(npm: str, seconds_max: float, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [npm, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=seconds_max, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NoNodeError(f"npm {arguments[0]} took longer than {seconds_max:.0f} s") from error


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
    return lines[0] if lines else f"exit code {done.returncode}"


def _once(made: Path, sources: tuple[str, ...], make: Callable[[], None]) -> None:
    """Makes the folder anew, unless it was made from these very sources."""
    stamp, digest = made / ".made-from", _digest(sources)
    if stamp.exists() and stamp.read_text(encoding="ascii") == digest:
        return
    make()
    stamp.write_text(digest, encoding="ascii")


def _digest(patterns: tuple[str, ...]) -> str:
    found = sorted(path for pattern in patterns for path in FOLDER.glob(pattern))
    if patterns is _BUILT_FROM:
        found += sorted((ROOT / "protos").rglob("*.proto"))
    digest = hashlib.sha256()
    for path in found:
        digest.update(b"%s\0%s\0" % (path.name.encode(), path.read_bytes()))
    return digest.hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    """Two that build at once would take each other's files away."""
    descriptor = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main() -> int:
    """Builds it and prints the command that runs it; 1 when that is not possible here."""
    try:
        print(*command())
    except MeshError as error:
        print(f"ecp: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
