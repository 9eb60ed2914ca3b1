"""The master's side: a durable outbox, the front door's protocol, and clients for asyncio and for plain threads."""

from ecp_client.master.client import Master
from ecp_client.master.delivery import MasterStats
from ecp_client.master.events import (
    Acknowledged,
    Disconnected,
    Draining,
    Held,
    MasterEvent,
    MasterState,
    SequencesMoved,
    SessionOpened,
    SignalRefused,
    SignalsLost,
    SnapshotRefused,
    SnapshotRequested,
    SnapshotStored,
)
from ecp_client.master.outbox import Outbox, OutboxSettings
from ecp_client.master.settings import MasterSettings
from ecp_client.master.snapshots import SnapshotProvider
from ecp_client.master.thread import MasterThread

__all__ = [
    "Acknowledged",
    "Disconnected",
    "Draining",
    "Held",
    "Master",
    "MasterEvent",
    "MasterSettings",
    "MasterState",
    "MasterStats",
    "MasterThread",
    "Outbox",
    "OutboxSettings",
    "SequencesMoved",
    "SessionOpened",
    "SignalRefused",
    "SignalsLost",
    "SnapshotProvider",
    "SnapshotRefused",
    "SnapshotRequested",
    "SnapshotStored",
]
