"""gRPC's wire format over HTTP/2 (PROTOCOL-HTTP2.md): messages, metadata, timeouts and status; it sends nothing."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final

import grpc

from services.common.errors import ServiceError

Metadata = tuple[tuple[str, str | bytes], ...]

CONTENT_TYPE: Final = b"application/grpc"
MESSAGE_PREFIX_BYTES: Final = 5
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS: Final = {b"H": 3_600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# Call-definition headers: they belong to the protocol, not to the application.
_RESERVED: Final = frozenset(
    {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-message-type"}
)
_PERCENT_ENCODED: Final = re.compile(rb"[^ -$&-~]")


class StatusError(Exception):
    """A call that ends before its handler, with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def prefixed(message: bytes) -> bytes:
    """The message with its prefix: not compressed, and its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def is_grpc(content_type: bytes) -> bool:
    """Whether a content-type names gRPC: alone, or with a subtype or parameters."""
    if content_type == CONTENT_TYPE:
        return True
    # RFC 9110, 8.3.1 and 5.6.6: in capitals too, and with a space before parameters.
    rest = content_type[len(CONTENT_TYPE) :].lstrip(b" \t")
    return content_type.lower().startswith(CONTENT_TYPE) and rest[:1] in (b"", b"+", b";")


def timeout_seconds(value: bytes) -> float:
    """The seconds of a grpc-timeout.

    Raises:
        StatusError: malformed.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise StatusError(grpc.StatusCode.INTERNAL, "malformed grpc-timeout")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def metadata_of(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The application's metadata, binary values decoded.

    Raises:
        StatusError: a binary value is not base64.
    """
    found: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name[:1] == b":" or name in _RESERVED:
            continue
        key = name.decode("latin-1")
        if name.endswith(b"-bin"):
            found += [(key, _binary(key, one)) for one in value.split(b",")]
        else:
            found.append((key, value.decode("latin-1")))
    return tuple(found)


def _binary(key: str, value: bytes) -> bytes:
    stripped = value.strip().rstrip(b"=")
    try:
        return base64.b64decode(stripped + b"=" * (-len(stripped) % 4), validate=True)
    except binascii.Error as error:
        raise StatusError(grpc.StatusCode.INTERNAL, f"metadata {key} is not base64") from error


def metadata_headers(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Metadata as headers; values of -bin keys in base64 without padding.

    Raises:
        ServiceError: a text value holds what a header cannot.
    """
    headers: list[tuple[bytes, bytes]] = []
    for key, value in metadata:
        if key.endswith("-bin"):
            data = value.encode() if isinstance(value, str) else bytes(value)
            headers.append((key.encode("ascii"), base64.b64encode(data).rstrip(b"=")))
            continue
        text = value.encode("latin-1") if isinstance(value, str) else bytes(value)
        if any(not 0x20 <= byte <= 0x7E for byte in text):
            raise ServiceError(f"metadata {key} cannot be sent as text: name it {key}-bin")
        headers.append((key.encode("ascii"), text.strip()))
    return headers


def status_headers(code: int, message: str) -> list[tuple[bytes, bytes]]:
    """grpc-status and, if there is one, grpc-message, percent-encoded."""
    headers = [(b"grpc-status", b"%d" % code)]
    if message:
        encoded = _PERCENT_ENCODED.sub(lambda match: b"%%%02X" % match[0][0], message.encode())
        headers.append((b"grpc-message", encoded))
    return headers


class MessageDecoder:
    """Turns the DATA of one request into messages. Knows no streams."""

    __slots__ = ("_data", "_message_bytes_max")

    def __init__(self, *, message_bytes_max: int) -> None:
        self._data = bytearray()
        self._message_bytes_max = message_bytes_max

    @property
    def buffered_bytes(self) -> int:
        """What was received and not handed out."""
        return len(self._data)

    def receive_data(self, data: bytes) -> None:
        """Takes the next bytes."""
        self._data += data

    def next_message(self) -> bytes | None:
        """Oldest complete message, or None if more bytes are needed.

        Raises:
            StatusError: it is compressed, or too large; every later call raises it again.
        """
        data = self._data
        if len(data) < MESSAGE_PREFIX_BYTES:
            return None
        if data[0]:
            # Whoever names an encoding was refused before (compression.md, "A compressed message with identity").
            raise StatusError(
                grpc.StatusCode.INTERNAL, "the message says that it is compressed, but no encoding was named"
            )
        end = MESSAGE_PREFIX_BYTES + int.from_bytes(data[1:MESSAGE_PREFIX_BYTES], "big")
        if end - MESSAGE_PREFIX_BYTES > self._message_bytes_max:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"a message may have {self._message_bytes_max} bytes, not {end - MESSAGE_PREFIX_BYTES}",
            )
        if len(data) < end:
            return None
        message = bytes(data[MESSAGE_PREFIX_BYTES:end])
        del data[:end]
        return message
