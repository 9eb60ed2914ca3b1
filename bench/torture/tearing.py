"""Takes the last bytes off an append-only file, as a power cut might; the server must not run meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def tear(folder: Path, length_bytes: int) -> int:
    """Takes so many bytes, or all there are, off the newest file in `folder`; returns how many."""
    newest = max(folder.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    size = newest.stat().st_size
    length_bytes = min(length_bytes, size)
    os.truncate(newest, size - length_bytes)
    return length_bytes
