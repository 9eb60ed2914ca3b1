"""Makes `.venv` from requirements.lock for the launcher; runs before anything is installed, so standard library only."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_CONFIGURATION = 3
LOCK_WAIT_SECONDS_MAX = 1800.0
LOCK_POLL_SECONDS = 0.2


class BootstrapError(Exception):
    """`.venv` cannot be made; the message says what to do about it."""


def say(message: str) -> None:
    print(f"ecp: {message}", file=sys.stderr, flush=True)


@contextmanager
def exclusive(lock_file: Path) -> Iterator[None]:
    """Holds an advisory lock, which the kernel releases however this process ends.

    Raises:
        BootstrapError: the folder is not writable, or another process held the lock for too long.
    """
    try:
        handle = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BootstrapError(
            f"cannot write to {lock_file.parent} ({error.strerror}): .venv belongs there; run ./ecp as the owner"
            " of the clone, or clone it to a folder of your own"
        ) from error
    try:
        _acquire(handle, lock_file)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, lock_file: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS_MAX
    waiting = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BootstrapError(f"another ./ecp has been at work on .venv for too long ({lock_file})") from None
            if not waiting:
                say("another ./ecp is making .venv; waiting for it")
                waiting = True
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return


class Environment:
    """The virtual environment of one clone. `ecp-stamp` is written last, so without it nothing else counts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / "ecp-stamp"
        self.lock = root / "requirements.lock"

    def installed_stamp(self) -> str:
        try:
            return self.stamp.read_text(encoding="utf-8").rstrip("\n")
        except OSError:
            return ""

    def bring_up_to_date(self, wanted_stamp: str) -> None:
        """Makes the environment hold exactly the lock file and this clone, in place when it was whole before.

        Raises:
            BootstrapError: the interpreter lacks venv, a folder is not writable, or pip failed.
        """
        installed = self.installed_stamp()
        if installed == wanted_stamp and self._interpreter_works():
            return
        whole_before = installed.endswith(f" {self.root}") and self._interpreter_works()
        try:
            self.stamp.unlink(missing_ok=True)
            if whole_before:
                say("requirements.lock or pyproject.toml changed: updating .venv")
            else:
                self._create()
            self._install()
            self.stamp.write_text(f"{wanted_stamp}\n", encoding="utf-8")
        except OSError as error:
            raise BootstrapError(
                f"cannot write to {error.filename or self.folder} ({error.strerror}): run ./ecp as the owner of"
                " the clone, or remove .venv"
            ) from error

    def _interpreter_works(self) -> bool:
        if not os.access(self.python, os.X_OK):
            return False
        return subprocess.run([self.python, "-I", "-c", "import pip"], capture_output=True, check=False).returncode == 0

    def _create(self) -> None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        try:
            import ensurepip  # noqa: F401, PLC0415 - probes what distributions split off
            import venv  # noqa: F401, PLC0415
        except ImportError:
            raise BootstrapError(
                f"Python {version} ({sys.executable}) has no venv module: install it (Debian, Ubuntu: apt install"
                f" python{version}-venv), or name another interpreter in ECP_PYTHON"
            ) from None
        say(f"first use: making .venv with Python {sys.version.split()[0]}")
        # The real path: a link such as /usr/bin/python3 would, after an upgrade of the system,
        # silently point .venv at an interpreter that does not see its packages.
        interpreter = Path(sys.executable).resolve()
        self._run([str(interpreter), "-I", "-m", "venv", "--clear", str(self.folder)], "python -m venv failed")

    def _install(self) -> None:
        packages = locked_names(self.lock.read_text(encoding="utf-8"))
        say(f"installing {len(packages)} packages from requirements.lock (a minute or two the first time)")
        pip = [str(self.python), "-I", "-m", "pip", "--disable-pip-version-check"]
        quiet = ["install", "-qq", "--no-deps"]
        self._run(
            [*pip, *quiet, "--require-hashes", "--requirement", str(self.lock)], "pip could not install the lock file"
        )
        self._run(
            [*pip, *quiet, "--no-build-isolation", "--editable", str(self.root)], "pip could not install the project"
        )
        self._remove_strangers(pip, packages)
        say("done")

    def _remove_strangers(self, pip: list[str], packages: set[str]) -> None:
        listed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, check=False).stdout
        installed = {normalized(line.partition("==")[0]) for line in listed.splitlines() if "==" in line}
        strangers = sorted(installed - packages - {"pip", "setuptools", "execution-control-plane"})
        if strangers:
            self._run([*pip, "uninstall", "--quiet", "--yes", *strangers], "pip could not remove old packages")

    def _run(self, command: list[str], failure: str) -> None:
        # pip writes its errors to stderr; nothing of this may reach the stdout of the command that was asked for.
        completed = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        if completed.returncode:
            raise BootstrapError(f"{failure} (see above); ./ecp starts afresh the next time")


def locked_names(lock_text: str) -> set[str]:
    """The normalized names of all packages in a lock file, whatever their platform markers."""
    return {normalized(name) for name in re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", lock_text, re.MULTILINE)}


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    root, wanted_stamp = Path(arguments[0]), arguments[1]
    try:
        with exclusive(root / ".venv.lock"):
            Environment(root).bring_up_to_date(wanted_stamp)
    except BootstrapError as error:
        say(str(error))
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        say("interrupted; ./ecp starts afresh the next time")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
