"""Watches the frames of one connection before h2 sees them, and says when a peer goes too far; it changes no byte.

h2 checks what each frame says. What it leaves to its user is how many come: a SETTINGS or PING is answered each time,
an unknown setting is kept for ever, and a frame is only found too large once all of it was buffered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from h2.errors import ErrorCodes

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384
"""What we let peers send: HTTP/2's default."""

_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(
    10
)
_UNKNOWN: Final = 10
_END_STREAM = _ACK = 0x1
_SETTINGS_ENTRIES_MAX: Final = 32
_CONTINUATIONS_MAX: Final = 16
_SHORT_DATA_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many frames of a kind may come: at once, per second, and for each frame that was sent to the peer."""

    name: str
    burst: float
    per_second: float
    per_sent_frame: float = 0.0


# Clients measure bandwidth with a PING for each round trip in which they receive, and open windows as they read.
_ALLOWANCES: Final = {
    _DATA: Allowance("empty_data", 1_000, 100),
    _PRIORITY: Allowance("priority", 200, 20),
    _RESET: Allowance("reset", 2_000, 200, 1),
    _SETTINGS: Allowance("settings", 50, 2),
    _PING: Allowance("ping", 200, 20, 1),
    _GOAWAY: Allowance("goaway", 10, 0.1),
    _WINDOW_UPDATE: Allowance("window_update", 5_000, 500, 2),
    _UNKNOWN: Allowance("unknown", 200, 20),
}


class AbuseError(Exception):
    """The peer broke a limit; the connection ends with `error_code`."""

    def __init__(self, limit: str, error_code: ErrorCodes = ErrorCodes.ENHANCE_YOUR_CALM) -> None:
        super().__init__(limit)
        self.limit = limit
        self.error_code = error_code


class Bucket:
    """A budget that fills up with time, and with the frames that were sent."""

    __slots__ = ("_allowance", "_at", "_left", "_sent")

    def __init__(self, allowance: Allowance, now: float, sent_frames: int) -> None:
        self._allowance = allowance
        self._left = allowance.burst
        self._at = now
        self._sent = sent_frames

    def spend(self, now: float, sent_frames: int) -> None:
        """Takes one.

        Raises:
            AbuseError: none is left.
        """
        allowance = self._allowance
        refill = (now - self._at) * allowance.per_second
        refill += (sent_frames - self._sent) * allowance.per_sent_frame
        self._left = min(allowance.burst, self._left + refill) - 1
        self._at, self._sent = now, sent_frames
        if self._left < 0:
            raise AbuseError(allowance.name)


class FrameGuard:
    """Follows the frame boundaries in the bytes of one connection."""

    __slots__ = (
        "_block_bytes",
        "_block_bytes_max",
        "_buckets",
        "_continuations",
        "_header",
        "_preface",
        "_skip",
    )

    def __init__(self, *, header_block_bytes_max: int) -> None:
        self._block_bytes_max = header_block_bytes_max
        self._preface = 0
        self._header = b""
        self._skip = 0
        self._block_bytes = 0
        self._continuations = 0
        self._buckets: dict[int, Bucket] = {}

    @property
    def has_begun(self) -> bool:
        """Whether the preface and a SETTINGS frame came."""
        return _SETTINGS in self._buckets

    def receive_data(self, data: bytes, now: float, sent_frames: int) -> None:
        """Sees the next bytes. `sent_frames` counts the DATA frames that the connection was sent so far.

        Raises:
            AbuseError: the peer does not speak HTTP/2, or too much of it.
        """
        position, end = self._skip_preface(data), len(data)
        while position < end:
            if self._skip:
                step = min(self._skip, end - position)
                self._skip -= step
                position += step
                continue
            missing = FRAME_HEADER_BYTES - len(self._header)
            header = self._header + data[position : position + missing]
            position += missing
            if len(header) < FRAME_HEADER_BYTES:
                self._header = header
                return
            self._header = b""
            self._skip = int.from_bytes(header[:3], "big")
            self._see(header[3], header[4], self._skip, now, sent_frames)

    def _skip_preface(self, data: bytes) -> int:
        if self._preface == len(PREFACE):
            return 0
        expected = PREFACE[self._preface : self._preface + len(data)]
        if data[: len(expected)] != expected:
            raise AbuseError("preface", ErrorCodes.PROTOCOL_ERROR)
        self._preface += len(expected)
        return len(expected)

    def _see(self, kind: int, flags: int, length: int, now: float, sent_frames: int) -> None:
        if length > FRAME_BYTES_MAX:
            raise AbuseError("frame_size", ErrorCodes.FRAME_SIZE_ERROR)
        if not self.has_begun and (kind != _SETTINGS or flags & _ACK):
            # RFC 9113, 3.4: the preface includes a SETTINGS frame.
            raise AbuseError("first_frame", ErrorCodes.PROTOCOL_ERROR)
        if kind in (_HEADERS, _CONTINUATION):
            self._see_header_block(kind, flags, length)
            return
        if kind == _SETTINGS and length > _SETTINGS_ENTRIES_MAX * 6:
            raise AbuseError("settings")
        if kind == _DATA and (length > _SHORT_DATA_BYTES or flags & _END_STREAM):
            return
        kind = min(kind, _UNKNOWN)
        if kind == _PUSH:
            return  # h2 ends the connection
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = Bucket(_ALLOWANCES[kind], now, sent_frames)
        bucket.spend(now, sent_frames)

    def _see_header_block(self, kind: int, flags: int, length: int) -> None:
        if kind == _HEADERS:
            self._block_bytes = self._continuations = 0
        else:
            self._continuations += 1
        self._block_bytes += length
        if self._block_bytes > self._block_bytes_max:
            raise AbuseError("header_block")
        if self._continuations > _CONTINUATIONS_MAX:
            raise AbuseError("continuation")
