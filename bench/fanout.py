"""`ecp bench fanout`: one fan-out on one core, its readers, the log and the ledger's stand-in on the other; no gates.

The yardstick is a bare `transport.write` of the same bytes, one by one, to the same readers in the same minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench import machine
from bench.fanout_runs import Bench, Setting, note, per_cpu_second, rate, signals_rate
from bench.licenses import licensing
from bench.plot import latency_chart
from bench.readers import Arrived
from bench.result import Result, result_of
from bench.torture.clients_server import Certificate
from mesh.embedded import redis
from mesh.errors import MeshError
from mesh.open_files import allow_open_files, require_open_files

CURVE: Final = (10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 125_000, 150_000, 200_000)
"""Deliveries a second."""
_SPARE_FILES: Final = 300
_WIDE_WINDOW: Final = 256
_STALLED_PADDING_BYTES: Final = 600
_TLS_RUNS_MAX: Final = 2
_REACHES: Final = 5
_STALLED_PAIRS_PER_RUN: Final = 2
"""A p99 of a few seconds differs by a third from the next one, whoever reads: their medians need many."""
_STALLED_SECONDS_MAX: Final = 2.5
_MIB: Final = 1_048_576
# Each signal in a message of its own, and no rest between rounds: what is measured is a delivery.
_SINGLE: Final = {"MESSAGE_SIGNALS_MAX": "1", "COALESCING_DELAY_SECONDS_MAX": "0"}


@dataclass(frozen=True, slots=True)
class FanoutOptions:
    """How much to measure."""

    subscribers: int = 500
    idle_subscribers: int = 10_000
    seconds: float = 3.0
    runs: int = 5
    repeat_seconds_max: float = 80.0
    """How much time there is in all to make runs anew that others on the machine disturbed."""
    edge: str = "h2"
    with_curve: bool = False
    """Also latencies at many rates."""


@dataclass(slots=True)
class FanoutReport:
    """All figures."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    curve: dict[str, list[tuple[float, dict[str, float]]]] = field(default_factory=dict)
    """Percentiles in ms by deliveries a second, of "fan-out" and "bare"."""

    def chart(self) -> str:
        """Latency by rate, as SVG."""
        return latency_chart(
            "From a signal's intended time to each reader, against a bare writer",
            "deliveries a second, on one core",
            self.curve,
            yardstick="bare",
        )


async def measure(options: FanoutOptions, tell: Callable[[str], None]) -> FanoutReport:
    """Measures everything; `tell` gets a line for each run.

    Raises:
        ConfigurationError: this machine cannot be measured on.
        MeshError: something did not start, or a stream ended.
    """
    cores = machine.two_cores()
    require_open_files(options.subscribers + _SPARE_FILES, what=f"reading {options.subscribers:,} streams")
    allow_open_files(max(options.idle_subscribers, options.subscribers) + _SPARE_FILES)
    report = FanoutReport(machine.describe())
    with machine.pinned(cores[1]), TemporaryDirectory() as folder:
        async with licensing() as ledger_port, redis() as server:
            bench = Bench(
                Setting(options.subscribers, options.seconds, options.edge),
                tell,
                server,
                ledger_port,
                *cores,
                Certificate.issued(Path(folder)),
                options.repeat_seconds_max,
            )
            await _measure_deliveries(bench, report, options.runs)
            if options.edge == "h2":
                await _measure_tls(bench, report, min(options.runs, _TLS_RUNS_MAX))
            await _measure_stalled(bench, report, _STALLED_PAIRS_PER_RUN * options.runs)
            if options.idle_subscribers:
                await _measure_idle(bench, report, options.idle_subscribers)
            if options.with_curve:
                await _measure_curve(bench, report)
    return report


async def _measure_deliveries(bench: Bench, report: FanoutReport, runs: int) -> None:
    bare: list[Arrived] = []
    single: list[Arrived] = []
    half: list[Arrived] = []
    bare_half: list[Arrived] = []
    joined: list[Arrived] = []
    for _ in range(runs):
        async with bench.bare() as plan:
            bare.append(await bench.saturated("bare transport.write", plan))
            async with bench.serving(_SINGLE) as served:
                single.append(await bench.saturated("fan-out", served))
                half.append(await bench.paced("fan-out", served, rate(single[-1]) / 2))
            bare_half.append(await bench.paced("bare transport.write", plan, rate(single[-1]) / 2))
        async with bench.serving() as plan:
            plan = replace(plan, window=_WIDE_WINDOW)
            joined.append(await bench.saturated("fan-out, coalescing", plan))
    report.results += [
        _rate("fanout.deliveries_per_second", single, bare),
        result_of(
            "fanout.deliveries_per_cpu_second",
            "messages/s",
            [per_cpu_second(one) for one in _quiet(single)],
            [per_cpu_second(one) for one in _quiet(bare)],
            disturbed_runs=sum(one.is_disturbed for one in single),
        ),
        _p99("fanout.p99_ms_at_half", half, bare_half),
        result_of(
            "fanout.coalesced_signals_per_second",
            "signals/s",
            [signals_rate(one) for one in _quiet(joined)],
            disturbed_runs=sum(one.is_disturbed for one in joined),
            details={"runs": [_circumstances(one) for one in joined]},
        ),
    ]


async def _measure_tls(bench: Bench, report: FanoutReport, runs: int) -> None:
    single: list[Arrived] = []
    half: list[Arrived] = []
    for _ in range(runs):
        async with bench.serving(_SINGLE, tls=True) as plan:
            single.append(await bench.saturated("fan-out over TLS", plan))
            half.append(await bench.paced("fan-out over TLS", plan, rate(single[-1]) / 2))
    report.results += [
        _rate("fanout.tls_deliveries_per_second", single, []),
        _p99("fanout.tls_p99_ms_at_half", half, []),
    ]


