"""A subscriber's own durable book of what it received and decided, from which it resumes; it decides nothing.

Files NNNNNNNNNN.journal, written in order. A torn end, which a crash leaves, is cut off at the next opening.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ecp_client.disk import FileLock, FileLockedError, FsyncPolicy, sync_file, sync_folder
from ecp_client.errors import ClosedError, JournalError, JournalLockedError, SettingsError
from ecp_client.subscriber.journal_format import MAGIC, Entry, block, block_end, parse_block, parse_entries


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """Sizes and safety of a journal."""

    fsync: FsyncPolicy = FsyncPolicy.INTERVAL
    file_bytes: int = 64 << 20
    """A new file is begun when one is this long."""
    files_max: int = 16
    """Older files are removed, but never one that is needed to resume; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.file_bytes < 4_096 or self.files_max < 0:
            raise SettingsError("file_bytes must be at least 4,096, and files_max not negative")


class Journal:
    """Appends blocks of entries: one write for each. One thread at a time."""

    def __init__(self, folder: Path, settings: JournalSettings | None = None) -> None:
        """Opens the journal in `folder`, or makes one, and cuts off a torn end.

        Raises:
            JournalLockedError: another process has it open.
            JournalError: the folder cannot be used, or the last file is damaged, or is none of a journal.
        """
        self._settings = settings or JournalSettings()
        self._folder = folder
        self._file: BinaryIO | None = None
        self._size = 0
        self._unsynced = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "journal.lock")
        except FileLockedError as error:
            raise JournalLockedError(f"{folder}: another process has this journal open") from error
        except OSError as error:
            raise JournalError(f"{folder}: {error.strerror}; give a folder that can be written to") from error
        try:
            self._open_last()
        except (OSError, JournalError) as error:
            self._lock.release()
            raise error if isinstance(error, JournalError) else JournalError(f"{folder}: {error}") from error

    @property
    def is_file_full(self) -> bool:
        """Whether the next append should go to a new file, begun with checkpoints of all masters."""
        return self._size >= self._settings.file_bytes

    def append(self, entries: bytes) -> None:
        """Writes encoded entries as one block. Under FsyncPolicy.ALWAYS they are on the disk then.

        Raises:
            JournalError: they could not be written; the file is as before.
            ClosedError: the journal is closed.
        """
        if self._file is None:
            raise ClosedError("the journal is closed")
        data = block(entries)
        try:
            written = self._file.write(data)
            reason = "the disk is full"
        except OSError as error:
            written, reason = -1, error.strerror or str(error)
        if written != len(data):
            self._file.truncate(self._size)
            raise JournalError(f"{self._folder}: {reason}; nothing was received")
        self._size += len(data)
        self._unsynced = True
        if self._settings.fsync is FsyncPolicy.ALWAYS:
            self.sync()

    def begin_file(self, checkpoints: bytes, *, keeps_all: bool = False) -> None:
        """Begins a new file with these entries, and removes the oldest ones beyond files_max.

        `keeps_all` removes none: the checkpoint of some master is in an older file.
        """
        self._end_file()
        number = max((_number(path) for path in _paths(self._folder)), default=0) + 1
        path = self._folder / f"{number:010d}.journal"
        self._create(path)
        if checkpoints:
            self.append(checkpoints)
            if self._settings.files_max and self._settings.fsync is not FsyncPolicy.NEVER:
                self.sync()
        if self._settings.files_max and not keeps_all:
            for old in _paths(self._folder)[: -self._settings.files_max]:
                old.unlink(missing_ok=True)

    def sync(self) -> None:
        """Forces everything appended so far to the disk."""
        if self._file is not None and self._unsynced:
            self._unsynced = False
            sync_file(self._file)

    def duplicate_descriptor(self) -> int | None:
        """A descriptor to sync from another thread, which must close it; None when nothing is to be synced."""
        if self._file is None or not self._unsynced:
            return None
        self._unsynced = False
        return os.dup(self._file.fileno())

    def close(self) -> None:
        """Syncs, closes and unlocks; safe to repeat."""
        self._end_file()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_last(self) -> None:
        paths = _paths(self._folder)
        if not paths:
            self._create(self._folder / f"{1:010d}.journal")
            return
        path = paths[-1]
        end = _good_end(path)
        if end < len(MAGIC):
            self._create(path)
            return
        with path.open("r+b") as file:
            file.truncate(end)
        self._file = path.open("ab", buffering=0)
        self._size = end

    def _create(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._file.write(MAGIC)
        self._size = len(MAGIC)
        self._unsynced = True
        if self._settings.fsync is not FsyncPolicy.NEVER:
            sync_folder(self._folder)

    def _end_file(self) -> None:
        if self._file is not None:
            if self._settings.fsync is not FsyncPolicy.NEVER:
                self.sync()
            self._file.close()
            self._file = None


def read_journal(folder: Path) -> Iterator[Entry]:
    """All entries of a journal, oldest first, also while it is being written: it ends before a torn end.

    Raises:
        JournalError: a file is damaged in the middle, or is none of a journal.
    """
    paths = _paths(folder)
    for path in paths:
        data = path.read_bytes()
        if not _is_begun(path, data):
            if path == paths[-1]:
                return
            raise JournalError(f"{path}: not a journal")
        offset = len(MAGIC)
        while (parsed := parse_block(data, offset)) is not None:
            entries, offset = parsed
            try:
                yield from parse_entries(entries)
            except ValueError as error:
                raise JournalError(f"{path}: {error}; a later version of the client wrote it") from error
        if offset < len(data) and path != paths[-1]:
            raise JournalError(f"{path}: damaged at byte {offset}")


def _good_end(path: Path) -> int:
    """Where a torn end begins, or the file ends. Raises JournalError when there are whole blocks behind that."""
    data = path.read_bytes()
    if not _is_begun(path, data):
        return 0
    offset = len(MAGIC)
    while (parsed := parse_block(data, offset)) is not None:
        offset = parsed[1]
    if parse_block(data, block_end(data, offset)) is not None:
        raise JournalError(
            f"{path}: damaged at byte {offset}, with whole blocks behind that; put back a copy"
        )
    return offset


def _is_begun(path: Path, data: bytes) -> bool:
    """Whether a file has its beginning; a crash may have left none of it. Raises JournalError for any other file."""
    if data[: len(MAGIC)] == MAGIC:
        return True
    if len(data) < len(MAGIC) or not data.strip(b"\x00"):
        return False
    raise JournalError(f"{path}: not a journal; give another folder, or put back a copy")


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else 0


__all__ = ["Entry", "Journal", "JournalSettings", "read_journal"]
