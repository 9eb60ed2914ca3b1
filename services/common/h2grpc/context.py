"""What a handler sees of its call: the part of grpc.aio's ServicerContext that services use; it runs no handler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

import grpc
from grpc.aio import AbortError

from services.common.errors import ResourceExhaustedError
from services.common.h2grpc.messages import Metadata, metadata_headers, status_headers
from services.common.h2grpc.out_stream import Headers, OutStream

Serialize = Callable[[Any], bytes]
MetadataLike = Iterable[tuple[str, str | bytes]]


class CallContext:
    """One call's context."""

    __slots__ = (
        "_code",
        "_deadline",
        "_details",
        "_is_over",
        "_message_bytes_max",
        "_metadata",
        "_peer",
        "_serialize",
        "_trailing",
        "out",
    )

    def __init__(
        self,
        out: OutStream,
        *,
        metadata: Metadata,
        peer: str,
        timeout_seconds: float | None,
        serialize: Serialize | None,
        message_bytes_max: int,
    ) -> None:
        self.out = out
        self._metadata = metadata
        self._peer = peer
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._serialize = serialize
        self._message_bytes_max = message_bytes_max
        self._code: grpc.StatusCode | int | None = None
        self._details = ""
        self._trailing: Metadata = ()
        self._is_over = False

    # What comes with the call.

    def invocation_metadata(self) -> Metadata:
        """The caller's metadata."""
        return self._metadata

    def peer(self) -> str:
        """The caller's address as gRPC spells it."""
        return self._peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """None: identities come from tokens."""
        return None

    def peer_identity_key(self) -> str | None:
        """None: identities come from tokens."""
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Empty: identities come from tokens."""
        return {}

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline, if it set one."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    # What goes back.

    async def read(self) -> NoReturn:
        """Refused: requests come as the handler's first argument."""
        raise NotImplementedError("requests come as the handler's first argument")

    async def write(self, message: object) -> None:
        """Writes one response; returns when the transport has taken it.

        Raises:
            ResourceExhaustedError: it is larger than a message may be.
        """
        await self._writable()
        self.out.send(self.serialized(message))
        await self._writable()

    def serialized(self, message: Any) -> bytes:
        """The response as bytes.

        Raises:
            ResourceExhaustedError: it is larger than a message may be.
        """
        data: bytes = message if self._serialize is None else self._serialize(message)
        if len(data) > self._message_bytes_max:
            raise ResourceExhaustedError(
                f"a response of {len(data)} bytes is larger than {self._message_bytes_max}",
                reason="RESPONSE_TOO_LARGE",
            )
        return data

    async def send_initial_metadata(self, initial_metadata: MetadataLike) -> None:
        """Sends the response's headers now."""
        self.out.set_initial_metadata(metadata_headers(initial_metadata))
        self.out.send_headers()

    def set_trailing_metadata(self, trailing_metadata: MetadataLike) -> None:
        """Sets what is sent with the status."""
        self._trailing = tuple(trailing_metadata)

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """Sets the status code."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Sets the status message."""
        self._details = details

    async def abort(
        self, code: grpc.StatusCode | int, details: str = "", trailing_metadata: MetadataLike = ()
    ) -> NoReturn:
        """Ends the call with this status.

        Raises:
            AbortError: always, to leave the handler.
        """
        self._code, self._details = code, details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise AbortError("locally aborted")

    def set_compression(self, compression: grpc.Compression) -> None:
        """Ignored: nothing is compressed."""

    def disable_next_message_compression(self) -> None:
        """Nothing is compressed."""

    # How it stands.

    def code(self) -> grpc.StatusCode | int:
        """The status code set so far; 0 when none was."""
        return 0 if self._code is None else self._code

    def details(self) -> str:
        """The status message set so far."""
        return self._details

    def trailing_metadata(self) -> Metadata:
        """What is sent with the status."""
        return self._trailing

    def cancelled(self) -> bool:
        """Whether the caller has gone."""
        return not self.out.is_open and not self._is_over

    def done(self) -> bool:
        """Whether the call is over."""
        return self._is_over or not self.out.is_open

    def add_done_callback(self, callback: Callable[[Any], None]) -> NoReturn:
        """Refused: use `finally` in the handler."""
        raise NotImplementedError("use `finally` in the handler")

    # For the server.

    def trailers(self) -> Headers:
        """The status and the trailing metadata as headers; the call is over."""
        self._is_over = True
        code = self.code()
        number: int = code.value[0] if isinstance(code, grpc.StatusCode) else code
        return [*status_headers(number, self._details), *metadata_headers(self._trailing)]

    async def _writable(self) -> None:
        while self.out.is_open and not self.out.is_writable:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.out.on_writable = partial(_resolve, waiter)
            try:
                await waiter
            finally:
                self.out.on_writable = None


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
