"""An application of the subscriber client that keeps what it saw, and settings that make it quick."""

from __future__ import annotations

from ecp_client.copying import CopySettings, Decision
from ecp_client.subscriber import (
    Batch,
    Start,
    StreamEnded,
    Subscriber,
    SubscriberEvent,
    SubscriberSettings,
)
from tests.integration.clients.scripted_server import (
    ScriptedServer,
)

WAIT_SECONDS = 20.0
FOREVER = 9_999.0


def settings(server: ScriptedServer, **overrides: object) -> SubscriberSettings:
    values: dict[str, object] = {
        "addresses": [server.address],
        "license_token": "token",
        "masters": {1: CopySettings()},
        "start": Start.BEGINNING,
        "plaintext": True,
        "reconnect_seconds_min": 0.01,
        "reconnect_seconds_max": 0.05,
        "full_sync_seconds_min": 0.01,
        "full_sync_seconds_max": 0.05,
        "acknowledge_interval_seconds": 0.01,
        "report_interval_seconds": 0.01,
        **overrides,
    }
    return SubscriberSettings(**values)


class App:
    """What the application saw."""

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.decisions: list[Decision] = []
        self.events: list[SubscriberEvent] = []

    def on_batch(self, batch: Batch) -> None:
        self.sequences += [one.sequence for one in batch.signals]
        self.decisions += batch.decisions

    def ends(self) -> list[str]:
        return [event.code for event in self.events if isinstance(event, StreamEnded)]

    def subscriber(self, given: SubscriberSettings, **more: object) -> Subscriber:
        return Subscriber(given, on_batch=self.on_batch, on_event=self.events.append, **more)
