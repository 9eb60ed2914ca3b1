"""Byte format of the subscriber's journal. Pure: bytes in, entries out.

    file  = magic (8 bytes) | block*
    block = CRC-32 of all that follows in the block (u32) | length of the entries (u32) | entries
    entry = type (u8) | kind (u8) | action (u8) | reason (u8) | epoch (u32) | previous epoch (u32) | latency (u32, µs)
          | master_id (u64) | sequence (u64) | previous sequence (u64) | ticket (u64) | received at (i64, µs)
          | for the types with a body: length (u32) | body

A SIGNAL with a body stands there with the type 9; those of older versions have none.

All integers are little-endian. What one message brought is one block: whole in the journal, or not at all.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ecp_client.positions import Position

MAGIC = b"ECPJRN1\n"
LATENCY_US_MAX = 0xFFFF_FFFF

_BLOCK = struct.Struct("<II")
_ENTRY = struct.Struct("<BBBBIIIQQQQq")
_BODY_LENGTH = struct.Struct("<I")
pack_body_length = _BODY_LENGTH.pack
_CRC = struct.Struct("<I")

ENTRY_BYTES = _ENTRY.size
pack_entry = _ENTRY.pack
"""Packs the fixed fields of an entry in the order above."""


class EntryType(enum.IntEnum):
    """What an entry tells."""

    SIGNAL = 1
    """A signal was received and decided; `position` is its own, `previous` the one before it. Body: the Signal, for it
    may never come again."""
    GAP = 2
    """Positions will not come: `previous` was held before, `position` is held after; kind is the GapReason."""
    SNAPSHOT = 3
    """A full sync: signals behind `previous` and up to `position` were not delivered, but are in the snapshot."""
    PROGRESS = 4
    """The position moved over what the stream had nothing to say about."""
    CHECKPOINT = 5
    """Mirror and account as of `position`. Body: length of the snapshot (u32) | Snapshot | the account as JSON
    | line feed | `statements` about the mirror; older versions end with the account. Kind: the sum of WITHHELD (the
    mirror lacks what a pause withheld) and DEGRADED (a full sync beyond `previous` is due)."""
    CLOSED_BY_USER = 6
    """The user closed position `ticket` (kind OPEN) or cancelled order `ticket` (kind PENDING_PLACE) by hand, when the
    account was as of `position`."""
    REFUSED_BY_BROKER = 7
    """The broker refused what was decided to be copied: kind, ticket and position as in CLOSED_BY_USER."""
    SCALE = 8
    """What the signal at `position`, which follows, opens is scaled by. Body: a copying.Scale as text."""


WITHHELD = 1
DEGRADED = 2

SIGNAL_WITH_BODY = 9
_WITH_BODY = frozenset((EntryType.CHECKPOINT, EntryType.SCALE, SIGNAL_WITH_BODY))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a journal."""

    entry_type: EntryType
    master_id: int
    position: Position
    previous: Position
    received_at_us: int
    """By this machine's clock."""
    kind: int = 0
    """SignalKind of a SIGNAL, GapReason of a GAP."""
    action: int = 0
    """copying.Action of a SIGNAL."""
    reason: int = 0
    """copying.Reason of a SIGNAL or a REFUSED_BY_BROKER."""
    latency_us: int = 0
    """From the master's send to the receipt, for a SIGNAL, by the server's clock; 0 where it was not known."""
    ticket: int = 0
    """The master's position_id, or its order_id for a signal about a pending order only."""
    body: bytes = b""


def encode(entry: Entry) -> bytes:
    """One entry as it stands in a block. The hot path packs signals itself, with `pack_entry`."""
    written_type = int(entry.entry_type)
    if entry.body and entry.entry_type is EntryType.SIGNAL:
        written_type = SIGNAL_WITH_BODY
    fixed = _ENTRY.pack(
        written_type,
        entry.kind,
        entry.action,
        entry.reason,
        entry.position.epoch,
        entry.previous.epoch,
        min(entry.latency_us, LATENCY_US_MAX),
        entry.master_id,
        entry.position.sequence,
        entry.previous.sequence,
        entry.ticket,
        entry.received_at_us,
    )
    if written_type in _WITH_BODY:
        return fixed + _BODY_LENGTH.pack(len(entry.body)) + entry.body
    return fixed


def block(entries: bytes) -> bytes:
    """One block of encoded entries."""
    length = _BODY_LENGTH.pack(len(entries))
    return _CRC.pack(zlib.crc32(entries, zlib.crc32(length))) + length + entries


def parse_block(data: bytes, offset: int) -> tuple[bytes, int] | None:
    """The entries of the block at `offset` and where it ends, or None when there is no whole and undamaged one."""
    if len(data) - offset < _BLOCK.size:
        return None
    crc, length = _BLOCK.unpack_from(data, offset)
    start = offset + _BLOCK.size
    entries = data[start : start + length]
    if len(entries) != length or zlib.crc32(entries, zlib.crc32(data[offset + 4 : start])) != crc:
        return None
    return entries, start + length


def block_end(data: bytes, offset: int) -> int:
    """Where the block at `offset` ends by its own account, which may be damaged."""
    if len(data) - offset < _BLOCK.size:
        return len(data)
    _, length = _BLOCK.unpack_from(data, offset)
    return offset + _BLOCK.size + int(length)


def parse_entries(data: bytes) -> Iterator[Entry]:
    """The entries of one block.

    Raises:
        ValueError: an entry is of a type that this version does not know.
    """
    offset = 0
    while offset < len(data):
        fields = _ENTRY.unpack_from(data, offset)
        offset += _ENTRY.size
        entry_type = EntryType.SIGNAL if fields[0] == SIGNAL_WITH_BODY else EntryType(fields[0])
        body = b""
        if fields[0] in _WITH_BODY:
            (length,) = _BODY_LENGTH.unpack_from(data, offset)
            body = data[offset + 4 : offset + 4 + length]
            offset += 4 + length
        _, kind, action, reason, epoch, previous_epoch, latency_us, *rest = fields
        master_id, sequence, previous_sequence, ticket, received_at_us = rest
        yield Entry(
            entry_type,
            master_id,
            Position(epoch, sequence),
            Position(previous_epoch, previous_sequence),
            received_at_us,
            kind,
            action,
            reason,
            latency_us,
            ticket,
            body,
        )


def checkpoint_body(snapshot: bytes, account: bytes, statements: bytes) -> bytes:
    """The body of a CHECKPOINT. Neither of the last two has a line feed in it."""
    return _BODY_LENGTH.pack(len(snapshot)) + snapshot + account + b"\n" + statements


def parse_checkpoint(body: bytes) -> tuple[bytes, bytes, bytes]:
    """Snapshot, account and statements of a CHECKPOINT's body; the last are empty where an older version wrote it.

    Raises:
        ValueError: it is too short to be one.
    """
    if len(body) < _BODY_LENGTH.size:
        raise ValueError("a checkpoint without a body")
    (length,) = _BODY_LENGTH.unpack_from(body)
    account, _, statements = body[4 + length :].partition(b"\n")
    return body[4 : 4 + length], account, statements
