"""gRPC channels as this library opens them: TLS by default, small buffers, quick reconnects; it makes no calls."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc import aio

from ecp_client.errors import CertificatesError

# Servers of the mesh allow a ping every 20 seconds; gRPC's own minimum elsewhere is five minutes.
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
# A reader that does not keep up lets about 96 KiB pile up in the server, instead of 4 to 6 MiB.
LOOKAHEAD_BYTES = 65_536
RECEIVE_BYTES_MAX = 16 << 20


def channel_options(server_hostname: str | None = None) -> list[tuple[str, int | str]]:
    """The options of every channel."""
    options: list[tuple[str, int | str]] = [
        ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A connection of one's own: clients in one process do not share flow control and fate.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if server_hostname is not None:
        options.append(("grpc.ssl_target_name_override", server_hostname))
    return options


def open_channel(
    address: str, *, plaintext: bool, ca_file: Path | None, server_hostname: str | None
) -> aio.Channel:
    """A channel to `host:port`; nothing is connected yet.

    Raises:
        CertificatesError: ca_file cannot be read.
    """
    options = channel_options(server_hostname)
    if plaintext:
        return aio.insecure_channel(address, options=options)
    try:
        authorities = None if ca_file is None else ca_file.read_bytes()
    except OSError as error:
        raise CertificatesError(f"ca_file {ca_file} cannot be read: {error.strerror}") from error
    return aio.secure_channel(address, grpc.ssl_channel_credentials(authorities), options=options)
