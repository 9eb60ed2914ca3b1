"""What the demo knows while it runs, for people to watch; the reconciliation never reads it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

EVENTS_KEPT = 8


@dataclass(slots=True)
class MasterRow:
    """One master as its process last told."""

    name: str
    mode: str
    sent: int = 0
    acknowledged: int = 0
    positions: int = 0
    orders: int = 0


@dataclass(slots=True)
class SubscriberRow:
    """One subscriber as its process last told. Trust is risk's, None until it was scored."""

    name: str
    behaviour: str
    state: str = "connecting"
    received: int = 0
    refused: int = 0
    trust: float | None = None


@dataclass(slots=True)
class ServiceRow:
    """One service as its supervisor sees it."""

    name: str
    state: str = "starting"
    restarts: int = 0


@dataclass(slots=True)
class Board:
    """Everything on the screen. Latencies are of the last second, from the master's send to the receipt."""

    seconds: float
    elapsed_seconds: float = 0.0
    phase: str = "starting"
    masters: dict[str, MasterRow] = field(default_factory=dict)
    subscribers: dict[str, SubscriberRow] = field(default_factory=dict)
    services: dict[str, ServiceRow] = field(default_factory=dict)
    signals_per_second: float = 0.0
    deliveries_per_second: float = 0.0
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))

    @property
    def signals_acknowledged(self) -> int:
        """Of all masters."""
        return sum(row.acknowledged for row in self.masters.values())

    @property
    def deliveries(self) -> int:
        """To all subscribers."""
        return sum(row.received for row in self.subscribers.values())

    def tell(self, text: str) -> None:
        """Adds a line to the events."""
        self.events.append(f"{self.elapsed_seconds:5.1f} s  {text}")
