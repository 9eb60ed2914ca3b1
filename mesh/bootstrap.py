"""Makes virtual environments from lock files, `.venv` for the launcher first of all.

It runs before anything is installed, so it must import nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EXIT_CONFIGURATION = 3
EXIT_INTERRUPTED = 130
LOCK_WAIT_SECONDS_MAX = 1800.0
LOCK_POLL_SECONDS = 0.2


class BootstrapError(Exception):
    """An environment cannot be made; the message is one line that says what to do about it."""


@dataclass(frozen=True)
class Environment:
    """One virtual environment of a clone and what it is made from.

    `stamp` names the contents as `lock | project | root`; it is written last, so an environment without the
    right stamp is unfinished, out of date or was copied from elsewhere.
    """

    folder: Path
    lock: Path
    stamp: str
    project: Path | None = None

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp_file(self) -> Path:
        return self.folder / "ecp-stamp"

    def installed_stamp(self) -> str:
        try:
            return self.stamp_file.read_text(encoding="utf-8").rstrip("\n")
        except OSError:
            return ""

    def is_current(self) -> bool:
        return self.installed_stamp() == self.stamp and interpreter_works(self.python)


def environment(folder: Path, lock: Path) -> Environment:
    """An environment that holds a lock file's packages and nothing of the project."""
    return Environment(folder, lock, f"{zlib.crc32(lock.read_bytes())} | - | {folder.parent}")


def bring_up_to_date(target: Environment, interpreter: str) -> None:
    """Makes the environment hold exactly its lock file, in place when it was whole before.

    Safe to run twice at once: the second waits and then finds nothing to do.

    Raises:
        BootstrapError: the interpreter lacks venv, a folder is not writable, or pip failed.
    """
    if target.is_current():
        return
    try:
        with _exclusive(Path(f"{target.folder}.lock")):
            if not target.is_current():  # whoever held the lock may have done it
                _make(target, interpreter)
    except OSError as error:
        raise BootstrapError(
            f"cannot write to {error.filename or target.folder} ({error.strerror}):"
            f" {target.folder.name} belongs in the clone; run ./ecp as the owner of the clone, or clone it to a"
            " folder of your own"
        ) from error


def _make(target: Environment, interpreter: str) -> None:
    before = target.installed_stamp().split(" | ")
    wanted = target.stamp.split(" | ")
    whole_before = before[-1] == wanted[-1] and interpreter_works(target.python)
    target.stamp_file.unlink(missing_ok=True)
    if not whole_before:
        _create(target, interpreter)
    if not whole_before or before[0] != wanted[0]:
        _install_lock(target)
    if target.project is not None:
        _pip(target, "install", "--no-deps", "--no-build-isolation", "--editable", str(target.project))
    target.stamp_file.write_text(f"{target.stamp}\n", encoding="utf-8")
    say(f"{target.folder.name} is ready")


def _create(target: Environment, interpreter: str) -> None:
    # The real path: a link such as /usr/bin/python3 would, after an upgrade of the system, silently
    # point the environment at an interpreter that does not see its packages.
    real, version = _probe(interpreter)
    say(f"making {target.folder.name} with Python {version} (first use, or the last attempt did not finish)")
    if target.folder.is_symlink():
        target.folder.unlink()
    shutil.rmtree(target.folder, ignore_errors=True)
    _run([real, "-I", "-m", "venv", str(target.folder)], "python -m venv failed", only_failures_speak=True)


def _probe(interpreter: str) -> tuple[str, str]:
    """The interpreter's real path and version, after checking that it can make environments."""
    code = (
        "import os, sys; print(os.path.realpath(sys.executable)); print(sys.version.split()[0]);"
        "import ensurepip, venv"
    )
    probe = subprocess.run([interpreter, "-I", "-c", code], capture_output=True, text=True, check=False)
    lines = probe.stdout.splitlines()
    if len(lines) != 2:
        raise BootstrapError(f"{interpreter} does not run: {probe.stderr.strip()}")
    if probe.returncode:
        major_minor = ".".join(lines[1].split(".")[:2])
        raise BootstrapError(
            f"Python {lines[1]} ({lines[0]}) has no venv module: install it (Debian, Ubuntu: apt install"
            f" python{major_minor}-venv), or name another interpreter in ECP_PYTHON"
        )
    return lines[0], lines[1]


