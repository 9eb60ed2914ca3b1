"""One subscriber's stream: its cursors, what it is told next, and when it ends. Pure; its driver owns clock and socket.

The driver calls `next_messages` whenever the reader takes more and `has_next` holds, `tick` about ten times a second,
and ends the call with `ended` once everything before was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from execution.common.v1 import position_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.errors import ServiceError
from services.fanout.domain import errors
from services.fanout.domain.codec import (
    Message,
    drain_message,
    progress_message,
    state_change_message,
)
from services.fanout.domain.cursor import Cursor, Place, Sync
from services.fanout.domain.filter import Pause
from services.fanout.domain.lag import Lag
from services.fanout.domain.position import ZERO, Position
from services.fanout.domain.ring import Segment, Slice, joined_message

_STATES: Final = {
    Sync.SYNCED: pb.SUBSCRIPTION_STATE_SYNCED,
    Sync.DEGRADED_GAP: pb.SUBSCRIPTION_STATE_DEGRADED_GAP,
    Sync.RESYNCING: pb.SUBSCRIPTION_STATE_RESYNCING,
    Sync.UNKNOWN: pb.SUBSCRIPTION_STATE_UNSPECIFIED,
}
_PAUSED_STATES: Final = {
    Pause.CLOSE_ONLY: pb.SUBSCRIPTION_STATE_PAUSED_CLOSE_ONLY,
    Pause.ALL: pb.SUBSCRIPTION_STATE_PAUSED_ALL,
}


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose stream it is."""

    user_id: str
    license_id: str
    expires_at_us: int
    peer_address: str = ""
    client: str = ""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much one message holds, and how often Progress comes."""

    message_bytes_max: int
    message_signals_max: int
    progress_interval_seconds: float


class Turn(NamedTuple):
    """A cursor's sync state changed."""

    cursor: Cursor
    sync: Sync
    reason: str
    at_us: int
    position: Position
    """Everything up to here was told when it did; ZERO for RESYNCING, which holds nowhere."""
    full_sync_done: int
    """Number of the full sync that came to its end with this; 0 is none."""


