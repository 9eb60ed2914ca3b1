"""The subscriber's side: streams with resume and full sync, a journal, and clients for asyncio and plain threads."""

from ecp_client.subscriber.client import Subscriber
from ecp_client.subscriber.events import (
    Batch,
    Degraded,
    GapSeen,
    OutcomesDropped,
    OutcomesRefused,
    Resynced,
    ServerDraining,
    StateChanged,
    StreamEnded,
    StreamOpened,
    SubscriberEvent,
    SyncState,
)
from ecp_client.subscriber.journal import Journal, JournalSettings, read_journal
from ecp_client.subscriber.processing import SubscriberStats
from ecp_client.subscriber.reporting import Report
from ecp_client.subscriber.settings import SubscriberSettings
from ecp_client.subscriber.thread import SubscriberThread
from ecp_client.subscriber.track import Start

__all__ = [
    "Batch",
    "Degraded",
    "GapSeen",
    "Journal",
    "JournalSettings",
    "OutcomesDropped",
    "OutcomesRefused",
    "Report",
    "Resynced",
    "ServerDraining",
    "Start",
    "StateChanged",
    "StreamEnded",
    "StreamOpened",
    "Subscriber",
    "SubscriberEvent",
    "SubscriberSettings",
    "SubscriberStats",
    "SubscriberThread",
    "SyncState",
    "read_journal",
]