def _install_lock(target: Environment) -> None:
    packages = locked_names(target.lock.read_text(encoding="utf-8"))
    say(f"installing {len(packages)} packages from {target.lock.name} (up to a minute or two)")
    # PEP 517 always: older pips build without it, and their commands do not start from a path with a blank.
    lock = ("--requirement", str(target.lock))
    _pip(target, "install", "--no-deps", "--use-pep517", "--require-hashes", *lock)
    listing = subprocess.run(
        [target.python, "-I", "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {normalized(line.partition("==")[0]) for line in listing.stdout.splitlines() if "==" in line}
    strangers = sorted(installed - packages - {"pip", "setuptools", "execution-control-plane"})
    if strangers:
        _pip(target, "uninstall", "--yes", *strangers)


def _pip(target: Environment, command: str, *arguments: str) -> None:
    pip = [str(target.python), "-I", "-m", "pip", "--disable-pip-version-check", command, "-qq"]
    # A wish to install for the user only, in the environment or a pip.conf, is not about this place.
    _run([*pip, *arguments], f"pip {command} failed", PIP_USER="0", HOME=_home(target))


def _home(target: Environment) -> str:
    """The user's home; the environment itself for one who has none, as in a container under any number.

    Packages that are built from source may need one.
    """
    home = os.path.expanduser("~")
    return str(target.folder) if home == "~" else home


def _run(command: list[str], failure: str, *, only_failures_speak: bool = False, **variables: str) -> None:
    # stdout belongs to the command that was asked for. The lock's descriptor is inherited (close_fds), so
    # that a pip that outlives a killed launcher keeps the next one waiting instead of working beside it.
    completed = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if only_failures_speak else sys.stderr,
        stderr=subprocess.STDOUT if only_failures_speak else None,
        env={**os.environ, **variables},
        close_fds=False,
        check=False,
    )
    if completed.returncode:
        if only_failures_speak:
            print(completed.stdout.decode(errors="replace"), file=sys.stderr)
        raise BootstrapError(f"{failure} (see above); the next ./ecp starts afresh")


@contextmanager
def _exclusive(lock_file: Path) -> Iterator[None]:
    """Holds an advisory lock, which the kernel releases however this process ends."""
    handle = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
    os.set_inheritable(handle, True)
    try:
        _acquire(handle, lock_file)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, lock_file: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS_MAX
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BootstrapError(
                    f"another ./ecp has held {lock_file} for too long; is it stuck?"
                ) from None
            if not told:
                say(f"another ./ecp is making {lock_file.stem}; waiting for it")
                told = True
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return


def interpreter_works(python: Path) -> bool:
    """Whether an environment's interpreter starts and has pip; false when what it links to has gone."""
    if not os.access(python, os.X_OK):
        return False
    return (
        subprocess.run([python, "-I", "-c", "import pip"], capture_output=True, check=False).returncode == 0
    )


def locked_names(lock_text: str) -> set[str]:
    """The normalized names of all packages in a lock file, whatever their platform markers."""
    return {
        normalized(name) for name in re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", lock_text, re.MULTILINE)
    }


def normalized(name: str) -> str:
    """A distribution's name in the form that PEP 503 compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def say(message: str) -> None:
    """One line of progress; stdout belongs to the command that was asked for."""
    print(f"ecp: {message}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Brings `.venv` of the clone at arguments[0] to the stamp arguments[1]."""
    root = Path(arguments[0])
    target = Environment(root / ".venv", root / "requirements.lock", stamp=arguments[1], project=root)
    try:
        bring_up_to_date(target, sys.executable)
    except BootstrapError as error:
        say(str(error))
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        say("interrupted; the next ./ecp starts afresh")
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
