"""A durable queue on disk between the trading terminal and the server: what was put in is sent, or named as lost.

It gives each signal its sequence, so that nothing can get lost in between. It knows no network and no protobuf.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from ecp_client.disk import FileLock, FileLockedError, FsyncPolicy, sync_file
from ecp_client.errors import ClosedError, OutboxError, OutboxFullError, OutboxLockedError, SettingsError
from ecp_client.master.outbox_format import (
    PAYLOAD_BYTES_MAX,
    RECORD_BYTES,
    OutboxState,
    parse_record,
    record,
)
from ecp_client.master.segments import Segment, load_segments, replace_behind, write_segment
from ecp_client.master.state_file import StateFile

SEQUENCE_MAX = 2**53 - 1
READ_AHEAD_BYTES = 65_536
# The new place of moved signals, until it is complete.
MOVED_NAME = "moved.part"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """Sizes and safety of an outbox."""

    fsync: FsyncPolicy = FsyncPolicy.INTERVAL
    segment_bytes: int = 4 << 20
    """A file is closed when it is this long, and removed when all in it is acknowledged."""
    bytes_max: int = 64 << 20
    """All files together; beyond it `put` raises OutboxFullError."""
    memory_signals_max: int = 20_000
    """How many unacknowledged signals are kept in memory as well; more are read back from disk."""

    def __post_init__(self) -> None:
        if not PAYLOAD_BYTES_MAX <= self.segment_bytes <= self.bytes_max // 2:
            raise SettingsError("segment_bytes must be at least 65,535 and at most half of bytes_max")


class Outbox:
    """Signals that were not acknowledged yet, by sequence. Safe to use from several threads.

    `damage` lists what could not be read when the outbox was opened, for people; the sequences in it are holes.
    `maybe_sent` is the last sequence that an earlier client may have sent to the server.
    """

    def __init__(self, folder: Path, master_id: int, settings: OutboxSettings | None = None) -> None:
        """Opens the outbox in `folder`, or makes one.

        Raises:
            OutboxLockedError: another process has it open.
            OutboxError: the folder cannot be used, or holds the outbox of another master.
        """
        self._settings = settings or OutboxSettings()
        self._folder = folder
        self._mutex = threading.Lock()
        self._sync_mutex = threading.Lock()
        self._state = OutboxState(master_id)
        self._segments: list[Segment] = []
        self._last = 0
        self._file: BinaryIO | None = None
        self._cache: dict[int, bytes] = {}
        self._read_ahead: dict[int, bytes] = {}
        self._unsynced = False
        self._state_file: StateFile | None = None
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "outbox.lock")
        except FileLockedError as error:
            raise OutboxLockedError(f"{folder}: another process has this outbox open") from error
        except OSError as error:
            raise OutboxError(f"{folder}: {error.strerror}; give a folder that can be written to") from error
        try:
            self._load(master_id)
        except OSError as error:
            self._release()
            raise OutboxError(f"{folder}: {error}") from error
        except BaseException:
            self._release()
            raise

    @property
    def epoch(self) -> int:
        """Epoch of the last acknowledged position; 0 before the first login."""
        return self._state.epoch

    @property
    def acknowledged(self) -> int:
        """Last acknowledged sequence."""
        return self._state.acknowledged

    @property
    def last_sequence(self) -> int:
        """Sequence of the last signal that was put in."""
        return self._last

    @property
    def pending(self) -> int:
        """How many sequences are not acknowledged."""
        return max(0, self._last - self._state.acknowledged)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def begin_epoch(self) -> bool:
        """Whether the next login must begin an epoch, because signals may have been lost here."""
        return self._state.begin_epoch

    @property
    def clock_offset_us(self) -> int:
        """The server's clock minus this machine's, as remembered."""
        return self._state.clock_offset_us

    def put(self, payload: bytes) -> int:
        """Appends one serialized signal and returns its sequence. Under FsyncPolicy.ALWAYS it is on the disk then.

        Raises:
            OutboxFullError: nothing was taken; retry when acknowledgements came in.
            OutboxError: the file cannot be written; nothing was taken.
            ClosedError: the outbox is closed.
        """
        return self.put_many((payload,))

    def put_many(self, payloads: Sequence[bytes]) -> int:
        """Appends all or none, with one write, and returns the FIRST one's sequence. Raises as `put` does."""
        with self._mutex:
            if self._closed:
                raise ClosedError("the outbox is closed")
            first = self._last + 1
            blob = b"".join([record(first + index, payload) for index, payload in enumerate(payloads)])
            segment = self._segment_for(first, len(blob))
            self._write(segment, blob)
            room = self._settings.memory_signals_max - len(self._cache)
            offset = segment.size
            for index, payload in enumerate(payloads):
                segment.append(first + index, offset)
                offset += RECORD_BYTES + len(payload)
                if index < room:
                    self._cache[first + index] = payload
            segment.size = offset
            self._last = first + len(payloads) - 1
        if self._settings.fsync is FsyncPolicy.ALWAYS:
            self.sync()
        return first

    def read(self, first: int, count_max: int, bytes_max: int) -> list[bytes]:
        """Up to `count_max` consecutive payloads from `first` on, at most `bytes_max` together but at least one.

        Ends before a hole; empty when `first` is a hole or was not given yet.

        Raises:
            OutboxError: a file cannot be read.
        """
        payloads: list[bytes] = []
        size = 0
        with self._mutex:
            for sequence in range(first, min(first + count_max, self._last + 1)):
                payload = self._cache.get(sequence) or self._from_disk(sequence)
                if payload is None:
                    break
                size += len(payload)
                if payloads and size > bytes_max:
                    break
                payloads.append(payload)
        return payloads

    def hole_from(self, sequence: int) -> int | None:
        """The last sequence of the hole that begins at `sequence`, or None when there is none."""
        with self._mutex:
            if sequence > self._last or sequence in self._cache or self._segment_of(sequence) is not None:
                return None
            following = [
                present
                for segment in self._segments
                if (present := segment.first_present(sequence)) is not None
            ]
            return min(following, default=self._last + 1) - 1

    def acknowledge(self, epoch: int, sequence: int) -> None:
        """Forgets everything up to `sequence` and remembers the position. An older position changes nothing."""
        with self._mutex:
            state = self._state
            if (epoch, sequence) <= (state.epoch, state.acknowledged) or self._closed:
                return
            for acknowledged in range(state.acknowledged + 1, min(sequence, self._last) + 1):
                self._cache.pop(acknowledged, None)
            new_epoch = epoch != state.epoch
            state.epoch, state.acknowledged = epoch, sequence
            self._last = max(self._last, sequence)
            if new_epoch:
                self._write_state(durable=True)
            elif self._state_file is not None:
                self._state_file.acknowledged()
            self._drop_acknowledged()

    def remember(self, *, begin_epoch: bool | None = None, clock_offset_us: int | None = None) -> None:
        """Stores what the next login, perhaps of another process, must know."""
        with self._mutex:
            if self._closed:
                return
            if begin_epoch is not None:
                self._state.begin_epoch = begin_epoch
            if clock_offset_us is not None:
                self._state.clock_offset_us = clock_offset_us
            self._write_state(durable=begin_epoch is not None)

    def move(self, after: int, epoch: int, sequence: int) -> None:
        """Acknowledges (epoch, sequence), and puts all signals behind `after` right behind it.

        Needed when the log turns out to be ahead of this outbox; the moved signals must never have been sent. What a
        crash interrupts is finished at the next opening.
        """
        with self._mutex:
            state = self._state
            state.move_after, state.move_by = after, sequence - after
            state.epoch, state.acknowledged, state.begin_epoch = epoch, sequence, False
            self._write_state(durable=True)
            self._finish_move()

    def sync(self) -> None:
        """Forces everything put in so far to the disk; blocks for as long as the disk takes."""
        with self._sync_mutex:
            with self._mutex:
                if self._file is None or not self._unsynced:
                    return
                self._unsynced = False
                descriptor = os.dup(self._file.fileno())
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Syncs, closes and unlocks; safe to repeat."""
        if self._closed:
            return
        if self._settings.fsync is not FsyncPolicy.NEVER:
            self.sync()
        with self._mutex:
            self._closed = True
            self._write_state(durable=self._settings.fsync is not FsyncPolicy.NEVER)
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, master_id: int) -> None:
        self._state_file = StateFile(self._folder / "outbox.state", master_id)
        self._state = self._state_file.state
        was_found = self._state_file.was_found
        self._segments, self.damage = load_segments(self._folder)
        self._last = max([self._state.acknowledged, *(segment.last for segment in self._segments)])
        if not was_found and self._segments:
            self._state.acknowledged = self._segments[0].first - 1
        # Without a session ever opened nothing was sent; without the state's file nobody knows.
        was_used = self._state.epoch > 0 or (not was_found and bool(self._segments))
        self.maybe_sent = self._last if was_used else self._state.acknowledged
        if self._state.move_by:
            self._finish_move()
            self.maybe_sent = self._state.acknowledged
        else:
            (self._folder / MOVED_NAME).unlink(missing_ok=True)
        self._drop_acknowledged()

    def _segment_for(self, first: int, size: int) -> Segment:
        """The segment to append to; a new one when there is none with room.

        Raises:
            OutboxFullError: it would grow beyond bytes_max.
        """
        if first > SEQUENCE_MAX:
            raise OutboxFullError("all sequences up to 2^53 - 1 are used")
        active = self._segments[-1] if self._segments else None
        if (
            active is None
            or self._file is None
            or active.size >= self._settings.segment_bytes
            or not active.follows(first)
        ):
            self._begin_segment(first)
            self._drop_acknowledged()
        if self.size_bytes + size > self._settings.bytes_max:
            raise OutboxFullError(
                f"{self._folder} holds {self.pending:,} unacknowledged signals in {self.size_bytes:,} bytes; "
                f"it takes {self._settings.bytes_max:,}"
            )
        return self._segments[-1]

    def _begin_segment(self, first: int) -> None:
        self._end_segment()
        active = self._segments[-1] if self._segments else None
        if active is not None and active.size < self._settings.segment_bytes and active.follows(first):
            self._file = active.path.open("ab", buffering=0)
            return
        segment = write_segment(
            self._folder, first, b"", durable=self._settings.fsync is not FsyncPolicy.NEVER
        )
        self._segments.append(segment)
        self._file = segment.path.open("ab", buffering=0)

    def _end_segment(self) -> None:
        if self._file is not None:
            if self._unsynced and self._settings.fsync is not FsyncPolicy.NEVER:
                sync_file(self._file)
            self._unsynced = False
            self._file.close()
            self._file = None

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
        self._unsynced = True

    def _segment_of(self, sequence: int) -> Segment | None:
        return next((segment for segment in reversed(self._segments) if segment.offset_of(sequence)), None)

    def _from_disk(self, sequence: int) -> bytes | None:
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

    def _drop_acknowledged(self) -> None:
        """Removes files in which everything is acknowledged, but never the one being written."""
        if len(self._segments) > 1 and self._segments[0].last <= self._state.acknowledged:
            # First, or a crash would leave an outbox that lacks signals and does not know that they arrived.
            self._write_state(durable=self._settings.fsync is not FsyncPolicy.NEVER)
        while len(self._segments) > 1 and self._segments[0].last <= self._state.acknowledged:
            segment = self._segments.pop(0)
            segment.path.unlink(missing_ok=True)

    def _finish_move(self) -> None:
        state = self._state
        moved = self._folder / MOVED_NAME
        first = state.move_after + 1
        if not moved.exists() and self._segment_of(first) is not None:
            last = self._segments[-1].last
            payloads = filter(None, (self._from_disk(sequence) for sequence in range(first, last + 1)))
            blob = b"".join(
                record(first + state.move_by + index, payload) for index, payload in enumerate(payloads)
            )
            write_segment(self._folder, first + state.move_by, blob, durable=True, name=moved.name)
        if moved.exists():
            self._end_segment()
            replace_behind(self._segments, state.move_after, moved, first + state.move_by)
        self._cache.clear()
        self._read_ahead = {}
        self._segments, _ = load_segments(self._folder)
        self._last = max([state.acknowledged, *(segment.last for segment in self._segments)])
        state.move_after = state.move_by = 0
        self._write_state(durable=True)

    def _write_state(self, *, durable: bool) -> None:
        if self._state_file is not None:
            self._state_file.write(durable=durable)

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._state_file is not None:
            self._state_file.close()
        self._lock.release()
