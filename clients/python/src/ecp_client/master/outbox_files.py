"""All segments of an outbox together: appends to the last, reads any, and knows what the disk may not have yet.

It has no lock of its own and knows neither acknowledgements nor the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ecp_client.disk import sync_file, sync_folder
from ecp_client.errors import ClosedError, OutboxError
from ecp_client.master.outbox_format import PAYLOAD_BYTES_MAX, RECORD_BYTES, parse_record, record
from ecp_client.master.segments import Segment, load_segments, replace_behind, write_segment

READ_AHEAD_BYTES = 65_536
# The new place of moved signals, until it is complete.
MOVED_NAME = "moved.part"


@dataclass(frozen=True, slots=True)
class Unsynced:
    """What was written and may not be on the disk yet."""

    files: tuple[Path, ...]
    folder: Path | None

    def force(self) -> None:
        """Forces it to the disk; blocks for as long as that takes. Files that are gone by now are passed over.

        Raises:
            OSError: the disk failed.
        """
        for path in self.files:
            try:
                file = path.open("r+b")
            except FileNotFoundError:
                continue
            with file:
                sync_file(file)
        if self.folder is not None:
            sync_folder(self.folder)


class OutboxFiles:
    """The segments in one folder. `damage` lists what could not be read at the beginning, for people."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        """Raises:
        OSError: the folder cannot be read.
        """
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._segments, self.damage = load_segments(folder)
        self._file: BinaryIO | None = None
        self._read_ahead: dict[int, bytes] = {}
        # In the order of writing, so that a power cut in between costs the end and not the middle.
        self._unsynced: dict[Path, None] = {}
        self._is_active_unsynced = False
        self._is_folder_unsynced = False

    @property
    def first(self) -> int | None:
        """First sequence that was ever in the oldest segment; None without one."""
        return self._segments[0].first if self._segments else None

    @property
    def last(self) -> int:
        """Last sequence in any segment; 0 without one."""
        return max((segment.last for segment in self._segments), default=0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments on disk."""
        return sum([segment.size for segment in self._segments])

    def prepare(self, first: int) -> None:
        """Makes sure that there is an open segment in which `first` is the next sequence."""
        active = self._segments[-1] if self._segments else None
        fits = active is not None and active.size < self._segment_bytes and active.follows(first)
        if self._file is not None and fits:
            return
        self._close_file()
        if active is None or not fits:
            active = write_segment(self._folder, first, b"", durable=False)
            self._segments.append(active)
            self._is_folder_unsynced = True
        self._file = active.path.open("ab", buffering=0)

    def append(self, first: int, payloads: Sequence[bytes]) -> None:
        """Appends all or none, with one write, to the segment that `prepare` opened.

        Raises:
            OutboxError: the disk cannot be written; nothing was taken.
        """
        segment = self._segments[-1]
        self._write(
            segment, b"".join([record(first + index, payload) for index, payload in enumerate(payloads)])
        )
        offset = segment.size
        for index, payload in enumerate(payloads):
            segment.append(first + index, offset)
            offset += RECORD_BYTES + len(payload)
        segment.size = offset

    def read(self, sequence: int) -> bytes | None:
        """The payload, or None where there is none.

        Raises:
            OutboxError: a file cannot be read.
        """
        payload = self._read_ahead.get(sequence)
        if payload is not None:
            return payload
        segment = self._segment_of(sequence)
        if segment is None:
            return None
        try:
            with segment.path.open("rb") as file:
                file.seek(segment.offset_of(sequence))
                data = file.read(READ_AHEAD_BYTES + PAYLOAD_BYTES_MAX)
        except OSError as error:
            raise OutboxError(f"{segment.path} cannot be read: {error.strerror}") from error
        self._read_ahead = {}
        offset = 0
        while offset < READ_AHEAD_BYTES and (found := parse_record(data, offset)) is not None:
            self._read_ahead[found[0]] = found[1]
            offset += RECORD_BYTES + len(found[1])
        return self._read_ahead.get(sequence)

    def has(self, sequence: int) -> bool:
        """Whether the sequence is in a segment."""
        return self._segment_of(sequence) is not None

    def first_present(self, sequence: int) -> int | None:
        """The first sequence from `sequence` on that is in a segment."""
        found = (segment.first_present(sequence) for segment in self._segments)
        return min((number for number in found if number is not None), default=None)

    def is_droppable(self, acknowledged: int) -> bool:
        """Whether there is a file to remove in which everything is acknowledged."""
        return len(self._segments) > 1 and self._segments[0].last <= acknowledged

    def drop(self, acknowledged: int) -> None:
        """Removes files in which everything is acknowledged, but never the one being written."""
        while self.is_droppable(acknowledged):
            self._segments.pop(0).path.unlink(missing_ok=True)

    def move(self, after: int, by: int) -> None:
        """Gives all signals behind `after` sequences that are higher by `by`. Safe to repeat after a crash."""
        moved = self._folder / MOVED_NAME
        first = after + 1
        if not moved.exists() and self.has(first):
            payloads = filter(None, (self.read(sequence) for sequence in range(first, self.last + 1)))
            blob = b"".join(record(first + by + index, payload) for index, payload in enumerate(payloads))
            write_segment(self._folder, first + by, blob, durable=True, name=MOVED_NAME)
        if moved.exists():
            self._close_file()
            replace_behind(self._segments, after, moved, first + by)
        self._read_ahead = {}
        self._segments, _ = load_segments(self._folder)

    def forget_moved(self) -> None:
        """Removes what a move left that was never decided on."""
        (self._folder / MOVED_NAME).unlink(missing_ok=True)

    def take_unsynced(self) -> Unsynced:
        """What is to be forced to the disk now."""
        self._note_active()
        taken = Unsynced(tuple(self._unsynced), self._folder if self._is_folder_unsynced else None)
        self._unsynced = {}
        self._is_folder_unsynced = False
        return taken

    def give_back(self, unsynced: Unsynced) -> None:
        """Could not be forced to the disk."""
        self._unsynced = dict.fromkeys(unsynced.files) | self._unsynced
        self._is_folder_unsynced |= unsynced.folder is not None

    def close(self) -> None:
        """Closes the file; safe to repeat."""
        self._close_file()

    def _write(self, segment: Segment, blob: bytes) -> None:
        file = self._file
        if file is None:
            raise ClosedError("the outbox is closed")
        try:
            written = file.write(blob)
        except OSError as error:
            written = -1
            reason = error.strerror or "the disk is full"
        else:
            reason = "the disk is full"
        if written != len(blob):
            file.truncate(segment.size)
            raise OutboxError(f"{segment.path}: {reason}; the signal was not taken")
        self._is_active_unsynced = True

    def _segment_of(self, sequence: int) -> Segment | None:
        return next((segment for segment in reversed(self._segments) if segment.offset_of(sequence)), None)

    def _note_active(self) -> None:
        if self._is_active_unsynced:
            self._unsynced[self._segments[-1].path] = None
            self._is_active_unsynced = False

    def _close_file(self) -> None:
        self._note_active()
        if self._file is not None:
            self._file.close()
            self._file = None
