"""`ecp bench ingest`: one front door on one core, Redis and a load signed beforehand on the other; it gates nothing.

Every figure has its yardstick from the same minutes: bare XADD by an asyncio.Protocol and hiredis for rates, a bare TCP
echo of the same frames at the same pace for latencies.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis

from bench import machine
from bench.authority import answering
from bench.front_door import FrontDoorProcess, front_door
from bench.load import Load, Seen, as_json, seen_of
from bench.plot import latency_chart
from bench.process import worker
from bench.result import Result, result_of
from bench.yardsticks import STREAM, Rate, redis_benchmark
from mesh.embedded import RedisServer, redis
from mesh.embedded.redis import AppendFsync
from mesh.errors import MeshError

T = TypeVar("T")
R = TypeVar("R", Seen, Rate)

PACE: Final = 10_000
CURVE: Final = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 40_000)
BATCH: Final = 16
_LOG: Final = "signals:ingest"
_LOAD_SECONDS_MAX: Final = 120.0
_FIRST_GUESS: Final = {BATCH: 120_000, 1: 70_000}
_HEADROOM: Final = 1.6
_GUESSES_MAX: Final = 4
_REDIS_BENCHMARK_ENTRIES: Final = 300_000


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How much to measure."""

    seconds: float = 4.0
    runs: int = 5
    connections: int = 64
    attempts: int = 3
    """How often a run is made anew when others used too much of the machine."""
    with_curve: bool = False
    """Also latencies at many rates."""


