"""What goes into and comes out of a session besides frames: limits, answers, runs and commands; only data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from typing import Final, NamedTuple

from execution.common.v1.position_pb2 import DURABILITY_APPENDED, Durability
from execution.common.v1.signal_pb2 import Signal

NO_DIGEST: Final = "-"
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """What the front door allows every session; most of it is told in the Welcome."""

    window: int = 4_096
    heartbeat_ms: int = 5_000
    silent_heartbeats_max: int = 3
    frame_bytes_max: int = 65_536
    batch_signals_max: int = 512
    signal_age_ms_max: int = 10_000
    signals_per_second_max: int = 0
    burst_seconds: float = 2.0
    gap_sequences_max: int = 1_000_001
    login_seconds_max: float = 10.0
    snapshot_seconds_min: float = 0.2
    snapshot_burst: int = 5
    snapshot_wanted_after: int = 10_000
    retry_after_ms: int = 250
    durability: Durability.ValueType = DURABILITY_APPENDED


@dataclass(frozen=True, slots=True)
class Authorisation:
    """What the ledger said about a login; `expires_at_us` is when the session must end."""

    secret: bytes
    license_id: str
    expires_at_us: int
    signals_per_second_max: int = 0
    signal_age_ms_max: int | None = None
    archived_epoch: int = 0
    archived_sequence: int = 0
    """The last position that the ledger has archived; zeros for none."""

    def __repr__(self) -> str:
        return f"Authorisation(license_id={self.license_id!r}, expires_at_us={self.expires_at_us})"


@dataclass(frozen=True, slots=True)
class LogHead:
    """Where a master's stream stands in the log, and whose session may append to it."""

    epoch: int
    sequence: int
    session_epoch: int
    digest: str = NO_DIGEST
    snapshot_epoch: int = 0
    snapshot_sequence: int = 0


class Run(NamedTuple):
    """Consecutive sequences that one frame brought, ready for the log."""

    first: int
    last: int
    data: bytes
    """LogBatch.runs with tag and length."""
    last_signal: Signal | None
    """None for a declared gap."""
    received_at_seconds: float
    """By the monotonic clock."""

    @property
    def digest(self) -> str:
        """What the head keeps of the last signal."""
        return NO_DIGEST if self.last_signal is None else digest_of(self.last_signal)


def digest_of(signal: Signal) -> str:
    """First 16 bytes of the SHA-256 of the serialized signal, in hex."""
    return sha256(signal.SerializeToString(deterministic=True)).digest()[:_DIGEST_BYTES].hex()


class AppendResult(Enum):
    """What the log answered to an append."""

    APPENDED = auto()
    """Everything up to the sequence is in the log and durable."""
    MOVED = auto()
    """The log's head is another than the session took it for; nothing was appended."""
    FENCED = auto()
    """A later session has taken over."""
    CONFLICT = auto()
    """The last sequence is there with other content."""


@dataclass(frozen=True, slots=True)
class Authorise:
    """Ask the ledger about master, key and license; answer with `authorised` or `refused`."""

    master_id: int
    key_id: str
    license_token: str

    def __repr__(self) -> str:
        return f"Authorise(master_id={self.master_id}, key_id={self.key_id!r})"


@dataclass(frozen=True, slots=True)
class OpenLog:
    """Begin a session in the log; answer with `log_opened` or `log_not_opened`."""

    master_id: int
    key_id: str
    acknowledged_epoch: int
    acknowledged_sequence: int
    begin_epoch: bool
    archived_epoch: int = 0
    archived_sequence: int = 0
    """A new epoch lies above this."""


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """Store the snapshot behind everything appended so far; answer with `snapshot_stored`."""

    data: bytes
    epoch: int
    sequence: int


Command = Authorise | OpenLog | StoreSnapshot
