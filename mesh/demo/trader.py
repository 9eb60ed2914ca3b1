"""A master that trades by a strategy through the client library, at a given pace, and keeps a record of its own."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from ecp_client.disk import FsyncPolicy
from ecp_client.master import (
    Master,
    MasterEvent,
    MasterSettings,
    OutboxSettings,
    SignalRefused,
    SnapshotStored,
)
from execution.common.v1 import signal_pb2, snapshot_pb2
from mesh.demo import prices
from mesh.demo.stores import digest_of
from mesh.demo.strategies import STRATEGIES, Strategy

ROUND_SECONDS = 0.01
TICKS_PER_ROUND_MAX = 20_000
PENDING_MAX = 50_000
BARS_APART = 400


class Trader(AbstractAsyncContextManager["Trader"]):
    """One master of the demo. `digests` is of each signal that it put in, by sequence; `refused` was not taken."""

    def __init__(self, spec: dict[str, Any], front_door: str, folder: Path) -> None:
        self.name: str = spec["name"]
        self.master_id: int = spec["master_id"]
        self.strategy: Strategy = STRATEGIES[spec["strategy"]]()
        self.digests: dict[int, bytes] = {}
        self.refused: set[int] = set()
        self.snapshot_sequence = -1
        self._ticks: Iterator[int] = prices.ticks(prices.read_bars(), start=spec["strategy"] * BARS_APART)
        self._owed = 0.0
        self.master = Master(
            MasterSettings(
                addresses=[front_door], master_id=self.master_id, key_id=spec["key_id"],
                secret=base64.b64decode(spec["secret"]), license_token=spec["license_token"], plaintext=True,
                outbox_folder=folder / f"outbox-{self.master_id}", client="demo",
                outbox=OutboxSettings(fsync=FsyncPolicy.INTERVAL), reconnect_seconds_max=1.0, refused_seconds_max=2.0,
            ),
            on_event=self._on_event,
            snapshot=self.snapshot,
        )  # fmt: skip

    async def __aenter__(self) -> Trader:
        await self.master.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.master.close()

    def snapshot(self) -> snapshot_pb2.Snapshot:
        """All that is open, as of the last signal that was put in."""
        return self.strategy.account.snapshot(self.master_id, self.master.last_sequence)

    async def trade(self, seconds: float, signals_per_second: float) -> None:
        """Trades for so long; what it falls behind, because the machine is busy, it makes up for."""
        loop = asyncio.get_running_loop()
        started = last = loop.time()
        while (now := loop.time()) - started < seconds:
            self._owed += (now - last) * signals_per_second
            last = now
            if self.master.pending < PENDING_MAX:
                self._round()
            await asyncio.sleep(ROUND_SECONDS)

    async def finish(self, seconds_max: float) -> tuple[int, int]:
        """Waits until everything is settled and the last snapshot is stored; returns the last position.

        Raises:
            TimeoutError: it took longer.
        """
        async with asyncio.timeout(seconds_max):
            await self.master.wait_all_acknowledged()
            while self.snapshot_sequence < self.master.last_sequence:
                self.master.send_snapshot()
                await asyncio.sleep(0.2)
        return self.master.acknowledged

    def row(self) -> dict[str, Any]:
        """For the board."""
        account = self.strategy.account
        return {
            "name": self.name,
            "mode": signal_pb2.AccountMode.Name(account.mode).removeprefix("ACCOUNT_MODE_").lower(),
            "sent": self.master.last_sequence,
            "acknowledged": self.master.acknowledged[1],
            "positions": len(account.positions),
            "orders": len(account.orders),
        }

    def book(self) -> dict[str, Any]:
        """Its own record for the reconciliation: what it saw acknowledged, by sequence, and what it holds."""
        _, acknowledged = self.master.acknowledged
        return {
            "master_id": self.master_id,
            "name": self.name,
            "digests": {
                sequence: digest.hex()
                for sequence, digest in self.digests.items()
                if sequence <= acknowledged and sequence not in self.refused
            },
            "refused": sorted(self.refused),
            "account": base64.b64encode(self.snapshot().SerializeToString()).decode(),
        }

    def _round(self) -> None:
        signals: list[signal_pb2.Signal] = []
        account = self.strategy.account
        # Everything is on one machine: its clock is the server's, and latencies are measured by it.
        account.now_us = time.time_ns() // 1000
        for _ in range(TICKS_PER_ROUND_MAX):
            if len(signals) >= self._owed:
                break
            signals += self.strategy.on_tick(next(self._ticks))
        if signals:
            self._owed -= len(signals)
            for sequence, signal in zip(self.master.put_many(signals), signals, strict=True):
                self.digests[sequence] = digest_of(signal)

    def _on_event(self, event: MasterEvent) -> None:
        if isinstance(event, SignalRefused):
            self.refused.add(event.sequence)
        elif isinstance(event, SnapshotStored):
            self.snapshot_sequence = max(self.snapshot_sequence, event.sequence)
