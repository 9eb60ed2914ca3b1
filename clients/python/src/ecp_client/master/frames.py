"""The front door's frames as a master sends and receives them, and their MACs. Pure: bytes in, bytes out."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from ecp_client.errors import ServerProtocolError
from execution.ingest.v1 import frames_pb2 as pb

LENGTH_BYTES = 4
# A server's frame is small; more than this is not one.
SERVER_FRAME_BYTES_MAX = 65_536
# What a frame adds to the signals in it, at most: lengths, tags, MAC, first_sequence, sent_at_us.
SIGNALS_OVERHEAD_BYTES = 128

_SHORT_VARINTS = tuple(bytes((value,)) for value in range(128))


def varint(value: int) -> bytes:
    """A protobuf varint of 0 <= value < 2^64."""
    if value < 128:
        return _SHORT_VARINTS[value]
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def frame(payload: bytes) -> bytes:
    """Length prefix and payload."""
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The MAC keys of one session, one for each kind of signed body."""

    signals: bytes
    snapshot: bytes
    gap_fill: bytes


def mac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104)."""
    return hmac.digest(key, message, "sha256")


def login_mac(secret: bytes, client_nonce: bytes, server_nonce: bytes, body: bytes) -> bytes:
    """What proves a Login: HMAC(secret, "login" | client nonce | server nonce | body)."""
    return mac(secret, b"login" + client_nonce + server_nonce + body)


def session_keys(secret: bytes, client_nonce: bytes, server_nonce: bytes) -> SessionKeys:
    """HMAC(secret, label | client nonce | server nonce) for the labels session, snapshot and gapfill."""
    nonces = client_nonce + server_nonce
    return SessionKeys(
        signals=mac(secret, b"session" + nonces),
        snapshot=mac(secret, b"snapshot" + nonces),
        gap_fill=mac(secret, b"gapfill" + nonces),
    )


def batch_body(
    first_sequence: int, sent_at_us: int, signals: Sequence[bytes], traceparent: str = ""
) -> bytes:
    """A serialized SignalBatch, made of signals that are serialized already."""
    parts = [b"\x08", varint(first_sequence), b"\x10", varint(sent_at_us)]
    for signal in signals:
        parts += (b"\x1a", varint(len(signal)), signal)
    if traceparent:
        encoded = traceparent.encode()
        parts += (b"\x22", varint(len(encoded)), encoded)
    return b"".join(parts)


def signed_frame(kind: bytes, key: bytes, body: bytes) -> bytes:
    """The frame of a signed body; `kind` is one of the tags below."""
    signed = b"\x0a" + varint(len(body)) + body + b"\x12\x20" + mac(key, body)
    payload = kind + varint(len(signed)) + signed
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


# Tags of ClientFrame's fields for signed bodies: (field number << 3) | length-delimited.
SIGNALS_TAG = b"\x1a"
SNAPSHOT_TAG = b"\x22"
GAP_FILL_TAG = b"\x2a"


class FrameDecoder:
    """Turns one connection's bytes into the server's frames. Knows no sockets."""

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._error: ServerProtocolError | None = None

    def receive_data(self, data: bytes) -> None:
        """Adds what came in."""
        rest = self._data[self._position :]
        self._data = rest + data if rest else data
        self._position = 0

    def next_frame(self) -> pb.ServerFrame | None:
        """Oldest complete frame, or None if more bytes are needed.

        Raises:
            ServerProtocolError: not a frame of this protocol; every later call raises it again.
        """
        if self._error is not None:
            raise self._error
        start = self._position + LENGTH_BYTES
        if len(self._data) < start:
            return None
        length = int.from_bytes(self._data[self._position : start], "big")
        if not 1 <= length <= SERVER_FRAME_BYTES_MAX:
            raise self._fail(f"the server sent a frame of {length} bytes; is this a front door's address?")
        if len(self._data) < start + length:
            return None
        self._position = start + length
        try:
            return pb.ServerFrame.FromString(self._data[start : start + length])
        except DecodeError:
            raise self._fail("the server sent a frame that is not a ServerFrame") from None

    def _fail(self, message: str) -> ServerProtocolError:
        self._error = ServerProtocolError(message)
        return self._error