@dataclass(slots=True)
class IngestReport:
    """All figures."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    curve: dict[str, list[tuple[float, dict[str, float]]]] = field(default_factory=dict)
    """Percentiles in ms by signals a second, of "ingest" and "echo"."""

    def chart(self) -> str:
        """Latency by rate, as SVG."""
        return latency_chart(
            "Acknowledgement latency of single signed signals, against intended send time",
            "signals a second",
            self.curve,
            yardstick="echo",
        )


@dataclass(slots=True)
class _Bench:
    """One front door and what surrounds it."""

    options: IngestOptions
    tell: Callable[[str], None]
    server: RedisServer
    door: FrontDoorProcess
    client: Redis
    measured_core: int
    load_core: int
    guess: dict[int, float] = field(default_factory=lambda: dict(_FIRST_GUESS))

    async def saturated(self, batch: int) -> Seen:
        """Signals a second with full windows."""
        for _ in range(_GUESSES_MAX):
            load = Load(
                self.door.port,
                self.options.connections,
                batch=batch,
                seconds=self.options.seconds,
                signals_per_second=int(self.guess[batch]),
            )
            seen = await self._quietest(partial(self._load, load), _is_disturbed)
            self.guess[batch] = max(1_000, seen.signals_per_second * _HEADROOM)
            if not seen.ran_out or seen.seconds > self.options.seconds / 2:
                break
        rate, cores = seen.signals_per_second, _cores(seen)
        self.tell(f"frames of {batch}: {rate:,.0f} signals/s with {cores:.2f} of a core{_note(seen)}")
        return seen

    async def paced(self, rate: int, seconds: float) -> Seen:
        """Latencies of single signals at a rate."""
        load = Load(
            self.door.port, self.options.connections, seconds=seconds, signals_per_second=rate, paced=True
        )
        seen = await self._quietest(partial(self._load, load), _is_disturbed)
        self.tell(f"at {rate:,}/s: acknowledged {_percentiles(seen)}{_note(seen)}")
        return seen

    async def echoed(self, rate: int, seconds: float) -> Seen:
        """Latencies of the same frames through a bare echo."""
        async with worker(self.measured_core, "bench.yardsticks", "echo") as echo:
            port = json.loads(await echo.line(20))["port"]
            load = Load(
                port,
                self.options.connections,
                seconds=seconds,
                signals_per_second=rate,
                paced=True,
                echo=True,
                watched_pids=(echo.pid,),
            )
            seen = await self._quietest(partial(self._load, load), _is_disturbed)
        self.tell(f"at {rate:,}/s: echoed {_percentiles(seen)}{_note(seen)}")
        return seen

    async def bare(self) -> Rate:
        """Entries a second of a bare client."""

        async def once() -> Rate:
            await self._settled()
            arguments = (str(self.server.socket), str(self.options.seconds), str(self.server.pid))
            async with worker(self.measured_core, "bench.yardsticks", "xadd", *arguments) as bare:
                rate = Rate(**json.loads(await bare.line(_LOAD_SECONDS_MAX)))
            await self.client.delete(STREAM)
            return rate

        rate = await self._quietest(once, lambda rate: rate.is_disturbed)
        self.tell(f"bare XADD: {rate.per_second:,.0f} entries/s{' (disturbed)' if rate.is_disturbed else ''}")
        return rate

    async def _settled(self) -> None:
        """Waits until Redis has rewritten the file that the run before made it grow."""
        async with asyncio.timeout(_LOAD_SECONDS_MAX):
            while True:
                state = await self.client.info("persistence")
                if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
                    return
                await asyncio.sleep(0.1)

    async def _load(self, load: Load) -> Seen:
        await self._settled()
        own = () if load.echo else (self.door.pid, self.server.pid)
        load = replace(load, watched_pids=(*own, *load.watched_pids))
        async with worker(self.load_core, "bench.load", as_json(load)) as sender:
            seen = seen_of(await sender.line(_LOAD_SECONDS_MAX))
        await cast("Awaitable[object]", self.client.xtrim(_LOG, maxlen=0, approximate=False))
        return seen

    async def _quietest(self, once: Callable[[], Awaitable[T]], is_disturbed: Callable[[T], bool]) -> T:
        """A run that others did not disturb or, after so many attempts, the last one."""
        for _ in range(self.options.attempts - 1):
            found = await once()
            if not is_disturbed(found):
                return found
        return await once()


def _is_disturbed(seen: Seen) -> bool:
    return seen.is_disturbed


def _cores(seen: Seen) -> float:
    """What the front door used; it is the first of the watched processes."""
    return next(iter(seen.cores.values()), 0.0)


def _percentiles(seen: Seen) -> str:
    return ", ".join(f"{rank} {value:.2f} ms" for rank, value in seen.latency_ms.items())


def _note(seen: Seen) -> str:
    if not seen.is_disturbed:
        return ""
    return f" (disturbed: {seen.steal_cores:.2f} core stolen, {seen.others_cores:.2f} used by others)"


@asynccontextmanager
async def _benches(
    options: IngestOptions,
    tell: Callable[[str], None],
    cores: tuple[int, int],
    authority_port: int,
    appendfsync: AppendFsync,
    durability: str,
) -> AsyncIterator[_Bench]:
    """A Redis and a front door of their own, on their cores. This process is on the load's core already."""
    measured_core, load_core = cores
    async with redis(appendfsync=appendfsync) as server:
        environment = {"DURABILITY": durability, "SIGNAL_AGE_MS_MAX": "86400000"}
        async with (
            Redis.from_url(server.url) as client,
            front_door(
                server.url, authority_port, server.run_folder, core=measured_core, environment=environment
            ) as door,
        ):
            yield _Bench(options, tell, server, door, client, measured_core, load_core)


async def measure(options: IngestOptions, tell: Callable[[str], None]) -> IngestReport:
    """Measures everything; `tell` gets a line for each run.

    Raises:
        ConfigurationError: this machine cannot be measured on.
        MeshError: something did not start, or the front door refused the load.
    """
    cores = machine.two_cores()
    report = IngestReport(machine.describe())
    with machine.pinned(cores[1]):
        async with answering() as authority_port:
            async with _benches(options, tell, cores, authority_port, "everysec", "APPENDED") as bench:
                await _measure_appended(bench, report)
            async with _benches(options, tell, cores, authority_port, "always", "FSYNCED") as bench:
                await _measure_fsynced(bench, report)
    return report


