"""A durable queue on disk between the trading terminal and the server: what was put in is sent, or named as lost.

It gives each signal its sequence, so that nothing can get lost in between. It knows no network and no protobuf.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ecp_client.disk import FileLock, FileLockedError, FsyncPolicy
from ecp_client.errors import ClosedError, OutboxError, OutboxFullError, OutboxLockedError, SettingsError
from ecp_client.master.outbox_files import OutboxFiles, Unsynced
from ecp_client.master.outbox_format import PAYLOAD_BYTES_MAX, RECORD_BYTES
from ecp_client.master.state_file import StateFile

logger = logging.getLogger("ecp_client.master")

SEQUENCE_MAX = 2**53 - 1
STATE_NAME = "outbox.state"


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

    Nothing waits for the disk with the lock held, so that `put` never waits for it either, except under
    FsyncPolicy.ALWAYS: what must be forced to the disk is noted, and `sync` does it.

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
        self._last = 0
        self._cache: dict[int, bytes] = {}
        self._is_state_unsynced = False
        self._trouble = ""
        self._closed = False
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            try:
                self._state_file = StateFile(folder / STATE_NAME, master_id)
                stack.callback(self._state_file.close)
                self._state = self._state_file.state
                self._files = OutboxFiles(folder, self._settings.segment_bytes)
                stack.callback(self._files.close)
                self._recover()
            except OSError as error:
                raise OutboxError(f"{folder}: {error}") from error
            self.damage = self._files.damage
            self._held = stack.pop_all()

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
        return self._files.size_bytes

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

        A disk that takes it but fails to make it safe is logged: the signal counts as taken, and is sent.

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
            try:
                self._make_room(first, sum(map(len, payloads)) + RECORD_BYTES * len(payloads))
            except OSError as error:
                why = f"{error.strerror or error}; the signal was not taken"
                raise OutboxError(f"{self._folder}: {why}") from error
            self._files.append(first, payloads)
            room = self._settings.memory_signals_max - len(self._cache)
            self._cache.update(enumerate(payloads[: max(0, room)], first))
            self._last = first + len(payloads) - 1
        if self._settings.fsync is FsyncPolicy.ALWAYS:
            self._sync_or_log()
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
                payload = self._cache.get(sequence) or self._files.read(sequence)
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
            if sequence > self._last or sequence in self._cache or self._files.has(sequence):
                return None
            following = self._files.first_present(sequence)
            return (self._last + 1 if following is None else following) - 1

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
            self._note_acknowledged(is_new_epoch=new_epoch)

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
        crash interrupts is finished at the next opening. This alone waits for the disk under any policy.
        """
        with self._mutex:
            state = self._state
            state.move_after, state.move_by = after, sequence - after
            state.epoch, state.acknowledged, state.begin_epoch = epoch, sequence, False
            self._state_file.write(durable=True)
            self._finish_move()

    def sync(self) -> None:
        """Forces everything put in so far to the disk, and removes files in which all is acknowledged.

        Blocks for as long as the disk takes; signals can be put in meanwhile.

        Raises:
            OutboxError: the disk failed; the next call tries again.
        """
        with self._sync_mutex:
            with self._mutex:
                if self._closed:
                    return
                unsynced, with_state, dropping = self._take_unsynced()
            try:
                unsynced.force()
                if with_state:
                    Unsynced((self._folder / STATE_NAME,), None).force()
            except OSError as error:
                with self._mutex:
                    self._files.give_back(unsynced)
                    self._is_state_unsynced |= with_state
                raise OutboxError(f"{self._folder}: {error.strerror or error}") from error
            if dropping is not None:
                with self._mutex:
                    self._files.drop(dropping)

    def close(self) -> None:
        """Syncs, closes and unlocks; safe to repeat."""
        if self._closed:
            return
        with self._mutex:
            self._write_state(durable=self._settings.fsync is not FsyncPolicy.NEVER)
        if self._settings.fsync is not FsyncPolicy.NEVER:
            self._sync_or_log()
        with self._mutex:
            self._closed = True
            self._state_file.write(durable=False)
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self, stack: contextlib.ExitStack) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            stack.callback(FileLock(self._folder / "outbox.lock").release)
        except FileLockedError as error:
            raise OutboxLockedError(f"{self._folder}: another process has this outbox open") from error
        except OSError as error:
            message = f"{self._folder}: {error.strerror}; give a folder that can be written to"
            raise OutboxError(message) from error

    def _recover(self) -> None:
        """Finds out where the last life ended, and finishes what it had begun."""
        state, was_found, first = self._state, self._state_file.was_found, self._files.first
        self._last = max(state.acknowledged, self._files.last)
        if not was_found and first is not None:
            state.acknowledged = first - 1
        # Without a session ever opened nothing was sent; without the state's file nobody knows.
        was_used = state.epoch > 0 or (not was_found and first is not None)
        self.maybe_sent = self._last if was_used else state.acknowledged
        if state.move_by:
            self._finish_move()
            self.maybe_sent = state.acknowledged
        else:
            self._files.forget_moved()
        self._drop_acknowledged()

    def _note_acknowledged(self, *, is_new_epoch: bool) -> None:
        """Writes the position down. Where the disk refuses, all goes on: the server tells at the login what it has."""
        try:
            if is_new_epoch:
                self._write_state(durable=True)
            else:
                self._state_file.acknowledged()
            if self._settings.fsync is FsyncPolicy.NEVER:
                self._drop_acknowledged()
        except OSError as error:
            trouble = f"{self._folder}: {error.strerror or error}"
            if trouble != self._trouble:
                logger.error("the outbox cannot write down what is acknowledged: %s", trouble)
            self._trouble = trouble

    def _make_room(self, first: int, added_bytes: int) -> None:
        """Sees to an open segment with room.

        Raises:
            OutboxFullError: it would grow beyond bytes_max.
        """
        if first > SEQUENCE_MAX:
            raise OutboxFullError("all sequences up to 2^53 - 1 are used")
        self._files.prepare(first)
        if self._files.size_bytes + added_bytes <= self._settings.bytes_max:
            return
        # Better to wait for the disk once than to refuse.
        self._drop_acknowledged()
        if self._files.size_bytes + added_bytes > self._settings.bytes_max:
            raise OutboxFullError(
                f"{self._folder} holds {self.pending:,} unacknowledged signals in {self.size_bytes:,} bytes; "
                f"it takes {self._settings.bytes_max:,}"
            )

    def _take_unsynced(self) -> tuple[Unsynced, bool, int | None]:
        """What to force to the disk, whether the state is to be, and up to where signals can be dropped then."""
        dropping = None
        if self._files.is_droppable(self._state.acknowledged):
            dropping = self._state.acknowledged
            self._write_state(durable=True)
        with_state, self._is_state_unsynced = self._is_state_unsynced, False
        unsynced = self._files.take_unsynced()
        if self._settings.fsync is FsyncPolicy.NEVER:
            unsynced = Unsynced((), None)
        return unsynced, with_state, dropping

    def _drop_acknowledged(self) -> None:
        """Removes files in which everything is acknowledged."""
        acknowledged = self._state.acknowledged
        if self._files.is_droppable(acknowledged):
            # First, or a crash would leave an outbox that lacks signals and does not know that they arrived.
            self._state_file.write(durable=self._settings.fsync is not FsyncPolicy.NEVER)
            self._files.drop(acknowledged)

    def _finish_move(self) -> None:
        state = self._state
        self._files.move(state.move_after, state.move_by)
        self._cache.clear()
        self._last = max(state.acknowledged, self._files.last)
        state.move_after = state.move_by = 0
        self._state_file.write(durable=True)

    def _write_state(self, *, durable: bool) -> None:
        """Writes it; to the disk it is forced by the next `sync`."""
        self._state_file.write(durable=False)
        self._is_state_unsynced |= durable

    def _sync_or_log(self) -> None:
        try:
            self.sync()
        except OutboxError as error:
            logger.error("the outbox is not safe from a power cut: %s", error)
