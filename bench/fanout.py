"""`ecp bench fanout`: one fan-out on one core, its readers, the log and the ledger's stand-in on the other; no gates.

The yardstick of deliveries is a bare `transport.write` of the same bytes to the same readers, in the same minutes.
"""

from __future__ import annotations

import json
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bench import machine
from bench.fanout_process import FanoutProcess, fanout
from bench.licenses import licensing
from bench.process import worker
from bench.readers import Arrived, Plan, arrived_of, as_json
from bench.result import Result, result_of
from mesh.embedded import RedisServer, redis

_SECONDS_MAX: Final = 600.0
_SPARE_FILES: Final = 200
# Each signal in a message of its own, and no rest between rounds: what is measured is a delivery.
_SINGLE: Final = {"MESSAGE_SIGNALS_MAX": "1", "COALESCING_DELAY_SECONDS_MAX": "0"}


@dataclass(frozen=True, slots=True)
class FanoutOptions:
    """How much to measure."""

    subscribers: int = 500
    idle_subscribers: int = 10_000
    seconds: float = 4.0
    runs: int = 5
    attempts: int = 3
    """How often a run is made anew when others used too much of the machine."""
    edge: str = "h2"


@dataclass(slots=True)
class FanoutReport:
    """All figures."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)


@dataclass(slots=True)
class _Bench:
    options: FanoutOptions
    tell: Callable[[str], None]
    server: RedisServer
    ledger_port: int
    measured_core: int
    load_core: int

    @asynccontextmanager
    async def serving(self, **environment: str) -> AsyncIterator[FanoutProcess]:
        """A fan-out of its own, with what it reads from its environment."""
        async with fanout(
            self.server.url,
            self.ledger_port,
            self.server.run_folder,
            core=self.measured_core,
            environment={"EDGE": self.options.edge, **environment},
        ) as process:
            yield process

    def plan(self, process: FanoutProcess, mode: str) -> Plan:
        """The readers of that process."""
        return Plan(
            port=process.port,
            subscribers=self.options.subscribers,
            mode=mode,
            redis_url=self.server.url,
            seconds=self.options.seconds,
            watched_pids=(process.pid, self.server.pid),
        )

    async def bare(self) -> Arrived:
        """Deliveries of a bare writer."""
        async with worker(self.measured_core, "bench.bare_fanout") as writer:
            ports = json.loads(await writer.line(20))
            plan = Plan(
                port=ports["port"],
                control_port=ports["control_port"],
                subscribers=self.options.subscribers,
                mode="saturate",
                seconds=self.options.seconds,
                watched_pids=(writer.pid,),
            )
            arrived = await self.quietest(plan)
        self.tell(
            f"bare transport.write: {_rate(arrived):,.0f} messages/s, "
            f"{_per_cpu_second(arrived):,.0f} per CPU second{_note(arrived)}"
        )
        return arrived

    async def quietest(self, plan: Plan) -> Arrived:
        """A run that others did not disturb or, after so many attempts, the last one."""
        for _ in range(self.options.attempts - 1):
            arrived = await self._run(plan)
            if not arrived.is_disturbed:
                return arrived
        return await self._run(plan)

    async def _run(self, plan: Plan) -> Arrived:
        async with worker(self.load_core, "bench.readers", as_json(plan)) as readers:
            return arrived_of(await readers.line(_SECONDS_MAX))


def _rate(arrived: Arrived) -> float:
    return arrived.messages / arrived.seconds


def _per_cpu_second(arrived: Arrived) -> float:
    """Messages for each second of processor time of what is measured: what a disturbed machine changes least."""
    used = next(iter(arrived.cores.values()), 0.0)
    return _rate(arrived) / used if used else 0.0


def _note(arrived: Arrived) -> str:
    if not arrived.is_disturbed:
        return ""
    return f" (disturbed: {arrived.steal_cores:.2f} core stolen, {arrived.others_cores:.2f} used by others)"


async def measure(options: FanoutOptions, tell: Callable[[str], None]) -> FanoutReport:
    """Measures everything; `tell` gets a line for each run.

    Raises:
        ConfigurationError: this machine cannot be measured on.
        MeshError: something did not start, or a stream ended.
    """
    cores = machine.two_cores()
    report = FanoutReport(machine.describe())
    with machine.pinned(cores[1]):
        async with licensing() as ledger_port, redis() as server:
            bench = _Bench(options, tell, server, ledger_port, *cores)
            await _measure_deliveries(bench, report)
            if options.idle_subscribers:
                await _measure_idle(bench, report)
    return report


async def _measure_deliveries(bench: _Bench, report: FanoutReport) -> None:
    bare: list[Arrived] = []
    single: list[Arrived] = []
    half: list[Arrived] = []
    joined: list[Arrived] = []
    for _ in range(bench.options.runs):
        bare.append(await bench.bare())
        single.append(await _saturated(bench, _SINGLE))
        half.append(await _paced(bench, _rate(single[-1]) / 2 / bench.options.subscribers))
        joined.append(await _saturated(bench, {}, window=256))
    report.results += [
        result_of(
            "fanout.deliveries_per_second",
            "messages/s",
            [_rate(one) for one in single],
            [_rate(one) for one in bare],
            disturbed_runs=sum(one.is_disturbed for one in single),
            details={
                "edge": bench.options.edge,
                "runs": [_circumstances(one) for one in single],
                "yardstick_runs": [_circumstances(one) for one in bare],
            },
        ),
        result_of(
            "fanout.p99_ms_at_half",
            "ms",
            [one.latency_ms["p99"] for one in half],
            disturbed_runs=sum(one.is_disturbed for one in half),
            details={"runs": [{**_circumstances(one), **one.latency_ms} for one in half]},
        ),
        result_of(
            "fanout.coalesced_signals_per_second",
            "signals/s",
            [one.signals / one.seconds for one in joined],
            details={"messages_per_second": [round(_rate(one)) for one in joined]},
        ),
    ]


async def _saturated(bench: _Bench, environment: dict[str, str], *, window: int = 8) -> Arrived:
    async with bench.serving(**environment) as process:
        plan = replace(bench.plan(process, "saturate"), window=window)
        arrived = await bench.quietest(plan)
    bench.tell(
        f"fan-out: {_rate(arrived):,.0f} messages/s, {arrived.signals / arrived.seconds:,.0f} signals/s, "
        f"{_per_cpu_second(arrived):,.0f} messages per CPU second{_note(arrived)}"
    )
    return arrived


async def _paced(bench: _Bench, signals_per_second: float) -> Arrived:
    async with bench.serving() as process:
        plan = replace(bench.plan(process, "pace"), signals_per_second=signals_per_second)
        arrived = await bench.quietest(plan)
    shown = ", ".join(f"{rank} {value:.2f} ms" for rank, value in arrived.latency_ms.items())
    bench.tell(f"at {signals_per_second * bench.options.subscribers:,.0f}/s: {shown}{_note(arrived)}")
    return arrived


async def _measure_idle(bench: _Bench, report: FanoutReport) -> None:
    wanted = bench.options.idle_subscribers
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = min(wanted, limit - _SPARE_FILES)
    if count < wanted:
        bench.tell(
            f"idle subscribers lowered from {wanted:,} to {count:,}: a process may open {limit:,} files"
        )
    async with bench.serving(STREAMS_PER_USER_MAX="20") as process:
        plan = replace(bench.plan(process, "idle"), subscribers=count)
        arrived = await bench.quietest(replace(plan, seconds=5.0))
    slowest = max(arrived.signal_reached_all_ms)
    bench.tell(
        f"{count:,} idle streams: {arrived.bytes_per_stream / 1_024:.1f} KiB each; a signal reached all "
        f"in {slowest:.0f} ms at most{_note(arrived)}"
    )
    report.results += [
        result_of(
            "fanout.idle_bytes_per_subscriber",
            "bytes",
            [arrived.bytes_per_stream],
            details={"subscribers": count, "wanted": wanted, **_circumstances(arrived)},
        ),
        result_of(
            "fanout.signal_reaches_all_idle_ms",
            "ms",
            arrived.signal_reached_all_ms,
            details={"subscribers": count},
        ),
    ]


def _circumstances(arrived: Arrived) -> dict[str, Any]:
    return {
        "cores": list(arrived.cores.values()),
        "messages_per_cpu_second": round(_per_cpu_second(arrived)),
        "steal_cores": arrived.steal_cores,
        "others_cores": arrived.others_cores,
        "signals_per_message": round(arrived.signals / max(1, arrived.messages), 2),
    }