async def _measure_appended(bench: _Bench, report: IngestReport) -> None:
    options = bench.options
    server = await bench.client.info("server")
    report.machine["log"] = (
        f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}"
    )
    bare: list[Rate] = []
    batches: list[Seen] = []
    singles: list[Seen] = []
    acks: list[Seen] = []
    echoes: list[Seen] = []
    resident: list[int] = []
    for _ in range(options.runs):
        bare.append(await bench.bare())
        batches.append(await bench.saturated(BATCH))
        singles.append(await bench.saturated(1))
        acks.append(await bench.paced(PACE, options.seconds))
        echoes.append(await bench.echoed(PACE, options.seconds))
        resident.append(machine.resident_bytes(bench.door.pid))
    details = _redis_benchmark_of(bench)
    report.results += [
        _rate("ingest.signals_per_second", batches, bare, details),
        _rate("ingest.single_frames_per_second", singles, bare, details),
        _latency(f"ingest.ack_p99_ms_at_{PACE}", acks, echoes),
        _memory(resident),
    ]
    if options.with_curve:
        await _measure_curve(bench, report)


async def _measure_curve(bench: _Bench, report: IngestReport) -> None:
    seconds = min(bench.options.seconds, 3.0)
    for name, way in (("ingest", bench.paced), ("echo", bench.echoed)):
        points = report.curve.setdefault(name, [])
        for rate in CURVE:
            try:
                points.append((rate, (await way(rate, seconds)).latency_ms))
            except MeshError as error:
                bench.tell(f"{name} at {rate:,}/s: {error}")
                break


async def _measure_fsynced(bench: _Bench, report: IngestReport) -> None:
    bare: list[Rate] = []
    batches: list[Seen] = []
    for _ in range(bench.options.runs):
        bare.append(await bench.bare())
        batches.append(await bench.saturated(BATCH))
    report.results.append(
        _rate("ingest.fsynced_signals_per_second", batches, bare, _redis_benchmark_of(bench))
    )


def _redis_benchmark_of(bench: _Bench) -> dict[str, Any]:
    rate = redis_benchmark(bench.server.socket, _REDIS_BENCHMARK_ENTRIES)
    if rate is None:
        return {}
    bench.tell(f"redis-benchmark -P 16: {rate:,.0f} entries/s")
    return {"redis_benchmark_p16_per_second": round(rate)}


def _quiet(runs: list[R]) -> list[R]:
    """The runs that count: those that nobody disturbed or, if there are none, all."""
    return [one for one in runs if not one.is_disturbed] or runs


def _rate(name: str, seen: list[Seen], bare: list[Rate], details: dict[str, Any]) -> Result:
    return result_of(
        name,
        "signals/s",
        [one.signals_per_second for one in _quiet(seen)],
        [one.per_second for one in _quiet(bare)],
        disturbed_runs=sum(one.is_disturbed for one in seen),
        details={**details, "runs": [_circumstances(one) for one in seen]},
    )


def _latency(name: str, acks: list[Seen], echoes: list[Seen]) -> Result:
    return result_of(
        name,
        "ms",
        [one.latency_ms["p99"] for one in _quiet(acks)],
        [one.latency_ms["p99"] for one in _quiet(echoes)],
        less_is_better=True,
        disturbed_runs=sum(one.is_disturbed for one in acks),
        details={"runs": [{**_circumstances(one), **one.latency_ms} for one in acks]},
    )


def _memory(resident: list[int]) -> Result:
    """What the front door grew by between the end of the first round and the end of the last."""
    grown = (resident[-1] - resident[0]) / 1_048_576
    details = {"resident_mib": [round(one / 1_048_576, 1) for one in resident]}
    return result_of("ingest.memory_growth_mib", "MiB", [grown], details=details)


def _circumstances(seen: Seen) -> dict[str, Any]:
    return {
        "cores": list(seen.cores.values()),
        "steal_cores": seen.steal_cores,
        "others_cores": seen.others_cores,
        "signals_per_second": round(seen.signals_per_second),
        "signals_per_processor_second": round(seen.signals_per_second / max(_cores(seen), 0.01)),
        "sent_late_ms": seen.late_ms,
    }
