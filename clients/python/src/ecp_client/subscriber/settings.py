"""What a subscriber client must be told, and its limits. Pure data."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ecp_client.addresses import check_addresses, check_license_token
from ecp_client.copying import CopySettings
from ecp_client.errors import SettingsError
from ecp_client.subscriber.journal import JournalSettings
from ecp_client.subscriber.reporting import Report
from ecp_client.subscriber.track import Start

MASTERS_MAX = 100
CLIENT_BYTES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberSettings:
    """One subscriber's license, where to connect, whom to copy and how, and every limit of its client.

    Raises:
        SettingsError: a value is missing, out of range, or contradicts another.
    """

    addresses: Sequence[str]
    """`host:port` of the fan-out servers, tried in turn from a random one on."""
    license_token: str = field(repr=False)
    masters: Mapping[int, CopySettings] = field(default_factory=dict)
    """Whom to copy and how; empty: all masters that the user follows, with `copy`, from now."""
    copy: CopySettings = field(default_factory=CopySettings)
    """For masters that `masters` does not name."""
    start: Start = Start.SNAPSHOT
    """Where to begin with a master that the journal does not know."""
    journal_folder: Path | None = None
    """A folder of this subscriber's own; None keeps no journal, and a restart begins at `start` again."""
    journal: JournalSettings = field(default_factory=JournalSettings)
    fsync_interval_seconds: float = 0.1
    """For FsyncPolicy.INTERVAL."""
    checkpoint_interval_seconds: float = 10.0
    """How often mirrors and accounts are written to the journal, so that little is replayed after a crash."""
    risk_addresses: Sequence[str] = ()
    """`host:port` of the risk servers; empty reports no outcomes."""
    report: Report = Report.DECISIONS
    outcomes_max: int = 10_000
    """Reports that wait while the risk service cannot be reached."""
    report_interval_seconds: float = 0.5
    plaintext: bool = False
    """No TLS: only for loopback, or a network that nobody else is on."""
    ca_file: Path | None = None
    """Certificates to trust, PEM; None is gRPC's own list."""
    server_hostname: str | None = None
    """The name that the server's certificate must have, where it is not the address's host."""
    client: str = ""
    """Name and version of the bridge, for the operator's eyes, at most 64 bytes."""
    acknowledge_interval_seconds: float = 0.2
    silence_seconds_max: float = 10.0
    """A stream that says nothing for so long, not even Progress, is given up."""
    call_timeout_seconds: float = 5.0
    """For acknowledgements and reports."""
    close_timeout_seconds: float = 5.0
    """How long `close` waits for `on_batch` to finish what it has begun; it will not be given that again."""
    reconnect_seconds_min: float = 0.05
    reconnect_seconds_max: float = 5.0
    """Reconnects wait a random time up to a limit that doubles from the first value to this one."""
    refused_seconds_max: float = 60.0
    """The same after a refused license or subscription; a new token ends the wait."""
    full_sync_seconds_min: float = 1.0
    full_sync_seconds_max: float = 30.0
    """The same between full syncs that did not heal a gap, as when the master has sent no newer snapshot yet."""

    def __post_init__(self) -> None:
        if not self.addresses:
            raise SettingsError("addresses must name at least one fan-out server, as host:port")
        check_addresses("addresses", self.addresses)
        check_addresses("risk_addresses", self.risk_addresses)
        check_license_token(self.license_token)
        self._check_masters()
        if not isinstance(self.journal_folder, Path | None):
            raise SettingsError("journal_folder must be a pathlib.Path")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} must be positive")
        if self.full_sync_seconds_min > self.full_sync_seconds_max:
            raise SettingsError("full_sync_seconds_min is above full_sync_seconds_max")
        if len(self.client.encode()) > CLIENT_BYTES_MAX:
            raise SettingsError(f"client must be at most {CLIENT_BYTES_MAX} bytes")
        if self.plaintext and self.ca_file:
            raise SettingsError("plaintext contradicts ca_file")
        if not 0 < self.reconnect_seconds_min <= self.reconnect_seconds_max <= self.refused_seconds_max:
            raise SettingsError(
                "reconnect_seconds_min, reconnect_seconds_max, refused_seconds_max must ascend"
            )

    def _check_masters(self) -> None:
        masters: object = self.masters
        if not isinstance(masters, Mapping) or len(masters) > MASTERS_MAX:
            raise SettingsError(f"masters must map at most {MASTERS_MAX} ids to their CopySettings")
        for master_id, copy in masters.items():
            if type(master_id) is not int or master_id <= 0 or not isinstance(copy, CopySettings):
                raise SettingsError(f"masters: {master_id!r} is not a positive id with its CopySettings")
        if not isinstance(self.copy, CopySettings):
            raise SettingsError("copy must be CopySettings")

    def check_ca_file(self) -> None:
        """Does nothing if `ca_file` has certificates, or there is none. Raises SettingsError."""
        if self.ca_file is not None:
            try:
                ssl.create_default_context(cafile=str(self.ca_file))
            except OSError as error:
                raise SettingsError(f"ca_file {self.ca_file} cannot be read: {error}") from error


_POSITIVE = (
    "outcomes_max",
    "fsync_interval_seconds",
    "checkpoint_interval_seconds",
    "report_interval_seconds",
    "acknowledge_interval_seconds",
    "silence_seconds_max",
    "call_timeout_seconds",
    "close_timeout_seconds",
    "full_sync_seconds_min",
)
