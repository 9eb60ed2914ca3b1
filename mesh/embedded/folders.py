"""The folders of embedded servers: private temporary ones, and data folders that one server uses at a time.

It changes the owner or mode of no folder that it did not make.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.errors import ConfigurationError
from mesh.process import User

PREFIX = "ecp-run-"
# In a PostgreSQL URL it separates hosts, and a socket's folder stands there as a host.
HOST_SEPARATOR = ","
# A Unix socket's path has at most 103 bytes on macOS; what we append needs about 40.
TEMPORARY_PATH_LENGTH_MAX = 60
_LOCK_NAME = "in-use.lock"


@contextmanager
def run_folder(user: User | None = None) -> Iterator[Path]:
    """A new folder that only `user` (and root) can enter.

    It is removed at the end or, when that did not come (SIGKILL), by a later call.
    """
    parent = temporary_parent(user)
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    # Locked under another name first: a lock file that is there but free means that its maker is gone.
    handle = os.open(folder / "new.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.rename(folder / "new.lock", folder / _LOCK_NAME)
        if user:
            os.chown(folder, user.uid, user.gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def locked_data_folder(folder: Path, *, others_may_pass: bool = False) -> Iterator[Path]:
    """A data folder, made where missing, for the use of this process alone.

    One that is made here is closed to other users, who with `others_may_pass` get through to what is theirs in it.

    Raises:
        ConfigurationError: it cannot be made or written, or another process uses it.
    """
    try:
        _make(folder, 0o711 if others_may_pass else 0o700)
        handle = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to the data folder {folder} ({error.strerror}): choose one that you own"
        ) from error
    try:
        _lock(handle, folder)
        yield folder
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise ConfigurationError(
            f"the data folder {folder} is in use by process {holder}: stop that one, or choose another folder"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)


def _make(folder: Path, mode: int) -> None:
    if not folder.exists():
        _make(folder.parent, 0o711)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            folder.chmod(mode)  # whatever the umask


def require_passage(folder: Path, user: User | None, *, what: str) -> None:
    """Checks that `user` can get to `folder`.

    Raises:
        ConfigurationError: a parent shuts it out.
    """
    blocked = first_closed(folder, user)
    if blocked is not None:
        raise ConfigurationError(
            f"{what} refuses to run as root, so it runs as user {user.uid if user else os.geteuid()}, who may not"
            f" enter {blocked}: choose a data folder that others can get to, such as /var/lib/ecp"
        )


def first_closed(folder: Path, user: User | None) -> Path | None:
    """The topmost folder on the way to `folder` that `user` may not enter; None when the way is clear."""
    if user is None:
        return None
    folder = folder.resolve()
    for step in (*reversed(folder.parents), folder):
        status = step.stat()
        mode = stat.S_IMODE(status.st_mode)
        shift = 6 if status.st_uid == user.uid else 3 if status.st_gid == user.gid else 0
        if not mode >> shift & 1:
            return step
    return None


def is_plain_in_quotes(folder: Path) -> bool:
    """Whether a shell takes the path for itself within double quotes."""
    return not set('"$`\\') & set(str(folder))


def temporary_parent(user: User | None) -> Path:
    """A folder for temporary ones that `user` can get to and in which a socket's path, and programs, can be.

    Raises:
        ConfigurationError: there is none.
    """
    for candidate in (Path(tempfile.gettempdir()).absolute(), Path("/tmp"), Path("/var/tmp")):
        usable = candidate.is_dir() and os.access(candidate, os.W_OK)
        if (
            usable
            and len(os.fsencode(candidate)) <= TEMPORARY_PATH_LENGTH_MAX
            and HOST_SEPARATOR not in str(candidate)
            and is_plain_in_quotes(candidate)
            and first_closed(candidate, user) is None
        ):
            return candidate
    raise ConfigurationError("no temporary folder with a short path is writable: set TMPDIR to one")


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            handle = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # somebody else's, or not yet locked by its maker
        try:
            if os.fstat(handle).st_uid == os.geteuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(handle)
