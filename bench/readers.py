"""The subscribers' process: `python -m bench.readers JSON` opens streams, feeds signals, prints what arrived.

`saturate` keeps a number of signals under way and counts deliveries in a time. `pace` feeds signals at set times,
whatever arrives, and takes each latency from the set time. `stalled` does so by turns without and with two more that do
not read. `idle` opens many streams and sees what they cost.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.feeders import PADDING_BYTES, BareFeeder, Feeder, LogFeeder
from bench.machine import CpuTimes, Disturbance, resident_bytes, write_calls
from bench.samples import Samples
from bench.swarm import BadReaders, Swarm
from mesh.errors import MeshError

_POLL_SECONDS: Final = 0.002
_WARM_STREAMS: Final = 200
_SETTLE_SECONDS: Final = 2.0
_BETWEEN_SECONDS: Final = 0.5
_WAIT_SECONDS_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to open and to feed."""

    port: int
    subscribers: int
    mode: str
    redis_url: str = ""
    control_port: int = 0
    """Of the bare writer, instead of a log."""
    ca_file: str = ""
    """Set: over TLS."""
    seconds: float = 4.0
    warmup_seconds: float = 1.0
    signals_per_second: float = 0.0
    """Of `pace` and `stalled`."""
    window: int = 8
    """Signals under way, of `saturate`."""
    padding_bytes: int = PADDING_BYTES
    pairs: int = 5
    """Of `stalled`: how often it is measured without and with readers that do not read."""
    watched_pids: tuple[int, ...] = ()
    """Processes of the measurement, besides the readers; the first is the one that is measured."""


@dataclass(slots=True)
class Arrived:
    """What the readers saw, of the time after the warm-up."""

    seconds: float = 0.0
    messages: int = 0
    signals: int = 0
    bytes_per_message: float = 0.0
    messages_per_write: float = 0.0
    """Of the measured process: how many messages it handed to the kernel at once."""
    latency_ms: dict[str, float] = field(default_factory=dict)
    cores: dict[int, float] = field(default_factory=dict)
    steal_cores: float = 0.0
    others_cores: float = 0.0
    is_disturbed: bool = False
    undisturbed_ms: dict[str, float] = field(default_factory=dict)
    """Of `stalled`: latencies while all read; `latency_ms` is beside readers that do not."""
    p99_pairs_ms: list[tuple[float, float]] = field(default_factory=list)
    """Of `stalled`: of each pair of turns, while all read and beside readers that do not."""
    grown_bytes: int = 0
    """Of `stalled`: by how much the measured process grew beside readers that do not read."""
    undisturbed_grown_bytes: int = 0
    bytes_per_stream: float = 0.0
    open_seconds: float = 0.0
    signal_reached_all_ms: list[float] = field(default_factory=list)


class _Clock:
    """Writes down the circumstances of the measured time."""

    def __init__(self, plan: Plan) -> None:
        self._pids = plan.watched_pids
        self._writes = write_calls(self._pids[0])
        self._start = CpuTimes.now(self._pids, time.perf_counter())

    def end(self, swarm: Swarm) -> Arrived:
        """What arrived until now."""
        end = CpuTimes.now(self._pids, time.perf_counter())
        writes = write_calls(self._pids[0]) - self._writes
        disturbance = Disturbance.between(self._start, end)
        return Arrived(
            seconds=end.wall_seconds - self._start.wall_seconds,
            messages=swarm.messages,
            signals=swarm.signals,
            bytes_per_message=round(swarm.payload_bytes / max(1, swarm.messages), 1),
            messages_per_write=round(swarm.messages / max(1, writes), 2),
            latency_ms=swarm.latencies.percentiles_ms(),
            cores=disturbance.process_cores,
            steal_cores=disturbance.steal_cores,
            others_cores=disturbance.others_cores,
            is_disturbed=disturbance.is_too_much,
        )


