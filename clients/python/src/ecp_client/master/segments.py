"""The files of an outbox: one open-ended run of records each. It knows neither acknowledgements nor the network."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from ecp_client.disk import sync_file, sync_folder
from ecp_client.master.outbox_format import (
    HEADER_BYTES,
    parse_segment_header,
    scan_segment,
    segment_header,
)


@dataclass(slots=True)
class Segment:
    """One file. `offsets[i]` is where sequence first + i begins; 0 stands for a missing one."""

    path: Path
    first: int
    size: int = HEADER_BYTES
    offsets: array[int] = field(default_factory=lambda: array("I"))

    @property
    def last(self) -> int:
        """Last sequence in it; first - 1 when it is empty."""
        return self.first + len(self.offsets) - 1

    def offset_of(self, sequence: int) -> int:
        """Where the record begins, or 0 when it is not here."""
        index = sequence - self.first
        return self.offsets[index] if 0 <= index < len(self.offsets) else 0

    def follows(self, sequence: int) -> bool:
        """Whether `sequence` is the next one to append."""
        return sequence == self.last + 1

    def append(self, sequence: int, offset: int) -> None:
        """Notes a record that was written at `offset`; sequences must follow one another."""
        if sequence != self.last + 1:
            raise ValueError(f"{sequence} does not follow {self.last}")
        self.offsets.append(offset)

    def first_present(self, sequence: int) -> int | None:
        """The first sequence from `sequence` on that is here."""
        start = max(sequence, self.first)
        return next((number for number in range(start, self.last + 1) if self.offset_of(number)), None)

    def cut_behind(self, sequence: int) -> None:
        """Removes all records behind `sequence`, and the file when nothing is left of it."""
        if self.first > sequence:
            self.path.unlink(missing_ok=True)
            return
        following = self.first_present(sequence + 1)
        if following is not None:
            with self.path.open("r+b") as file:
                file.truncate(self.offset_of(following))
                sync_file(file)


def write_segment(
    folder: Path, first: int, records: bytes, *, durable: bool, name: str | None = None
) -> Segment:
    """Makes a segment with these records, whole or not at all."""
    path = folder / (name or f"{first:020d}.segment")
    temporary = folder / "new.tmp"
    data = segment_header(first) + records
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            sync_file(file)
    os.replace(temporary, path)
    if durable:
        sync_folder(folder)
    return Segment(path, first)


def replace_behind(segments: list[Segment], sequence: int, complete: Path, first: int) -> None:
    """Removes all records behind `sequence`, and makes the file `complete` the segment that begins at `first`."""
    for segment in reversed(segments):
        segment.cut_behind(sequence)
    os.replace(complete, complete.with_name(f"{first:020d}.segment"))
    sync_folder(complete.parent)


def load_segments(folder: Path) -> tuple[list[Segment], list[str]]:
    """All segments in order of sequence, and what was damaged, for people.

    A torn end of the last segment is what a crash leaves: it is cut off without a word. A file's name says its first
    sequence again, so that a damaged header costs nothing.
    """
    segments: list[Segment] = []
    damage: list[str] = []
    paths = [path for path in sorted(folder.glob("*.segment")) if path.stem.isdigit()]
    for path in paths:
        data = path.read_bytes()
        first = int(path.stem)
        if len(data) < HEADER_BYTES:
            path.write_bytes(data := segment_header(first))
        elif parse_segment_header(data) != first:
            damage.append(f"{path.name}: the header is damaged")
        segments.append(_load(path, data, first, damage, is_last=path == paths[-1]))
    return segments, damage


def _load(path: Path, data: bytes, first: int, damage: list[str], *, is_last: bool) -> Segment:
    scan = scan_segment(data, first)
    damage.extend(f"{path.name}: bytes {start} to {end} are damaged" for start, end in scan.damaged)
    if scan.end < len(data):
        if not is_last:
            damage.append(f"{path.name}: bytes {scan.end} to {len(data)} are damaged")
        with path.open("r+b") as file:
            file.truncate(scan.end)
            sync_file(file)
    return Segment(path, first, scan.end, scan.offsets)
