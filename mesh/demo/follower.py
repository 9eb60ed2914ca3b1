"""A subscriber of the demo: follows through the client library, protects itself or pretends to, times receipts."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from ecp_client.copying import CopySettings, Decision, Reason
from ecp_client.subscriber import (
    Batch,
    JournalSettings,
    Start,
    StateChanged,
    Subscriber,
    SubscriberEvent,
    SubscriberSettings,
    SyncState,
)
from execution.common.v1 import signal_pb2
from mesh.demo.cable import Cable, cable
from mesh.demo.cast import Behaviour
from mesh.demo.latency import Latencies

HONEST_REFUSALS_PERCENT = 2
FAKED_REFUSALS_PERCENT = 88
SIGNAL_AGE_MS_MAX = 120_000
PAUSES = {SyncState.PAUSED_CLOSE_ONLY, SyncState.PAUSED_ALL}
MARKET_KINDS = frozenset({signal_pb2.SIGNAL_KIND_OPEN, signal_pb2.SIGNAL_KIND_PENDING_PLACE})


class Follower(AbstractAsyncContextManager["Follower"]):
    """One subscriber. The one whose cable is cut reaches fanout through it, the others directly."""

    def __init__(self, spec: dict[str, Any], folder: Path, latencies: Latencies) -> None:
        self.name: str = spec["name"]
        self.behaviour = Behaviour(spec["behaviour"])
        self.received = 0
        self.refused = 0
        self.cable: Cable | None = None
        self.events: list[str] = []
        self._spec = spec
        self._folder = folder / self.name
        self._latencies = latencies
        self._states: dict[int, SyncState] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Follower:
        address = self._spec["fanout"]
        if self.behaviour is Behaviour.CUT_OFF:
            self.cable = await self._stack.enter_async_context(cable(address))
            address = f"127.0.0.1:{self.cable.port}"
        copy = CopySettings(
            volume_multiplier_e4=self._spec["volume_percent"] * 100, max_signal_age_ms=SIGNAL_AGE_MS_MAX
        )
        settings = SubscriberSettings(
            addresses=[address], risk_addresses=[self._spec["risk"]], license_token=self._spec["license_token"],
            masters=dict.fromkeys(self._spec["master_ids"], copy), start=Start.BEGINNING, plaintext=True,
            journal_folder=self._folder / "journal", journal=JournalSettings(files_max=0), client="demo",
            reconnect_seconds_max=1.0, refused_seconds_max=2.0,
        )  # fmt: skip
        self.subscriber = Subscriber(
            settings, on_batch=self._on_batch, on_event=self._on_event, protection=self._protection
        )
        await self._stack.enter_async_context(self.subscriber)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def is_connected(self) -> bool:
        """Whether the first stream said where each master stands."""
        return all(self.held(master_id) is not None for master_id in self._spec["master_ids"])

    def held(self, master_id: int) -> tuple[int, int] | None:
        """Up to which position it has received everything, or was told what will not come."""
        position = self.subscriber.position(master_id)
        return None if position is None else (position.epoch, position.sequence)

    def has_reached(self, heads: dict[int, tuple[int, int]]) -> bool:
        """Whether it holds the last position of every master that it follows."""
        return all(
            (self.held(master_id) or (0, 0)) >= heads[master_id] for master_id in self._spec["master_ids"]
        )

    def row(self) -> dict[str, Any]:
        """For the board."""
        states = set(self._states.values()) - {SyncState.SYNCED}
        state = next(iter(states)).value.replace("_", " ") if states else "synced"
        if self.cable is not None and self.cable.is_cut:
            state = "cut off"
        return {"name": self.name, "state": state, "received": self.received, "refused": self.refused}

    def take_events(self) -> list[str]:
        """What happened since the last call, for the board."""
        events, self.events = self.events, []
        return events

    def write_holdings(self) -> None:
        """Leaves what its account holds, by the master's tickets, for the reconciliation."""
        holdings = {}
        for master_id in self._spec["master_ids"]:
            account = self.subscriber.copier(master_id).account
            holdings[master_id] = {
                "positions": [
                    (entry.position_id, entry.side, entry.volume_lots_e8) for entry in account.held()
                ],
                "orders": [
                    (entry.order_id, entry.side, entry.volume_lots_e8) for entry in account.held_orders()
                ],
            }
        (self._folder / "holdings.json").write_text(json.dumps(holdings), encoding="utf-8")

    def _on_batch(self, batch: Batch) -> None:
        self.received += len(batch.signals)
        for sequenced in batch.signals:
            self._latencies.add(batch.received_at_us - sequenced.signal.occurred_at_us)

    def _on_event(self, event: SubscriberEvent) -> None:
        if isinstance(event, StateChanged):
            paused = event.state in PAUSES and not PAUSES & set(self._states.values())
            self._states[event.master_id] = event.state
            if paused:
                self.events.append(f"{self.name}: {event.state.value.replace('_', ' ')}. {event.reason}")

    def _protection(self, sequenced: signal_pb2.SequencedSignal, decision: Decision) -> Reason:
        """Refuses now and then, as a real slippage protection would, or nearly always, as one who fakes it would."""
        if sequenced.signal.kind not in MARKET_KINDS:
            return Reason.NONE
        cheats = self.behaviour is Behaviour.CHEATS
        percent = FAKED_REFUSALS_PERCENT if cheats else HONEST_REFUSALS_PERCENT
        drawn = hashlib.sha256(f"{self.name} {sequenced.master_id} {sequenced.sequence}".encode()).digest()
        if int.from_bytes(drawn[:4], "big") % 100 >= percent:
            return Reason.NONE
        self.refused += 1
        return Reason.SLIPPAGE
