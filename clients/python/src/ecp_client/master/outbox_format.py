"""Byte formats of the outbox: records, segment headers and the state's two slots. Pure: bytes in, values out.

    segment = magic (8 bytes) | first sequence (u64) | CRC-32 of both (u32) | record*
    record  = CRC-32 of all that follows (u32) | payload length (u16) | sequence (u64) | payload
    state   = slot at offset 0 and slot at offset 512, written in turn; the valid one with the higher generation counts

All integers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from dataclasses import dataclass, field

SEGMENT_MAGIC = b"ECPOUT1\n"
STATE_MAGIC = b"ECPSTA1\n"
SLOT_OFFSETS = (0, 512)

_HEADER = struct.Struct("<8sQI")
_RECORD = struct.Struct("<IHQ")
_RECORD_BODY = struct.Struct("<HQ")
_STATE = struct.Struct("<8sQQQQqQQQ")
_CRC = struct.Struct("<I")

HEADER_BYTES = _HEADER.size
RECORD_BYTES = _RECORD.size
STATE_BYTES = _STATE.size + _CRC.size
PAYLOAD_BYTES_MAX = 0xFFFF
# How far beyond the one before it a record's sequence may lie to be believed when its CRC fits.
HOLE_MAX = 1_000_000


def segment_header(first_sequence: int) -> bytes:
    """The header of a segment whose records start at `first_sequence` or later."""
    head = struct.pack("<8sQ", SEGMENT_MAGIC, first_sequence)
    return head + _CRC.pack(zlib.crc32(head))


def parse_segment_header(data: bytes) -> int | None:
    """The first sequence, or None when this is not a whole and undamaged header."""
    if len(data) < HEADER_BYTES:
        return None
    magic, first_sequence, crc = _HEADER.unpack_from(data)
    if magic != SEGMENT_MAGIC or crc != zlib.crc32(data[: HEADER_BYTES - 4]):
        return None
    return int(first_sequence)


def record(sequence: int, payload: bytes) -> bytes:
    """One record as it stands in the file."""
    body = _RECORD_BODY.pack(len(payload), sequence)
    return _CRC.pack(zlib.crc32(payload, zlib.crc32(body))) + body + payload


def parse_record(data: bytes, offset: int) -> tuple[int, bytes] | None:
    """Sequence and payload of the record at `offset`, or None when there is no whole and undamaged one."""
    if len(data) - offset < RECORD_BYTES:
        return None
    crc, length, sequence = _RECORD.unpack_from(data, offset)
    start = offset + RECORD_BYTES
    payload = data[start : start + length]
    if len(payload) != length or zlib.crc32(payload, zlib.crc32(data[offset + 4 : start])) != crc:
        return None
    return sequence, payload


@dataclass(slots=True)
class Scan:
    """What a segment's bytes hold. `offsets[i]` is where sequence first + i lies; 0 stands for a missing one."""

    first_sequence: int
    offsets: array[int] = field(default_factory=lambda: array("I"))
    end: int = HEADER_BYTES
    """Where the last good record ends; what follows is torn or damaged."""
    damaged: list[tuple[int, int]] = field(default_factory=list)
    """Byte ranges in the middle that could not be read."""


def scan_segment(data: bytes, first_sequence: int) -> Scan:
    """Reads all records of a segment; behind damage it looks for the next good record, byte by byte."""
    scan = Scan(first_sequence)
    offset = HEADER_BYTES
    while offset < len(data):
        found = _believable(scan, data, offset)
        start = offset
        while found is None and offset < len(data) - RECORD_BYTES:
            offset += 1
            found = _believable(scan, data, offset)
        if found is None:
            break
        sequence, length = found
        if offset != start:
            scan.damaged.append((start, offset))
        missing = sequence - (first_sequence + len(scan.offsets))
        scan.offsets.extend([0] * missing)
        scan.offsets.append(offset)
        offset += RECORD_BYTES + length
        scan.end = offset
    return scan


def _believable(scan: Scan, data: bytes, offset: int) -> tuple[int, int] | None:
    """Sequence and payload length of a good record that may stand here."""
    if len(data) - offset < RECORD_BYTES:
        return None
    _, length, sequence = _RECORD.unpack_from(data, offset)
    ahead = sequence - (scan.first_sequence + len(scan.offsets))
    if not 0 <= ahead <= HOLE_MAX or offset + RECORD_BYTES + length > len(data):
        return None
    return None if parse_record(data, offset) is None else (sequence, length)


@dataclass(slots=True)
class OutboxState:
    """What an outbox remembers beside its signals."""

    master_id: int
    generation: int = 0
    epoch: int = 0
    acknowledged: int = 0
    """Last sequence that the server acknowledged, in `epoch`."""
    clock_offset_us: int = 0
    """The server's clock minus this machine's, as last learnt."""
    move_after: int = 0
    """A move is under way: signals behind this sequence ..."""
    move_by: int = 0
    """... become later by this much; 0 when none is under way."""
    flags: int = 0

    @property
    def begin_epoch(self) -> bool:
        """Signals may have been lost before they were acknowledged: the next login must begin an epoch."""
        return bool(self.flags & 1)

    @begin_epoch.setter
    def begin_epoch(self, wanted: bool) -> None:
        self.flags = 1 if wanted else 0

    def to_slot(self) -> bytes:
        """The slot's bytes."""
        body = _STATE.pack(
            STATE_MAGIC,
            self.generation,
            self.master_id,
            self.epoch,
            self.acknowledged,
            self.clock_offset_us,
            self.move_after,
            self.move_by,
            self.flags,
        )
        return body + _CRC.pack(zlib.crc32(body))


def parse_state(data: bytes) -> OutboxState | None:
    """The newer of the valid slots, or None when there is none."""
    slots = [_parse_slot(data[offset : offset + STATE_BYTES]) for offset in SLOT_OFFSETS]
    return max((slot for slot in slots if slot is not None), key=lambda slot: slot.generation, default=None)


def _parse_slot(data: bytes) -> OutboxState | None:
    if len(data) < STATE_BYTES or _CRC.unpack_from(data, _STATE.size)[0] != zlib.crc32(data[: _STATE.size]):
        return None
    magic, generation, master_id, epoch, acknowledged, offset_us, after, by, flags = _STATE.unpack_from(data)
    if magic != STATE_MAGIC:
        return None
    return OutboxState(master_id, generation, epoch, acknowledged, offset_us, after, by, flags)