class ProgressCache:
    """Progress messages of one instant, shared by streams that stand at the same places."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self._messages: dict[tuple[tuple[int, Position], ...], Message] = {}

    def message(self, positions: tuple[tuple[int, Position], ...]) -> Message:
        """The message for these positions."""
        message = self._messages.get(positions)
        if message is None:
            message = self._messages[positions] = progress_message(positions, self._now_us)
        return message


class Stream:
    """What one reader is told, in order."""

    __slots__ = (
        "_behind",
        "_control",
        "_limits",
        "_ready",
        "_turned",
        "_was_complete",
        "complete_at_us",
        "cursors",
        "ended",
        "expires_at_us",
        "is_quiet",
        "opened_at_us",
        "progress_due_us",
        "reader",
        "stream_id",
        "unacknowledged_since_us",
    )

    def __init__(
        self, stream_id: int, reader: Reader, cursors: Sequence[Cursor], limits: StreamLimits, *, now_us: int
    ) -> None:
        self.stream_id = stream_id
        self.reader = reader
        self.opened_at_us = now_us
        self.cursors = {cursor.master_id: cursor for cursor in cursors}
        self.ended: ServiceError | None = None
        self.expires_at_us = reader.expires_at_us
        self._limits = limits
        self.is_quiet = False
        """Whether `next_messages` would give nothing but what its cursors' logs bring from now on, as it is."""
        self._control: list[Message] = []
        self._ready: dict[Cursor, None] = {}
        self._behind: dict[Cursor, None] = {}
        self._turned: list[Turn] = []
        self.progress_due_us = now_us
        self.complete_at_us = now_us
        """When the reader last had everything, or came."""
        self._was_complete = False
        self.unacknowledged_since_us = 0
        for cursor in cursors:
            # Before anything else: a position without a pause says that there is none.
            if cursor.pause is not Pause.NONE:
                self._tell_pause(cursor, "the subscription is paused", now_us)
        if self.positions:
            # Before any signal: one who begins now learns where that is.
            self._tell(progress_message(self.positions, now_us))
        for cursor in cursors:
            self._see(cursor, now_us)

    @property
    def has_next(self) -> bool:
        """Whether `next_messages` has something to give."""
        return bool(self._control or (self._ready and self.ended is None))

    @property
    def positions(self) -> tuple[tuple[int, Position], ...]:
        """Everything up to here was told, for each master that has begun."""
        return tuple(
            (cursor.master_id, cursor.position)
            for cursor in self.cursors.values()
            if cursor.place is not Place.SNAPSHOT
        )

    def wake(self, cursor: Cursor) -> bool:
        """The cursor's log grew; returns whether the stream has something to give."""
        if cursor.has_next:
            self._ready[cursor] = None
            self.is_quiet = False
        return self.has_next

    def next_messages(self, now_us: int) -> list[Message]:
        """What to write next, about `message_bytes_max` at most beside short events; empty when there is nothing.

        Consecutive signals, also of several masters, come in one message.
        """
        out: list[Message] = []
        if self._control:
            out.extend(self._control)
            self._control.clear()
        if self._ready and self.ended is None:
            self._take(out, now_us)
        if not self._ready and not self._behind:
            self.complete_at_us = now_us
            self._was_complete = True
            self.is_quiet = self.ended is None and all(cursor.is_plain for cursor in self.cursors.values())
        return out

    def _take(self, out: list[Message], now_us: int) -> None:
        budget, signals = self._limits.message_bytes_max, self._limits.message_signals_max
        joined: list[Slice] = []
        while self._ready and budget > 0 and signals > 0:
            cursor = next(iter(self._ready))
            piece = cursor.take(self._limits.message_bytes_max, self._limits.message_signals_max)
            if isinstance(piece, Slice):
                joined.append(piece)
                budget -= len(piece.chunks)
                signals -= piece.signals
            elif piece is not None:
                _flush(joined, out)
                out.append(piece)
                budget -= len(piece.data)
            # Behind the others, so that a master that never rests keeps nobody waiting.
            del self._ready[cursor]
            self._see(cursor, now_us)
        _flush(joined, out)
        # States follow the message that brought them about.
        out.extend(self._control)
        self._control.clear()

    def tick(self, now_us: int, cache: ProgressCache) -> None:
        """Sees whether Progress is due or the license has expired."""
        if self.ended is not None:
            return
        if now_us >= self.expires_at_us:
            self.end(errors.license_expired())
        elif now_us >= self.progress_due_us:
            self.progress(now_us, cache)

    def progress(self, now_us: int, cache: ProgressCache) -> None:
        """Tells what is withheld, and where the stream stands."""
        for cursor in self.cursors.values():
            withheld = cursor.flush_withheld()
            if withheld is not None:
                self._tell(withheld)
        self.progress_due_us = now_us + int(self._limits.progress_interval_seconds * 1e6)
        self._tell(cache.message(self.positions))

    def end(self, error: ServiceError) -> None:
        """Nothing more is told after what is on its way; the first reason counts."""
        if self.ended is None:
            self.ended = error
            self.is_quiet = False

    def drain(self, reconnect_after_us: int) -> None:
        """Announces the end and ends."""
        if self.ended is not None:
            return
        for cursor in self.cursors.values():
            withheld = cursor.flush_withheld()
            if withheld is not None:
                self._tell(withheld)
        self._tell(drain_message(reconnect_after_us, self.positions))
        self.end(errors.draining())

    def pause(self, master_id: int, pause: Pause, version: int, reason: str, now_us: int) -> bool:
        """Withholds from now on what `pause` says; returns whether that is news. `version` is the subscription's."""
        cursor = self.cursors.get(master_id)
        if cursor is None or version <= cursor.version:
            return False
        cursor.version = version
        if pause is cursor.pause:
            return False
        cursor.set_pause(pause)
        self._tell_pause(cursor, reason, now_us)
        return True

    def cancel(self, master_id: int, reason: str, now_us: int) -> Cursor | None:
        """The subscription ended: so does its part of the stream, and the stream with its last one."""
        cursor = self.cursors.pop(master_id, None)
        if cursor is None:
            return None
        self._ready.pop(cursor, None)
        self._behind.pop(cursor, None)
        withheld = cursor.flush_withheld()
        if withheld is not None:
            self._tell(withheld)
        state = pb.SUBSCRIPTION_STATE_CANCELLED
        self._tell(state_change_message(master_id, state, reason, now_us))
        if not self.cursors:
            self.end(errors.cancelled(master_id))
        return cursor

    def wants(self) -> list[Cursor]:
        """The cursors that read behind the ring and wait for a page."""
        return list(self._behind)

    def feed(self, cursor: Cursor, page: Segment, now_us: int) -> None:
        """Gives a cursor the page that it waits for."""
        if cursor in self._behind:
            cursor.feed(page)
            self._see(cursor, now_us)

    def skip_to(self, cursor: Cursor, floor: Position, now_us: int) -> None:
        """Tells a cursor that waits for a page that what it wants is gone up to `floor`."""
        if cursor in self._behind:
            reason = position_pb2.GAP_REASON_TRIMMED
            self._tell(cursor.skip_to(floor, reason, "older than the log and the archive"))
            self._see(cursor, now_us)

    def begin_with(self, cursor: Cursor, snapshot: snapshot_pb2.Snapshot, now_us: int) -> None:
        """Gives a cursor the snapshot that it waits for, or, while it goes on, that of a full sync."""
        if self.cursors.get(cursor.master_id) is not cursor:
            return
        withheld = cursor.flush_withheld()
        if withheld is not None:
            self._tell(withheld)
        self._tell(cursor.start_with(snapshot))
        # From here on the reader is catching up, by right.
        self._was_complete = False
        self.complete_at_us = now_us
        self._see(cursor, now_us)

    def resync(self, cursor: Cursor, reason: str, now_us: int) -> None:
        """A full sync was asked for: says so; the stream goes on until `begin_with` brings the snapshot."""
        if self.cursors.get(cursor.master_id) is cursor:
            cursor.resync(reason)
            self._see(cursor, now_us)

    def stood(self, cursor: Cursor, sync: Sync, now_us: int) -> None:
        """The ledger knows how the subscriber stood before this stream."""
        if self.cursors.get(cursor.master_id) is cursor:
            cursor.was_known_as(sync)
            if cursor.sync_changed:
                # Nothing happened here, and the ledger may be about to hear from another process what did elsewhere.
                self._tell_sync(cursor, now_us)
            self._see(cursor, now_us)

    def acknowledge(self, master_id: int, position: Position, now_us: int) -> None:
        """The reader has processed everything up to `position`."""
        cursor = self.cursors.get(master_id)
        if cursor is not None and position > cursor.acknowledged:
            cursor.acknowledged = position
            self.unacknowledged_since_us = now_us

    def turned(self) -> list[Turn]:
        """The changes of sync states since the last call, oldest first."""
        turned, self._turned = self._turned, []
        return turned

    def lag(self, now_us: int, *, is_writing: bool) -> Lag:
        """How far behind the reader is; `is_writing` says that it has not taken everything that was given."""
        signals = lag_bytes = 0
        for cursor in self.cursors.values():
            missing = cursor.lag_signals
            signals += missing
            lag_bytes += missing * cursor.log.chunk_bytes_mean
        is_complete = not (is_writing or self._ready or self._behind)
        if is_complete:
            self.complete_at_us = now_us
        return Lag(
            signals=signals,
            bytes=lag_bytes,
            seconds=max(0, now_us - self.complete_at_us) / 1e6,
            is_catching_up=not self._was_complete,
            unacknowledged_seconds=self._unacknowledged_seconds(now_us),
        )

    def _unacknowledged_seconds(self, now_us: int) -> float:
        """Time since the last acknowledgement that moved, while one is owed by a reader that ever gave one."""
        if self.unacknowledged_since_us == 0:
            return 0.0
        owed = any(Position(0, 0) < cursor.acknowledged < cursor.position for cursor in self.cursors.values())
        if not owed:
            self.unacknowledged_since_us = now_us
        return (now_us - self.unacknowledged_since_us) / 1e6

    def _tell(self, message: Message) -> None:
        """Lets this be told before any signal."""
        self._control.append(message)
        self.is_quiet = False

    def _see(self, cursor: Cursor, now_us: int) -> None:
        """Files a cursor under what it needs next, and tells its state if that changed."""
        self.is_quiet = False
        cursor.note_sync()
        if cursor.sync_changed:
            self._note_turn(cursor, now_us)
            self._tell_sync(cursor, now_us)
        if cursor.place is Place.BEHIND:
            self._behind[cursor] = None
        else:
            self._behind.pop(cursor, None)
        if cursor.has_next:
            self._ready[cursor] = None
        else:
            self._ready.pop(cursor, None)

    def _note_turn(self, cursor: Cursor, now_us: int) -> None:
        done = cursor.full_sync_told if cursor.sync is Sync.SYNCED else 0
        position = ZERO if cursor.sync is Sync.RESYNCING else cursor.scanned
        self._turned.append(Turn(cursor, cursor.sync, cursor.sync_reason, now_us, position, done))

    def _tell_sync(self, cursor: Cursor, now_us: int) -> None:
        cursor.sync_changed = False
        if cursor.pause is not Pause.NONE:
            # A pause counts before sync; what sync is then is told when the pause ends.
            return
        state = _STATES[cursor.sync]
        self._tell(state_change_message(cursor.master_id, state, cursor.sync_reason, now_us))

    def _tell_pause(self, cursor: Cursor, reason: str, now_us: int) -> None:
        state = _PAUSED_STATES.get(cursor.pause) or _STATES[cursor.sync] or pb.SUBSCRIPTION_STATE_SYNCED
        self._tell(state_change_message(cursor.master_id, state, reason, now_us))


def state_of(cursor: Cursor) -> pb.SubscriptionState.ValueType:
    """The cursor's state as ListStreams tells it: a pause counts before sync."""
    return _PAUSED_STATES.get(cursor.pause) or _STATES[cursor.sync]


def _flush(joined: list[Slice], out: list[Message]) -> None:
    if joined:
        out.append(joined_message(joined))
    joined.clear()
