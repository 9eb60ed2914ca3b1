"""What a master's session tells its application. Pure data."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MasterState(enum.Enum):
    """Where a master client stands."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    OPEN = "open"
    """Logged in: signals flow."""
    BACKING_OFF = "backing_off"
    """Waiting before the next attempt."""
    FAILED = "failed"
    """Given up: only a person can help; the last Disconnected says why."""


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The server welcomed this client."""

    address: str
    session_epoch: int
    epoch: int
    sequence: int
    """The last sequence in the log: everything up to it is acknowledged."""
    durability: int
    """execution.common.v1.Durability of each acknowledgement."""
    new_epoch: bool
    """Whether history was lost since the session before, and the log began a new epoch."""


@dataclass(frozen=True, slots=True)
class SequencesMoved:
    """Signals that were put in before the server's head was known got later sequences.

    Happens when an outbox is new, or an old copy, for a master that has history: what `send` returned, behind `after`
    and up to `upto`, is now called that much more.
    """

    after: int
    upto: int
    by: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Everything up to `sequence` is in the log. Told once for all that one flush of the server covered."""

    epoch: int
    sequence: int
    durability: int


@dataclass(frozen=True, slots=True)
class SignalRefused:
    """The server will never take this signal; its sequence was declared as a gap, and the ones behind it go on."""

    sequence: int
    code: str
    """RejectCode without its prefix: STALE or INVALID_SIGNAL."""
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class SignalsLost:
    """The outbox no longer has these sequences (its files were damaged); they were declared as a gap."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class SnapshotStored:
    """The server keeps the snapshot as of `sequence`."""

    sequence: int


@dataclass(frozen=True, slots=True)
class SnapshotRefused:
    """A snapshot was not kept; another one is sent when it is due or asked for."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class SnapshotRequested:
    """The server asks for a snapshot."""

    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """The server cannot take signals now; they wait in the outbox and are sent again by themselves."""

    code: str
    """RATE_LIMITED, WINDOW_EXCEEDED or UNAVAILABLE."""
    message: str
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Draining:
    """The server is about to stop; the client reconnects elsewhere by itself."""

    reconnect_after_ms: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone. Unless the state is FAILED, the client connects again by itself."""

    reason: str
    code: str = ""
    """RejectCode without its prefix when the server said one."""


MasterEvent = (
    SessionOpened
    | SequencesMoved
    | Acknowledged
    | SignalRefused
    | SignalsLost
    | SnapshotStored
    | SnapshotRefused
    | SnapshotRequested
    | Held
    | Draining
    | Disconnected
)
