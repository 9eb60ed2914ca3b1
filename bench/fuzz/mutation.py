"""Changes to bytes, from single bits to spliced messages; all of it follows from one random generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

LENGTH_BYTES_MAX: Final = 70_000
_CHANGES_MAX: Final = 6
_CHUNK_BYTES_MAX: Final = 64

# What protobuf parsers and length checks stumble over: limits of varints, tags of groups, reserved and huge fields.
_AWKWARD: Final = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x80" * 9 + b"\x01",
    b"\xff" * 9 + b"\x01",
    b"\xff" * 10,
    b"\x80" * 11,
    b"\xff\xff\xff\xff\x0f",
    b"\x0b",
    b"\x0c",
    b"\x13\x14",
    b"\x06",
    b"\x00\x01\x00\x00",
    b"\x00\x01\x00\x01",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xfa\xff\xff\xff\x0f\x00",
)

Mutation = Callable[[bytearray, Random, Sequence[bytes]], None]


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """`data` with one to a few changes; `others` are there to be spliced in."""
    changed = bytearray(data)
    for _ in range(random.randint(1, random.randint(1, _CHANGES_MAX))):
        random.choice(_MUTATIONS)(changed, random, others)
    del changed[LENGTH_BYTES_MAX:]
    return bytes(changed)


def _flip_bit(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _add_to_byte(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """Small steps find lengths and tags that are off by one."""
    if data:
        index = random.randrange(len(data))
        data[index] = (data[index] + random.choice((-2, -1, 1, 2))) % 256


def _insert_awkward(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    index = random.randint(0, len(data))
    data[index:index] = random.choice(_AWKWARD)


def _overwrite_awkward(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    index, piece = random.randint(0, len(data)), random.choice(_AWKWARD)
    data[index : index + len(piece)] = piece


def _insert_random(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    index = random.randint(0, len(data))
    data[index:index] = random.randbytes(random.randint(1, _CHUNK_BYTES_MAX))


def _delete(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if data:
        index = random.randrange(len(data))
        del data[index : index + random.randint(1, _CHUNK_BYTES_MAX)]


def _truncate(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if data:
        del data[random.randrange(len(data)) :]


def _repeat(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if data:
        index = random.randrange(len(data))
        piece = data[index : index + random.randint(1, _CHUNK_BYTES_MAX)]
        times = random.choice((1, 2, 8, 200))
        data[index:index] = piece * times


def _splice(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    if others:
        other = random.choice(others)
        index, start = random.randint(0, len(data)), random.randint(0, len(other))
        data[index:] = other[start:]


def _swap(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    if len(data) > 1:
        one, other = random.randrange(len(data)), random.randrange(len(data))
        data[one], data[other] = data[other], data[one]


_MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip_bit,
    _flip_bit,
    _set_byte,
    _add_to_byte,
    _insert_awkward,
    _overwrite_awkward,
    _insert_random,
    _delete,
    _truncate,
    _repeat,
    _splice,
    _swap,
)


def pieces(data: bytes, random: Random, pieces_max: int = 6) -> list[bytes]:
    """The same bytes cut at random places."""
    cuts = sorted(random.randint(0, len(data)) for _ in range(random.randint(0, pieces_max - 1)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
