"""What a master client must be told, and its limits. Pure data."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ecp_client.addresses import check_addresses, check_license_token
from ecp_client.errors import SettingsError
from ecp_client.master.outbox import OutboxSettings

CLIENT_BYTES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSettings:
    """One master's identity, where to connect, and every limit of its client.

    Raises:
        SettingsError: a value is missing, out of range, or contradicts another.
    """

    addresses: Sequence[str]
    """`host:port` of the front doors, tried in turn from a random one on."""
    master_id: int
    key_id: str
    secret: bytes = field(repr=False)
    """The signing key's secret, as the ledger gave it out (32 bytes)."""
    license_token: str = field(repr=False)
    outbox_folder: Path
    """A folder of this master's own; it must survive restarts."""
    plaintext: bool = False
    """No TLS: only for loopback, or a network that nobody else is on."""
    ca_file: Path | None = None
    """Certificates to trust, PEM; None is the system's store."""
    ssl_context: ssl.SSLContext | None = None
    """Overrides `ca_file`, as for client certificates."""
    server_hostname: str | None = None
    """The name that the server's certificate must have, where it is not the address's host."""
    client: str = ""
    """Name and version of the bridge, for the operator's eyes, at most 64 bytes."""
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    fsync_interval_seconds: float = 0.1
    """For FsyncPolicy.INTERVAL."""
    batch_delay_seconds_max: float = 0.001
    """Under load, how long a signal may wait for others to share its frame; a lone signal never waits."""
    connect_timeout_seconds: float = 10.0
    login_timeout_seconds: float = 10.0
    reconnect_seconds_min: float = 0.1
    reconnect_seconds_max: float = 10.0
    """Reconnects wait a random time up to a limit that doubles from the first value to this one."""
    refused_seconds_max: float = 60.0
    """The same after a refused login; a new license token ends the wait. Nor is a server's word taken for longer."""
    fenced_max: int = 3
    """So many times in a row another login of the same master may take over before this client gives up."""
    snapshot_every_signals: int = 1_000
    """A snapshot is sent after so many signals; 0 is never."""
    snapshot_every_seconds: float = 30.0
    """And after this long, if there were signals; 0 is never."""
    snapshot_seconds_min: float = 1.0
    """But not more often than this, unless the server asks."""
    close_timeout_seconds: float = 5.0
    """How long `close` waits for the last acknowledgements."""

    def __post_init__(self) -> None:
        if not self.addresses:
            raise SettingsError("addresses must name at least one front door, as host:port")
        check_addresses("addresses", self.addresses)
        if self.master_id <= 0 or not self.key_id or not self.secret or not self.license_token:
            raise SettingsError("master_id, key_id, secret and license_token are all required")
        if not isinstance(self.secret, bytes):
            raise SettingsError("secret must be bytes, as the ledger gave it out")
        check_license_token(self.license_token)
        if not isinstance(self.outbox_folder, Path):
            raise SettingsError("outbox_folder must be a pathlib.Path")
        if len(self.client.encode()) > CLIENT_BYTES_MAX:
            raise SettingsError(f"client must be at most {CLIENT_BYTES_MAX} bytes")
        if self.plaintext and (self.ssl_context or self.ca_file):
            raise SettingsError("plaintext contradicts ssl_context and ca_file")
        if not 0 < self.reconnect_seconds_min <= self.reconnect_seconds_max <= self.refused_seconds_max:
            raise SettingsError(
                "reconnect_seconds_min, reconnect_seconds_max, refused_seconds_max must ascend"
            )

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context to connect with; None is plaintext.

        Raises:
            SettingsError: ca_file cannot be read.
        """
        if self.plaintext:
            return None
        if self.ssl_context is not None:
            return self.ssl_context
        try:
            return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except OSError as error:
            raise SettingsError(f"ca_file {self.ca_file} cannot be read: {error}") from error
