"""What a subscriber's stream tells its application. Pure data."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ecp_client.copying import Decision, Plan
from ecp_client.positions import Position
from execution.common.v1.signal_pb2 import SequencedSignal


class SyncState(enum.Enum):
    """Where a subscriber stands with one master."""

    STARTING = "starting"
    """Nothing was received yet."""
    SYNCED = "synced"
    DEGRADED = "degraded"
    """Signals are missing: only what reduces risk is copied, until the full sync."""
    RESYNCING = "resyncing"
    """The full sync was asked for."""
    PAUSED_CLOSE_ONLY = "paused_close_only"
    PAUSED_ALL = "paused_all"
    CANCELLED = "cancelled"
    """The subscription ended."""


@dataclass(slots=True)
class Batch:
    """All new signals of one received message, in order, each with what was decided about it."""

    signals: list[SequencedSignal]
    decisions: list[Decision]
    received_at_us: int
    """When the message came, by this machine's clock, in microseconds since 1970."""
    server_now_us: int
    """The same moment by the server's clock, as well as it is known here."""
    resynced: Resynced | None = None
    """From SubscriberThread.poll: no signals but a full sync, whose plan is to be done here, between what came before
    and what follows."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A stream was opened and said its first word."""

    address: str


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The stream ended; the client opens another one by itself unless `is_final`."""

    code: str
    """gRPC status code, such as UNAVAILABLE; JUMPED for a stream that left out signals."""
    reason: str
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class GapSeen:
    """Positions that will not come."""

    master_id: int
    first: Position
    last: Position
    reason: str
    """GapReason without its prefix; UNEXPLAINED when the stream jumped without a word."""
    resume_after: Position
    note: str = ""


@dataclass(frozen=True, slots=True)
class Degraded:
    """Signals of this master are missing; a full sync is on its way."""

    master_id: int
    reason: str
    """As a GapSeen's; TOLD when no gap was seen and the server says that something is missing."""


@dataclass(frozen=True, slots=True)
class Resynced:
    """A full sync: mirror and account follow the snapshot; `plan` is what must be done at the broker for that."""

    master_id: int
    as_of: Position
    plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The state of one master's subscription."""

    master_id: int
    state: SyncState
    reason: str


@dataclass(frozen=True, slots=True)
class ServerDraining:
    """The server is about to stop; the client reconnects by itself."""

    reconnect_after_ms: int


@dataclass(frozen=True, slots=True)
class OutcomesRefused:
    """The risk service did not take some outcomes: event_id and why."""

    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class OutcomesDropped:
    """The risk service could not be reached for so long that the oldest reports had to be given up."""

    count: int
    total: int
    """Since the client was made."""


SubscriberEvent = (
    StreamOpened
    | StreamEnded
    | GapSeen
    | Degraded
    | Resynced
    | StateChanged
    | ServerDraining
    | OutcomesRefused
    | OutcomesDropped
)
