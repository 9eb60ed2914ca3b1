"""What the front door reads from its environment; all its bounds have their names here."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from execution.common.v1 import position_pb2
from services.common.settings import Address, CommaSeparated
from services.common.worker import WorkerSettings
from services.ingest.domain.addresses import Network, parse_networks
from services.ingest.domain.values import Limits


class IngestSettings(WorkerSettings):
    """The settings of ingest; each is the environment variable of the same name in upper case."""

    service_name: ClassVar[str] = "ingest"
    shared_addresses: ClassVar[tuple[str, ...]] = ("bind_address", "grpc_bind_address")

    bind_address: Address = Address("0.0.0.0", 9000)
    allow_plaintext: bool = False
    """Plaintext beyond loopback, for a private network behind a firewall."""
    allowed_networks: CommaSeparated = ()
    """Who may connect as a master: addresses or networks, IPv4 or IPv6; empty is everybody."""
    master_ca_file: Path | None = None
    """Masters must show a certificate that this CA signed. TLS_CLIENT_CA_FILE says the same of gRPC's clients."""
    ledger_address: Address = Address("127.0.0.1", 50051)

    # What a session may do; the Welcome tells most of it.
    signal_window: int = Field(default=4_096, ge=1, le=1_000_000)
    heartbeat_seconds: float = Field(default=5.0, ge=0.05, le=300)
    silent_heartbeats_max: int = Field(default=3, ge=2, le=100)
    frame_bytes_max: int = Field(default=65_536, ge=1_024, le=65_536)
    batch_signals_max: int = Field(default=512, ge=1, le=4_096)
    signal_age_ms_max: int = Field(default=10_000, ge=1, le=86_400_000)
    signals_per_second_max: int = Field(default=0, ge=0, le=1_000_000)
    rate_burst_seconds: float = Field(default=2.0, ge=0.1, le=60)
    snapshot_seconds_min: float = Field(default=0.2, gt=0, le=3_600)
    retry_after_ms: int = Field(default=250, ge=1, le=60_000)

    # Connections.
    connections_max: int = Field(default=10_000, ge=1, le=1_000_000)
    connections_per_address_max: int = Field(default=256, ge=1, le=1_000_000)
    """An IPv6 address counts as its /64."""
    connections_per_master_max: int = Field(default=4, ge=2, le=1_000)
    publish_streams_max: int = Field(default=1_000, ge=1, le=100_000)
    unauthenticated_connections_max: int = Field(default=1_000, ge=1, le=1_000_000)
    unauthenticated_seconds_max: float = Field(default=10.0, gt=0, le=300)
    unauthenticated_bytes_max: int = Field(default=8_192, ge=1_024, le=65_536)
    refused_connections_max: int = Field(default=256, ge=0, le=10_000)
    """So many that were one too many are told so at a time; any more are closed without a word."""
    frame_seconds_max: float = Field(default=10.0, gt=0, le=300)
    """How long one frame may take to arrive whole."""
    output_bytes_max: int = Field(default=262_144, ge=16_384, le=64 * 1_048_576)
    """What may wait for a peer that does not read."""
    output_seconds_max: float = Field(default=15.0, gt=0, le=300)
    linger_seconds: float = Field(default=2.0, gt=0, le=60)
    """How long a closed connection waits for its client to read the last frame and close, too."""
    listen_backlog: int = Field(default=4_096, ge=16, le=65_535)
    drain_spread_seconds: float = Field(default=2.0, ge=0, le=300)
    """Over how long the clients of a stopping process spread their reconnecting."""

    # The log.
    durability: Literal["APPENDED", "FSYNCED", "REPLICATED"] = "APPENDED"
    replicas_min: int = Field(default=1, ge=1, le=16)
    """How many replicas must confirm an append at REPLICATED."""
    durability_timeout_seconds: float = Field(default=2.0, gt=0, le=60)
    flush_bytes_max: int = Field(default=1_048_576, ge=65_536, le=64 * 1_048_576)
    flush_sessions_max: int = Field(default=1_000, ge=1, le=1_000)
    outstanding_bytes_max: int = Field(default=16 * 1_048_576, ge=131_072, le=4_096 * 1_048_576)
    """What all sessions together may have under way to the log before reading from them pauses."""
    session_outstanding_bytes_max: int = Field(default=1_048_576, ge=65_536, le=4_096 * 1_048_576)
    log_entries_max: int = Field(default=2_000_000, ge=0, le=1_000_000_000)
    """The stream's MAXLEN ~, a safety valve far beyond what trimming leaves; 0 is none."""

    # The ledger.
    authorisation_seconds: float = Field(default=30.0, ge=0, le=3_600)
    """How long an answer of the ledger counts before it is asked again."""
    authorisation_negative_seconds: float = Field(default=2.0, ge=0, le=300)
    authorisation_grace_seconds: float = Field(default=600.0, ge=0, le=86_400)
    """How old an answer may be used while the ledger cannot be reached."""
    authorisation_entries_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Remembered permissions; refusals have as many places of their own."""
    authorisation_timeout_seconds: float = Field(default=3.0, gt=0, le=60)
    authorisations_under_way_max: int = Field(default=64, ge=1, le=10_000)
    recheck_seconds: float = Field(default=60.0, gt=0, le=3_600)
    """How often the licenses of open sessions are looked at again, should an event have been missed."""

    @field_validator("allowed_networks")
    @classmethod
    def _are_networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(texts)
        return texts

    @model_validator(mode="after")
    def _fits(self) -> IngestSettings:
        if self.master_ca_file is not None and self.tls_certificate_file is None:
            raise ValueError("MASTER_CA_FILE needs TLS_CERTIFICATE_FILE and TLS_KEY_FILE")
        if self.session_outstanding_bytes_max > self.outstanding_bytes_max:
            raise ValueError("SESSION_OUTSTANDING_BYTES_MAX must not exceed OUTSTANDING_BYTES_MAX")
        return self

    @property
    def shard_outstanding_bytes_max(self) -> int:
        """What may be under way to one shard of the log: its part of the whole, but room for one session."""
        return max(self.outstanding_bytes_max // self.log_shards, self.session_outstanding_bytes_max)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks that may connect; empty is every one."""
        return parse_networks(self.allowed_networks)

    def limits(self) -> Limits:
        """What every session is held to."""
        return Limits(
            window=self.signal_window,
            heartbeat_ms=int(self.heartbeat_seconds * 1_000),
            silent_heartbeats_max=self.silent_heartbeats_max,
            frame_bytes_max=self.frame_bytes_max,
            batch_signals_max=self.batch_signals_max,
            signal_age_ms_max=self.signal_age_ms_max,
            signals_per_second_max=self.signals_per_second_max,
            burst_seconds=self.rate_burst_seconds,
            login_seconds_max=self.unauthenticated_seconds_max,
            snapshot_seconds_min=self.snapshot_seconds_min,
            retry_after_ms=self.retry_after_ms,
            durability=position_pb2.Durability.Value(f"DURABILITY_{self.durability}"),
        )
