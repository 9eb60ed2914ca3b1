"""A disk on which the process dies after a given number of steps: renames, removals, cuts, and halves of writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock


class ProcessDiedError(BaseException):
    """As SIGKILL: nothing may handle it."""


class CrashingDisk:
    """Counts steps while `running`; after the last one every further step raises.

    A write is two steps: a process that dies between them has written `torn` of it.
    """

    def __init__(self, steps: int, torn: float) -> None:
        self.steps_left = steps
        self.torn = torn
        self._open_path = Path.open
        self._replace = os.replace
        self._unlink = Path.unlink
        self._files: list[BinaryIO] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        disk = self

        def open_path(path: Path, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
            if mode in ("rb", "r"):
                return disk._open_path(path, mode, buffering, *rest, **more)
            file = disk._open_path(path, mode, 0)
            disk._files.append(file)
            return CrashingFile(disk, file)

        def replace(source: Any, target: Any) -> None:
            disk.step()
            disk._replace(source, target)

        def unlink(path: Path, missing_ok: bool = False) -> None:
            disk.step()
            disk._unlink(path, missing_ok=missing_ok)

        try:
            with (
                mock.patch.object(Path, "open", open_path),
                mock.patch.object(Path, "unlink", unlink),
                mock.patch.object(os, "replace", replace),
                mock.patch.object(os, "fsync", return_value=None),
            ):
                yield
        finally:
            for file in self._files:
                file.close()

    def step(self) -> None:
        """One more thing happens, or the process dies first."""
        if self.steps_left <= 0:
            raise ProcessDiedError
        self.steps_left -= 1


class CrashingFile:
    """A file whose writes may be torn."""

    def __init__(self, disk: CrashingDisk, file: BinaryIO) -> None:
        self._disk = disk
        self._file = file

    def write(self, data: bytes) -> int:
        if data:
            self._disk.step()
            written = self._file.write(data[: int(len(data) * self._disk.torn)])
            self._disk.step()
            self._file.write(data[written:])
        return len(data)

    def truncate(self, size: int) -> int:
        self._disk.step()
        return self._file.truncate(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> CrashingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
