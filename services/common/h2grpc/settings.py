"""The bounds of the HTTP/2 edge, from the environment; it enforces none."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings


class Http2Settings(ServiceSettings):
    """What a service reads that serves through `services.common.h2grpc`."""

    http2_connections_max: int = Field(default=20_000, ge=1, le=10_000_000)
    """Connections beyond are told to go away at once."""
    http2_streams_per_connection_max: int = Field(default=1_000, ge=1, le=1_000_000)
    http2_read_bytes_max: int = Field(default=4_096, ge=1_024, le=262_144)
    """What is read of a connection before the others have their turn."""
    http2_output_bytes_high: int = Field(default=32_768, ge=4_096, le=2**30)
    """From here on streams of a connection wait until its peer has read."""
    http2_output_bytes_max: int = Field(default=98_304, ge=8_192, le=2**30)
    """A connection that owes its peer more than this is cut off: answers to a peer that never reads count too."""
    http2_send_buffer_bytes: int = Field(default=32_768, ge=4_096, le=2**30)
    """The kernel's send buffer of a connection (Linux doubles it); its own choice is megabytes for slow readers."""
    http2_request_bytes_max: int = Field(default=8 * 1024 * 1024, ge=65_536, le=2**30)
    """Incomplete requests and the metadata of calls that one connection may make us keep."""
    http2_header_list_bytes_max: int = Field(default=16_384, ge=4_096, le=2**24)
    """Metadata beyond is refused with RESOURCE_EXHAUSTED, beyond four times as much the connection is ended."""

    http2_handshake_seconds_max: float = Field(default=10.0, gt=0, le=600)
    """From accepting a connection to its first SETTINGS, TLS included."""
    http2_request_seconds_max: float = Field(default=30.0, gt=0, le=3_600)
    """From a request's headers to its last byte, for methods that take one message."""
    http2_keepalive_seconds: float = Field(default=60.0, gt=0, le=7_200)
    """A connection is pinged after this silence."""
    http2_keepalive_timeout_seconds: float = Field(default=20.0, gt=0, le=600)
    """A connection is dropped when a ping stays unanswered, or written bytes unacknowledged, for this long."""
    http2_stall_seconds_max: float = Field(default=120.0, gt=0, le=7_200)
    """A stream is reset when its peer takes nothing of what waits for it for this long."""
    http2_last_message_seconds_max: float = Field(default=5.0, gt=0, le=600)
    """A stream that ends while its peer takes a message has this long for the rest, so that its status can follow."""
    http2_idle_seconds_max: float = Field(default=900.0, gt=0, le=86_400)
    """A connection without calls is told to go away after this time."""
    http2_connection_age_grace_seconds: float = Field(default=30.0, ge=0, le=3_600)
    """What calls may still take on a connection that has reached its age."""
