"""The log files of embedded servers: bounded at each start, and read for why a server did not start."""

from __future__ import annotations

from pathlib import Path

LOG_BYTES_MAX = 16 * 1024 * 1024
TAIL_BYTES = 16 * 1024


def rotated(log_file: Path) -> Path:
    """The same path; a file that had grown past the limit is moved aside, over the one moved before."""
    if log_file.exists() and log_file.stat().st_size > LOG_BYTES_MAX:
        log_file.replace(log_file.with_suffix(".log.1"))
    return log_file


def size(log_file: Path) -> int:
    """Its length in bytes; 0 when there is none."""
    return log_file.stat().st_size if log_file.exists() else 0


def last_line(log_file: Path, *, since: int, marks: tuple[str, ...]) -> str:
    """The last line written after offset `since` that holds one of `marks`, or else the last of all."""
    if not log_file.exists():
        return "it said nothing"
    with log_file.open("rb") as file:
        file.seek(max(since, size(log_file) - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    marked = [line for line in lines if any(mark in line for mark in marks)]
    return (marked or lines or ["it said nothing"])[-1]
