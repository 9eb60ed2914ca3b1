"""Checks of single request fields; each returns the checked value or raises InvalidInputError naming the field."""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from uuid import UUID

from services.common.errors import InvalidInputError

INT64_MAX: Final = 2**63 - 1
MASTER_ID_MAX: Final = INT64_MAX
SEQUENCE_MAX: Final = 2**53 - 1
REQUEST_ID_BYTES_MAX: Final = 64
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
EMAIL_CHARACTERS_MAX: Final = 254
TOKEN_BYTES_MAX: Final = 128
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def uuid_of(text: str, field: str) -> UUID:
    """A UUID in its usual form of 36 characters."""
    if _UUID.fullmatch(text) is None:
        raise InvalidInputError.of_field(field, "is not a UUID")
    return UUID(text)


def request_id_of(text: str, field: str = "request_id", *, bytes_max: int = REQUEST_ID_BYTES_MAX) -> str:
    """An idempotency key: printable ASCII."""
    if not 1 <= len(text) <= bytes_max or not (text.isascii() and text.isprintable()):
        raise InvalidInputError.of_field(field, f"is not 1 to {bytes_max} printable ASCII characters")
    return text


def text_of(text: str, field: str, *, characters_max: int, characters_min: int = 1) -> str:
    """Text for people, without control characters."""
    if not characters_min <= len(text) <= characters_max:
        raise InvalidInputError.of_field(
            field, f"is not {characters_min} to {characters_max} characters long"
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise InvalidInputError.of_field(field, "contains a control character")
    return text


def email_of(text: str, field: str = "email") -> str:
    """An e-mail address: something@domain.tld; whether anybody reads it is not ours to know."""
    text_of(text, field, characters_max=EMAIL_CHARACTERS_MAX, characters_min=0)
    if _EMAIL.fullmatch(text) is None:
        raise InvalidInputError.of_field(field, "is not an e-mail address")
    return text


def master_id_of(number: int, field: str = "master_id") -> int:
    """A master's number."""
    if not 1 <= number <= MASTER_ID_MAX:
        raise InvalidInputError.of_field(field, "is not a master's number")
    return number


def position_of(epoch: int, sequence: int, field: str) -> tuple[int, int]:
    """A position (epoch, sequence); epoch 0 only in (0, 0)."""
    if epoch > INT64_MAX or sequence > SEQUENCE_MAX or (epoch == 0 and sequence != 0):
        raise InvalidInputError.of_field(field, f"({epoch}, {sequence}) is not a position")
    return epoch, sequence


def page_size_of(size: int, field: str = "page_size") -> int:
    """A page size; 0 means the default."""
    if size > PAGE_SIZE_MAX:
        raise InvalidInputError.of_field(field, f"is above {PAGE_SIZE_MAX}")
    return size or PAGE_SIZE_DEFAULT


def between(number: int, low: int, high: int, field: str) -> int:
    """A number within bounds, both included."""
    if not low <= number <= high:
        raise InvalidInputError.of_field(field, f"is not in {low}..{high}")
    return number
