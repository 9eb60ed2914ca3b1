"""Opaque page tokens for keyset pagination; pure, they hold the last key and nothing secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Final, TypeAlias

from services.common.errors import InvalidInputError

Key: TypeAlias = "tuple[int | str, ...]"

_DIGEST_BYTES: Final = 8
_TOKEN_CHARACTERS_MAX: Final = 512


def token_of(listing: str, filters: Key, last: Key) -> str:
    """The token of the page that follows the item with key `last` in this listing with these filters."""
    body = json.dumps(last, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(listing, filters, body) + body).rstrip(b"=").decode("ascii")


def key_of(token: str, listing: str, filters: Key) -> Key | None:
    """The key behind which the page begins; None for the first page (an empty token).

    Raises:
        InvalidInputError: the token is damaged, or of another listing or other filters.
    """
    if not token:
        return None
    try:
        if len(token) > _TOKEN_CHARACTERS_MAX:
            raise ValueError("too long")
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if digest != _digest(listing, filters, body):
            raise ValueError("another listing")
        return tuple(json.loads(body))
    except (ValueError, binascii.Error) as error:
        raise InvalidInputError.of_field("page_token", "is not a token of this listing") from error


def _digest(listing: str, filters: Key, body: bytes) -> bytes:
    scope = json.dumps([listing, *filters], separators=(",", ":")).encode()
    return hashlib.sha256(scope + b"\0" + body).digest()[:_DIGEST_BYTES]
