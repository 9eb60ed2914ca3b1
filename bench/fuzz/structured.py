"""Bodies that parse, with fields that a hostile but licensed master might choose; it signs nothing."""

from __future__ import annotations

from random import Random
from typing import Final, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from execution.common.v1.snapshot_pb2 import Snapshot
from execution.ingest.v1 import frames_pb2 as pb

_NUMBERS: Final = (
    0, 1, 2, 3, 9, 10, -1, -(2**31), 2**31 - 1, 2**31, 2**32 - 1, 2**53 - 1, 2**53, 2**62, 2**63 - 1,
    2**63, 2**64 - 1, -(2**63), 253_402_300_800_000_000,
)  # fmt: skip
_TEXTS: Final = (
    "", " ", "EURUSD", "E" * 32, "E" * 33, "é" * 32, "\x00", "\x1f", "\x7f", "\n", "\u2028", "\ud7ff", "\U0010ffff",
    "x" * 64, "x" * 65, "é" * 32 + "x", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x" * 5_000,
)  # fmt: skip
_CHANGES_MAX: Final = 3
_REPEATS: Final = (2, 40, 511, 512, 513, 1_001)
_DEPTH_MAX: Final = 3


def structured(kind: str, body: bytes, random: Random, expected: int) -> bytes:
    """A body of the kind, mostly at the sequence that is expected, with none to a few fields changed."""
    message: Message
    match kind:
        case "signals":
            message = batch = pb.SignalBatch.FromString(body)
            batch.first_sequence = max(0, expected + random.choice((0, 0, 0, 0, 0, -1, 1, -3)))
        case "gap_fill":
            message = gap = pb.GapFillBody.FromString(body)
            many = gap.to_sequence - gap.from_sequence
            gap.from_sequence = expected
            gap.to_sequence = expected + many
        case _:
            message = snapshot = Snapshot.FromString(body)
            snapshot.as_of.sequence = max(0, expected - random.choice((0, 1, 1, 1, 2)))
    for _ in range(random.choice((0, 0, 1, 1, 2, _CHANGES_MAX))):
        _change(message, random, _DEPTH_MAX)
    return message.SerializeToString()


def _change(message: Message, random: Random, depth: int) -> None:
    """Changes one field of the message or of one inside it."""
    field = cast(FieldDescriptor, random.choice(list(message.DESCRIPTOR.fields)))
    value = getattr(message, field.name)
    if field.message_type is not None:
        if not field.is_repeated:
            _change(value, random, depth - 1)
        elif value and random.random() < 0.1:
            value.extend([value[0]] * (random.choice(_REPEATS) - len(value)))
        elif value and depth > 0:
            _change(random.choice(value), random, depth - 1)
        return
    _set(message, field, random)


def _set(message: Message, field: FieldDescriptor, random: Random) -> None:
    value = random.choice(_TEXTS) if field.type == FieldDescriptor.TYPE_STRING else random.choice(_NUMBERS)
    try:
        setattr(message, field.name, value)
    except ValueError:
        # The number does not fit the field's type: such bytes are for the mutations below the structure.
        return
