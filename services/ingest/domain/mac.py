"""HMAC-SHA256 as the front door uses it, with a key's two hash states computed once; it keeps no session."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

MAC_BYTES: Final = 32
_BLOCK_BYTES: Final = 64
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))


class MacKey:
    """One HMAC-SHA256 key (RFC 2104): keys longer than 64 bytes are hashed first, shorter ones padded with zeros.

    Keeping both padded states makes one MAC of a short message half as dear as `hmac.digest`.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        if len(key) > _BLOCK_BYTES:
            key = sha256(key).digest()
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = sha256(block.translate(_INNER))
        self._outer = sha256(block.translate(_OUTER))

    def mac(self, message: bytes) -> bytes:
        """The 32 bytes of the MAC."""
        inner = self._inner.copy()
        inner.update(message)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()

    def fits(self, message: bytes, mac: bytes) -> bool:
        """Whether `mac` is the message's, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.mac(message), mac)


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of one session, one for each kind of signed body, so that no body passes for one of another kind."""

    signals: MacKey
    snapshot: MacKey
    gap_fill: MacKey


def login_mac(secret: bytes, client_nonce: bytes, server_nonce: bytes, body: bytes) -> bytes:
    """What a Login carries: HMAC(secret, "login" | client nonce | server nonce | body)."""
    return MacKey(secret).mac(b"login" + client_nonce + server_nonce + body)


def session_keys(secret: bytes, client_nonce: bytes, server_nonce: bytes) -> SessionKeys:
    """Derives HMAC(secret, label | client nonce | server nonce) for the labels session, snapshot and gapfill."""
    root, nonces = MacKey(secret), client_nonce + server_nonce
    return SessionKeys(
        signals=MacKey(root.mac(b"session" + nonces)),
        snapshot=MacKey(root.mac(b"snapshot" + nonces)),
        gap_fill=MacKey(root.mac(b"gapfill" + nonces)),
    )
