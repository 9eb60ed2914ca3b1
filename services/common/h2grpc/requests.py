"""What a request's headers ask for, and where it comes from; it answers nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from services.common.h2grpc.handlers import Method
from services.common.h2grpc.messages import Metadata, StatusError, is_grpc, metadata_of, timeout_seconds

# RFC 9113, 6.5.2: a header counts with its name, its value and this.
_HEADER_OVERHEAD_BYTES: Final = 32


class HttpRefusal(Exception):  # an answer of HTTP, not a failure
    """What is asked for is not gRPC; the answer is this HTTP status."""

    def __init__(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(str(status))
        self.headers = [(b":status", b"%d" % status), *headers]


@dataclass(frozen=True, slots=True)
class Request:
    """A call that can be begun."""

    method: Method
    metadata: Metadata
    timeout_seconds: float | None


def request_of(
    headers: Sequence[tuple[bytes, bytes]], methods: Mapping[bytes, Method], *, header_list_bytes_max: int
) -> Request:
    """The call that the headers ask for.

    Raises:
        HttpRefusal: it is not gRPC.
        StatusError: it is, but cannot be served.
    """
    # Of headers that a call has once the first counts.
    found: dict[bytes, bytes] = {}
    size = 0
    for name, value in headers:
        found.setdefault(name, value)
        size += len(name) + len(value) + _HEADER_OVERHEAD_BYTES
    if found.get(b":method") != b"POST":
        # RFC 9110, 15.5.6: with the methods that there are.
        raise HttpRefusal(405, (b"allow", b"POST"))
    if not is_grpc(found.get(b"content-type", b"")):
        raise HttpRefusal(415)
    if size > header_list_bytes_max:
        raise StatusError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"metadata may have {header_list_bytes_max} bytes"
        )
    encoding = found.get(b"grpc-encoding", b"identity")
    if encoding != b"identity":
        raise StatusError(
            grpc.StatusCode.UNIMPLEMENTED, "the message encoding is not supported; use identity"
        )
    method = methods.get(found.get(b":path", b""))
    if method is None:
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    timeout = found.get(b"grpc-timeout")
    return Request(method, metadata_of(headers), None if timeout is None else timeout_seconds(timeout))


def peer_name(address: object) -> str:
    """The peer as gRPC spells it."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "unix:"
    if ":" in str(address[0]):
        return f"ipv6:[{address[0]}]:{address[1]}"
    return f"ipv4:{address[0]}:{address[1]}"