def saturate(plan: Plan, swarm: Swarm, feeder: Feeder) -> Arrived:
    """Keeps `window` signals under way until the time is over."""
    fed = received = 0
    began = time.perf_counter()
    clock: _Clock | None = None
    while (now := time.perf_counter()) < began + plan.warmup_seconds + plan.seconds:
        if clock is None and now - began >= plan.warmup_seconds:
            received += swarm.signals
            swarm.reset()
            clock = _Clock(plan)
        missing = plan.window - (fed - (received + swarm.signals) // plan.subscribers)
        if missing > 0:
            feeder.feed([time.time_ns() // 1_000] * missing)
            fed += missing
        swarm.poll(_POLL_SECONDS)
    assert clock is not None
    return clock.end(swarm)


def pace(plan: Plan, swarm: Swarm, feeder: Feeder) -> Arrived:
    """Feeds each signal at its time, then waits for the last."""
    _pace_for(plan.warmup_seconds, plan, swarm, feeder)
    clock = _Clock(plan)
    _pace_for(plan.seconds, plan, swarm, feeder)
    return clock.end(swarm)


def stalled(plan: Plan, swarm: Swarm, feeder: Feeder) -> Arrived:
    """The others' latencies by turns without and with a reader that never reads and one that reads a byte a second."""
    pid, latencies, grown = plan.watched_pids[0], (Samples(), Samples()), [0, 0]
    p99s: tuple[list[float], list[float]] = ([], [])
    _pace_for(plan.warmup_seconds, plan, swarm, feeder)
    clock = _Clock(plan)
    for turn in range(2 * plan.pairs):
        # Every other pair the other way round: what a machine does over time then meets both alike.
        kind = (turn + turn // 2) % 2
        before = resident_bytes(pid)
        with BadReaders(plan.port) if kind else nullcontext() as bad:
            # Until the buffers of those that do not read are full.
            _pace_for(plan.warmup_seconds, plan, swarm, feeder, bad)
            _pace_for(plan.seconds, plan, swarm, feeder, bad)
            grown[kind] += resident_bytes(pid) - before
        latencies[kind].extend(swarm.latencies)
        p99s[kind].append(swarm.latencies.percentiles_ms([99.0])["p99"])
    arrived = clock.end(swarm)
    arrived.p99_pairs_ms = list(zip(*p99s, strict=True))
    arrived.latency_ms, arrived.undisturbed_ms = latencies[1].percentiles_ms(), latencies[0].percentiles_ms()
    arrived.grown_bytes, arrived.undisturbed_grown_bytes = grown[1], grown[0]
    return arrived


def _pace_for(
    seconds: float, plan: Plan, swarm: Swarm, feeder: Feeder, bad: BadReaders | None = None
) -> None:
    """Feeds for a time and reads until everything has come; what came before is not counted."""
    total = int(seconds * plan.signals_per_second)
    swarm.reset()
    interval_us = 1e6 / plan.signals_per_second
    began_us, fed = time.time_ns() // 1_000, 0
    ends_at = time.monotonic() + total / plan.signals_per_second + _WAIT_SECONDS_MAX
    while swarm.signals < total * plan.subscribers:
        due = min(total, int((time.time_ns() // 1_000 - began_us) / interval_us) + 1)
        if due > fed:
            feeder.feed([began_us + int(number * interval_us) for number in range(fed, due)])
            fed = due
        swarm.poll(_POLL_SECONDS / 4)
        if bad is not None:
            bad.step()
        if time.monotonic() > ends_at:
            raise MeshError(f"signals are missing: {swarm.signals} of {total * plan.subscribers} came")


def idle(plan: Plan, swarm: Swarm, feeder: Feeder) -> Arrived:
    """What a stream costs, beyond the first few, and how long one signal takes to reach all."""
    pid = plan.watched_pids[0]
    feeder.feed([time.time_ns() // 1_000])
    swarm.settle(_SETTLE_SECONDS)
    before, more = resident_bytes(pid), plan.subscribers - len(swarm)
    began = time.perf_counter()
    swarm.open(more, _tell)
    open_seconds = time.perf_counter() - began
    swarm.settle(_SETTLE_SECONDS)
    grown = resident_bytes(pid) - before
    clock = _Clock(plan)
    slowest: list[float] = []
    for _ in range(max(1, int(plan.seconds))):
        swarm.reset()
        feeder.feed([time.time_ns() // 1_000])
        ends_at = time.monotonic() + _WAIT_SECONDS_MAX
        while swarm.signals < plan.subscribers:
            swarm.poll(_POLL_SECONDS)
            if time.monotonic() > ends_at:
                raise MeshError(f"{swarm.signals} of {plan.subscribers} streams were reached by a signal")
        swarm.settle(_BETWEEN_SECONDS)
        slowest.append(swarm.latencies.percentiles_ms([100.0])["p100"])
    arrived = clock.end(swarm)
    arrived.bytes_per_stream = grown / more
    arrived.open_seconds = open_seconds
    arrived.signal_reached_all_ms = slowest
    return arrived


_MODES: Final = {"saturate": saturate, "pace": pace, "stalled": stalled, "idle": idle}


def as_json(plan: Plan) -> str:
    """The plan as this process's argument."""
    return json.dumps(asdict(plan))


def arrived_of(line: str) -> Arrived | str:
    """What the process printed: its result, or how far it is.

    Raises:
        MeshError: it could not be done.
    """
    values: dict[str, Any] = json.loads(line)
    if "error" in values:
        raise MeshError(str(values["error"]))
    if "progress" in values:
        return str(values["progress"])
    values["cores"] = {int(pid): used for pid, used in values["cores"].items()}
    return Arrived(**values)


def _tell(progress: str) -> None:
    print(json.dumps({"progress": progress}), flush=True)


def _run(plan: Plan) -> Arrived:
    swarm = Swarm(plan.port, plan.ca_file, takes_latencies=plan.mode != "saturate")
    feeder: Feeder = (
        BareFeeder(plan.control_port) if plan.control_port else LogFeeder(plan.redis_url, plan.padding_bytes)
    )
    swarm.open(min(plan.subscribers, _WARM_STREAMS) if plan.mode == "idle" else plan.subscribers)
    gc.collect()
    gc.freeze()
    gc.disable()
    return _MODES[plan.mode](plan, swarm, feeder)


def main() -> None:
    """Carries the plan out."""
    values = json.loads(sys.argv[1])
    # This process, and the one that started it and stands in for the ledger, are part of the measurement.
    own = (os.getpid(), os.getppid())
    plan = Plan(**{**values, "watched_pids": (*values["watched_pids"], *own)})
    try:
        arrived = _run(plan)
    except Exception as error:
        # Whatever it was, the benchmark that waits for this process is to hear why it ends.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise SystemExit(1) from error
    print(json.dumps(asdict(arrived)), flush=True)


if __name__ == "__main__":
    main()
