"""Frames on the wire: length-prefixed protobuf, cut out of a byte stream and put into one; it knows no sockets."""

from __future__ import annotations

from typing import Final

from execution.common.v1.position_pb2 import Durability
from execution.ingest.v1 import frames_pb2 as pb

LENGTH_BYTES: Final = 4
FRAME_BYTES_MAX: Final = 65_536

_VARINTS: Final = tuple(
    bytes((value,)) if value < 128 else bytes((value & 127 | 128, value >> 7)) for value in range(16_384)
)
# The lower 14 bits of a larger value: two bytes that say that more follow.
_BEGUN_VARINTS: Final = tuple(bytes((value & 127 | 128, value >> 7 | 128)) for value in range(16_384))


class FrameError(Exception):
    """The byte stream cannot be cut into frames any further; `code` is the reject code that says why."""

    def __init__(self, code: pb.RejectCode.ValueType, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class FrameDecoder:
    """Turns one connection's bytes into frames, pulled one at a time; the payload of each is copied once.

    Holds at most one incomplete frame and what the last `receive_data` brought.
    """

    __slots__ = ("_data", "_error", "_length_bytes_max", "_position")

    def __init__(self, length_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._length_bytes_max = length_bytes_max
        self._data = b""
        self._position = 0
        self._error: FrameError | None = None

    def receive_data(self, data: bytes) -> None:
        """Adds bytes; pull with `next_frame` until it returns None before adding more, or they pile up."""
        position = self._position
        self._data = data if position == len(self._data) else self._data[position:] + data
        self._position = 0

    def next_frame(self) -> bytes | None:
        """The payload of the oldest complete frame, or None if more bytes are needed.

        Raises:
            FrameError: length out of range (MALFORMED or TOO_LARGE); every later call raises it again.
        """
        if self._error is not None:
            raise self._error
        data, start = self._data, self._position + LENGTH_BYTES
        if start > len(data):
            return None
        length = int.from_bytes(data[self._position : start])
        if not 0 < length <= self._length_bytes_max:
            self._error = self._out_of_range(length)
            raise self._error
        end = start + length
        if end > len(data):
            return None
        self._position = end
        return data[start:end]

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for the rest of their frame (after next_frame returned None)."""
        return len(self._data) - self._position

    def _out_of_range(self, length: int) -> FrameError:
        if length == 0:
            return FrameError(pb.REJECT_CODE_MALFORMED, "a frame has at least one byte")
        message = f"the frame has {length} bytes, at most {self._length_bytes_max} are taken"
        return FrameError(pb.REJECT_CODE_TOO_LARGE, message)


def encode_frame(payload: bytes) -> bytes:
    """The frame of one payload, as it goes over TCP."""
    return len(payload).to_bytes(LENGTH_BYTES) + payload


def encode_frames(payloads: list[bytes]) -> bytes:
    """The frames of several payloads, one behind the other."""
    return b"".join([part for payload in payloads for part in (len(payload).to_bytes(LENGTH_BYTES), payload)])


def varint(value: int) -> bytes:
    """A protobuf varint of 0 <= value < 2^64."""
    if value < 16_384:
        return _VARINTS[value]
    return _BEGUN_VARINTS[value & 16_383] + varint(value >> 14)


def ack_payload(sequence: int, durability: Durability.ValueType, credits: int) -> bytes:
    """ServerFrame{ack: Ack{…}} without snapshot_sequence, the one frame that is sent at a high rate."""
    fields = b"\x10" + varint(durability)
    if sequence:
        fields = b"\x08" + varint(sequence) + fields
    if credits:
        fields += b"\x18" + varint(credits)
    return b"\x1a" + varint(len(fields)) + fields
