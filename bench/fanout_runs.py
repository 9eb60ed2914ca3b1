"""What surrounds a fan-out while it is measured: its process, a bare writer, readers, the log; it knows no figure."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from bench.fanout_process import FanoutProcess, fanout
from bench.process import worker
from bench.readers import Arrived, Plan, arrived_of, as_json
from bench.torture.clients_server import Certificate
from mesh.embedded import RedisServer

_SECONDS_MAX: Final = 600.0
_SIGNALS_PER_SECOND_MIN: Final = 4.0


@dataclass(frozen=True, slots=True)
class Setting:
    """How all runs are made."""

    subscribers: int
    seconds: float
    edge: str


@dataclass(slots=True)
class Bench:
    """What surrounds each fan-out that is measured."""

    setting: Setting
    tell: Callable[[str], None]
    server: RedisServer
    ledger_port: int
    measured_core: int
    load_core: int
    certificate: Certificate
    repeat_seconds_left: float

    @asynccontextmanager
    async def serving(
        self, environment: Mapping[str, str] | None = None, *, tls: bool = False
    ) -> AsyncIterator[Plan]:
        """A fan-out of its own, with what it reads from its environment; gives a plan to read from it."""
        files = {
            "TLS_CERTIFICATE_FILE": str(self.certificate.chain_file),
            "TLS_KEY_FILE": str(self.certificate.key_file),
        }
        async with fanout(
            self.server.url,
            self.ledger_port,
            self.server.run_folder,
            core=self.measured_core,
            environment={"EDGE": self.setting.edge, **(environment or {}), **(files if tls else {})},
            ca_file=self.certificate.ca_file if tls else None,
        ) as process:
            yield self._plan(process, str(self.certificate.ca_file) if tls else "")

    def _plan(self, process: FanoutProcess, ca_file: str) -> Plan:
        return Plan(
            port=process.port,
            subscribers=self.setting.subscribers,
            mode="saturate",
            redis_url=self.server.url,
            ca_file=ca_file,
            seconds=self.setting.seconds,
            warmup_seconds=min(1.0, self.setting.seconds),
            watched_pids=(process.pid, self.server.pid),
        )

    @asynccontextmanager
    async def bare(self) -> AsyncIterator[Plan]:
        """A bare writer; gives a plan to read from it."""
        async with worker(self.measured_core, "bench.bare_fanout") as writer:
            ports = json.loads(await writer.line(20))
            yield Plan(
                port=ports["port"],
                control_port=ports["control_port"],
                subscribers=self.setting.subscribers,
                mode="saturate",
                seconds=self.setting.seconds,
                warmup_seconds=min(1.0, self.setting.seconds),
                watched_pids=(writer.pid,),
            )

    async def saturated(self, name: str, plan: Plan) -> Arrived:
        """As many messages as there can be."""
        arrived = await self.quietest(plan)
        signals = f"{signals_rate(arrived):,.0f} signals/s, " if arrived.signals != arrived.messages else ""
        self.tell(
            f"{name}: {rate(arrived):,.0f} messages/s, {signals}"
            f"{per_cpu_second(arrived):,.0f} messages per CPU second{note(arrived)}"
        )
        return arrived

    async def paced(self, name: str, plan: Plan, deliveries_per_second: float) -> Arrived:
        """Latencies at a rate of deliveries."""
        signals_per_second = max(_SIGNALS_PER_SECOND_MIN, deliveries_per_second / plan.subscribers)
        arrived = await self.quietest(replace(plan, mode="pace", signals_per_second=signals_per_second))
        shown = ", ".join(f"{rank} {value:.2f} ms" for rank, value in arrived.latency_ms.items())
        self.tell(f"{name} at {signals_per_second * plan.subscribers:,.0f}/s: {shown}{note(arrived)}")
        return arrived

    async def quietest(self, plan: Plan) -> Arrived:
        """A run that others did not disturb or, when the time for repeating is used up, the last one."""
        while True:
            began = time.monotonic()
            arrived = await self.run(plan)
            took = time.monotonic() - began
            if not arrived.is_disturbed or took > self.repeat_seconds_left:
                return arrived
            self.repeat_seconds_left -= took

    async def run(self, plan: Plan) -> Arrived:
        """One run; its progress is told."""
        async with worker(self.load_core, "bench.readers", as_json(plan)) as readers:
            while isinstance(found := arrived_of(await readers.line(_SECONDS_MAX)), str):
                self.tell(found)
            return found


def rate(arrived: Arrived) -> float:
    """Messages a second."""
    return arrived.messages / arrived.seconds


def signals_rate(arrived: Arrived) -> float:
    """Signals a second."""
    return arrived.signals / arrived.seconds


def per_cpu_second(arrived: Arrived) -> float:
    """Messages for each second of processor time of what is measured: what a disturbed machine changes least."""
    used = next(iter(arrived.cores.values()), 0.0)
    return rate(arrived) / used if used else 0.0


def note(arrived: Arrived) -> str:
    """What must be known of a disturbed run."""
    if not arrived.is_disturbed:
        return ""
    return f" (disturbed: {arrived.steal_cores:.2f} core stolen, {arrived.others_cores:.2f} used by others)"
