"""Seals masters' signing secrets for the database with AES-256-GCM; it never stores or logs one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.common.errors import ConfigurationError, ServiceError

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_KEY_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret as it is stored: 12 bytes nonce, ciphertext, 16 bytes tag; and which key sealed it."""

    ciphertext: bytes
    sealing_key_id: bytes


class Sealer:
    """Seals and opens under one key. Each secret is bound to its master and key_id, so rows cannot be swapped."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._key_id = hashlib.sha256(b"ecp sealing key\0" + key).digest()[:_KEY_ID_BYTES]

    @classmethod
    def from_base64(cls, text: str) -> Sealer:
        """The sealer for a key as KEY_ENCRYPTION_KEY holds it.

        Raises:
            ConfigurationError: it is not the base64 of 32 bytes.
        """
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise ConfigurationError(
                "is not the base64 of 32 bytes",
                where="KEY_ENCRYPTION_KEY",
                do="make one with: openssl rand -base64 32",
            )
        return cls(key)

    def seal(self, secret: bytes, *, master_id: int, key_id: str) -> Sealed:
        """Seals a secret under a fresh random nonce."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return Sealed(nonce + self._cipher.encrypt(nonce, secret, _context(master_id, key_id)), self._key_id)

    def open(self, sealed: Sealed, *, master_id: int, key_id: str) -> bytes:
        """The secret.

        Raises:
            ServiceError: it was sealed under another key, or the row was damaged or moved; the caller learns INTERNAL.
        """
        if sealed.sealing_key_id != self._key_id:
            raise ServiceError(
                f"the signing key {key_id} of master {master_id} was sealed under another KEY_ENCRYPTION_KEY",
                reason="SEALED_UNDER_ANOTHER_KEY",
            )
        nonce, ciphertext = sealed.ciphertext[:_NONCE_BYTES], sealed.ciphertext[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, ciphertext, _context(master_id, key_id))
        except InvalidTag as error:
            raise ServiceError(
                f"the sealed signing key {key_id} of master {master_id} is damaged", reason="SEALED_DAMAGED"
            ) from error


def _context(master_id: int, key_id: str) -> bytes:
    return f"ecp signing key\0{master_id}\0{key_id}".encode()
