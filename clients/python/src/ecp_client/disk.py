"""What outbox and journal need from the file system, done right on POSIX and on Windows; it knows no file format."""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Where Windows' lock of one byte lies: beyond anything written, because locked bytes cannot be read by others there.
WINDOWS_LOCK_OFFSET = 1 << 30


class FsyncPolicy(enum.Enum):
    """When written data is forced to the disk. A crash of the process alone loses nothing under any of them."""

    ALWAYS = "always"
    """Before the call that writes returns: survives a power cut; costs 0.5 to 10 ms a call."""
    INTERVAL = "interval"
    """In the background, every `fsync_interval_seconds`: a power cut may lose that much."""
    NEVER = "never"
    """When the operating system likes: a power cut may lose some 30 seconds."""


class FileLockedError(OSError):
    """Another process holds the lock."""


class FileLock:
    """An exclusive lock on a file, let go by the operating system when the process dies."""

    def __init__(self, path: Path) -> None:
        """Raises:
        FileLockedError: it is held, by another process or by another lock in this one.
        OSError: the file cannot be made.
        """
        self._file = path.open("a+b")
        try:
            _lock(self._file)
        except OSError as error:
            self._file.close()
            raise FileLockedError(f"{path} is locked by another process") from error

    def release(self) -> None:
        """Lets go; safe to repeat. The file stays: removing it would let two processes lock two different files."""
        self._file.close()


def sync_file(file: BinaryIO) -> None:
    """Forces what was written to `file` to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes files that were created, renamed or removed in `folder` stay so after a power cut.

    Does nothing on Windows, where folders cannot be synced and NTFS journals its metadata.
    """
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Makes `data` the content of `path`, whole or not at all, and durable."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        sync_file(file)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        file.seek(WINDOWS_LOCK_OFFSET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