async def _measure_stalled(bench: Bench, report: FanoutReport, pairs: int) -> None:
    """At half of what there can be, by turns without and with two readers that do not read."""
    deliveries = next(one.value for one in report.results if one.name == "fanout.deliveries_per_second") / 2
    async with bench.serving() as plan:
        plan = replace(
            plan,
            mode="stalled",
            pairs=pairs,
            seconds=min(plan.seconds, _STALLED_SECONDS_MAX),
            padding_bytes=_STALLED_PADDING_BYTES,
            signals_per_second=deliveries / plan.subscribers,
        )
        arrived = await bench.quietest(plan)
    all_read = [pair[0] for pair in arrived.p99_pairs_ms]
    beside = [pair[1] for pair in arrived.p99_pairs_ms]
    bench.tell(
        f"at {deliveries:,.0f}/s: p99 {median(all_read):.2f} ms while all read, {median(beside):.2f} ms beside one "
        f"that never reads and one that reads a byte a second, medians of {len(beside)}{note(arrived)}"
    )
    details = {
        **_circumstances(arrived),
        "latency_ms": arrived.latency_ms,
        "all_read_ms": arrived.undisturbed_ms,
        "p99_pairs_ms": arrived.p99_pairs_ms,
    }
    report.results += [
        result_of(
            "fanout.p99_ms_beside_stalled_readers",
            "ms",
            beside,
            all_read,
            less_is_better=True,
            disturbed_runs=len(beside) if arrived.is_disturbed else 0,
            details=details,
        ),
        result_of(
            "fanout.memory_growth_mib_beside_stalled_readers",
            "MiB",
            [arrived.grown_bytes / _MIB],
            details={"all_read_mib": round(arrived.undisturbed_grown_bytes / _MIB, 3)},
        ),
    ]


async def _measure_idle(bench: Bench, report: FanoutReport, wanted: int) -> None:
    allowed = allow_open_files(wanted + _SPARE_FILES)
    count = min(wanted, allowed - _SPARE_FILES)
    if count < wanted:
        bench.tell(f"only {count:,} idle streams: the system lets a process open {allowed:,} files")
    async with bench.serving() as plan:
        arrived = await bench.run(
            replace(plan, mode="idle", subscribers=count, seconds=_REACHES * min(1.0, plan.seconds))
        )
    slowest = max(arrived.signal_reached_all_ms)
    bench.tell(
        f"{count:,} idle streams, opened in {arrived.open_seconds:.1f} s: {arrived.bytes_per_stream / 1_024:.1f} "
        f"KiB each; a signal reached all in {slowest:.0f} ms at most{note(arrived)}"
    )
    details = {"subscribers": count, "wanted": wanted, **_circumstances(arrived)}
    report.results += [
        result_of("fanout.idle_bytes_per_subscriber", "bytes", [arrived.bytes_per_stream], details=details),
        result_of(
            "fanout.idle_reach_ms",
            "ms",
            arrived.signal_reached_all_ms,
            disturbed_runs=len(arrived.signal_reached_all_ms) if arrived.is_disturbed else 0,
            details=details,
        ),
    ]


async def _measure_curve(bench: Bench, report: FanoutReport) -> None:
    for name, way in (("fan-out", bench.serving), ("bare", bench.bare)):
        points = report.curve.setdefault(name, [])
        for deliveries in CURVE:
            try:
                async with way() as plan:
                    points.append((deliveries, (await bench.paced(name, plan, deliveries)).latency_ms))
            except MeshError as error:
                bench.tell(f"{name} at {deliveries:,}/s: {error}")
                break


def _quiet(runs: list[Arrived]) -> list[Arrived]:
    """The runs that count: those that nobody disturbed or, if there are none, all."""
    return [one for one in runs if not one.is_disturbed] or runs


def _rate(name: str, runs: list[Arrived], bare: list[Arrived]) -> Result:
    return result_of(
        name,
        "messages/s",
        [rate(one) for one in _quiet(runs)],
        [rate(one) for one in _quiet(bare)],
        disturbed_runs=sum(one.is_disturbed for one in runs),
        details={
            "runs": [_circumstances(one) for one in runs],
            "yardstick_runs": [_circumstances(one) for one in bare],
        },
    )


def _p99(name: str, runs: list[Arrived], bare: list[Arrived]) -> Result:
    return result_of(
        name,
        "ms",
        [one.latency_ms["p99"] for one in _quiet(runs)],
        [one.latency_ms["p99"] for one in _quiet(bare)],
        less_is_better=True,
        disturbed_runs=sum(one.is_disturbed for one in runs),
        details={
            "runs": [{**_circumstances(one), **one.latency_ms} for one in runs],
            "yardstick_runs": [{**_circumstances(one), **one.latency_ms} for one in bare],
        },
    )


def _circumstances(arrived: Arrived) -> dict[str, Any]:
    return {
        "messages_per_second": round(rate(arrived)),
        "messages_per_cpu_second": round(per_cpu_second(arrived)),
        "messages_per_write": arrived.messages_per_write,
        "bytes_per_message": arrived.bytes_per_message,
        "signals_per_message": round(arrived.signals / max(1, arrived.messages), 2),
        "cores": list(arrived.cores.values()),
        "steal_cores": arrived.steal_cores,
        "others_cores": arrived.others_cores,
        "is_disturbed": arrived.is_disturbed,
    }
