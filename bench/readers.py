"""The subscribers' process: `python -m bench.readers JSON` opens streams, feeds signals, prints what arrived.

`saturate` keeps a number of signals under way and counts deliveries in a time. `pace` feeds signals at set times,
whatever arrives, and takes each latency from the set time. `idle` opens many streams and sees what they cost.
"""

from __future__ import annotations

import gc
import json
import os
import select
import ssl
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.feeders import BareFeeder, Feeder, LogFeeder
from bench.licenses import MASTER_ID
from bench.machine import CpuTimes, Disturbance, resident_bytes
from bench.reader import Chunk, Reader
from bench.samples import Samples
from execution.fanout.v1 import fanout_service_pb2 as pb
from mesh.errors import MeshError

_POLL_SECONDS: Final = 0.002
_OPENED_AT_ONCE: Final = 100
_WARM_STREAMS: Final = 200
_WAIT_SECONDS_MAX: Final = 300.0


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
    seconds: float = 4.0
    warmup_seconds: float = 1.0
    signals_per_second: float = 0.0
    """Of `pace`."""
    window: int = 8
    """Signals under way, of `saturate`."""
    watched_pids: tuple[int, ...] = ()
    """Processes of the measurement, besides the readers; the first is the one that is measured."""


@dataclass(slots=True)
class Arrived:
    """What the readers saw, of the time after the warm-up."""

    seconds: float = 0.0
    messages: int = 0
    signals: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    cores: dict[int, float] = field(default_factory=dict)
    steal_cores: float = 0.0
    others_cores: float = 0.0
    is_disturbed: bool = False
    bytes_per_stream: float = 0.0
    signal_reached_all_ms: list[float] = field(default_factory=list)


class Swarm:
    """All readers."""

    def __init__(self, plan: Plan) -> None:
        self.messages = 0
        self.signals = 0
        self.latencies = Samples()
        self.takes_latencies = plan.mode != "saturate"
        self._plan = plan
        self._poller = select.epoll()
        self._readers: dict[int, Reader] = {}
        self._now_us = 0
        self._tls = None if not plan.ca_file else ssl.create_default_context(cafile=plan.ca_file)
        if self._tls is not None:
            self._tls.set_alpn_protocols(["h2"])

    def open(self, count: int) -> None:
        """Opens so many more streams, a few at a time, and waits for the first word of each."""
        ends_at = time.monotonic() + _WAIT_SECONDS_MAX
        target = len(self._readers) + count
        while len(self._readers) < target:
            fresh = []
            for _ in range(min(_OPENED_AT_ONCE, target - len(self._readers))):
                number = len(self._readers)
                reader = Reader(self._plan.port, f"license-{number}", MASTER_ID, self._tls)
                self._readers[reader.socket.fileno()] = reader
                self._poller.register(reader.socket.fileno(), select.EPOLLIN)
                fresh.append(reader)
            while not all(reader.has_begun for reader in fresh):
                self.poll(0.05)
                if time.monotonic() > ends_at:
                    raise MeshError("the streams did not begin in time")

    def poll(self, seconds: float) -> None:
        """Reads what is there."""
        readers, on_chunk = self._readers, self._on_chunk
        for fd, _ in self._poller.poll(seconds):
            self._now_us = time.time_ns() // 1_000
            readers[fd].receive_chunks(on_chunk)

    def reset(self) -> None:
        """Counts from here."""
        self.messages = self.signals = 0
        self.latencies = Samples()

    def _on_chunk(self, chunk: Chunk) -> None:
        times = chunk.times_us
        if times is None:
            responses = [pb.SubscribeResponse.FromString(message) for message in chunk.messages]
            times = tuple(one.signal.occurred_at_us for each in responses for one in each.signals.signals)
            chunk.times_us = times
        self.messages += len(chunk.messages)
        self.signals += len(times)
        if self.takes_latencies:
            for intended_us in times:
                self.latencies.add_seconds((self._now_us - intended_us) / 1e6)


class _Clock:
    """Writes down the circumstances of the measured time."""

    def __init__(self, plan: Plan) -> None:
        self._pids = plan.watched_pids
        self._start = CpuTimes.now(self._pids, time.perf_counter())

    def end(self, swarm: Swarm) -> Arrived:
        """What arrived until now."""
        end = CpuTimes.now(self._pids, time.perf_counter())
        disturbance = Disturbance.between(self._start, end)
        return Arrived(
            seconds=end.wall_seconds - self._start.wall_seconds,
            messages=swarm.messages,
            signals=swarm.signals,
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
    interval_us = 1e6 / plan.signals_per_second
    total = int((plan.seconds + plan.warmup_seconds) * plan.signals_per_second)
    warm = int(plan.warmup_seconds * plan.signals_per_second)
    began_us, fed, clock = time.time_ns() // 1_000, 0, None
    ends_at = time.monotonic() + plan.seconds + plan.warmup_seconds + _WAIT_SECONDS_MAX
    while clock is None or swarm.signals < (total - warm) * plan.subscribers:
        due = min(total, int((time.time_ns() // 1_000 - began_us) / interval_us) + 1)
        if clock is None and due > warm:
            due = warm
        feeder.feed([began_us + int(number * interval_us) for number in range(fed, due)])
        fed = max(fed, due)
        swarm.poll(_POLL_SECONDS / 4)
        if clock is None and fed == warm and swarm.signals >= warm * plan.subscribers:
            swarm.reset()
            clock = _Clock(plan)
            began_us = time.time_ns() // 1_000 - int(warm * interval_us)
        if time.monotonic() > ends_at:
            raise MeshError(f"signals are missing: {swarm.signals} came")
    return clock.end(swarm)


def idle(plan: Plan, swarm: Swarm, feeder: Feeder) -> Arrived:
    """What a stream costs, beyond the first few, and how long one signal takes to reach all."""
    pid = plan.watched_pids[0]
    feeder.feed([time.time_ns() // 1_000])
    _settle(swarm, plan.warmup_seconds)
    before = resident_bytes(pid)
    swarm.open(plan.subscribers - _WARM_STREAMS)
    _settle(swarm, max(plan.warmup_seconds, 2.0))
    grown = resident_bytes(pid) - before
    clock = _Clock(plan)
    slowest: list[float] = []
    for _ in range(max(1, int(plan.seconds))):
        swarm.reset()
        feeder.feed([time.time_ns() // 1_000])
        _settle(swarm, 1.0)
        if swarm.signals != plan.subscribers:
            raise MeshError(f"{swarm.signals} of {plan.subscribers} streams had the signal after a second")
        slowest.append(swarm.latencies.percentiles_ms([100.0])["p100"])
    arrived = clock.end(swarm)
    arrived.bytes_per_stream = grown / (plan.subscribers - _WARM_STREAMS)
    arrived.signal_reached_all_ms = slowest
    return arrived


def _settle(swarm: Swarm, seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        swarm.poll(0.02)


def as_json(plan: Plan) -> str:
    """The plan as this process's argument."""
    return json.dumps(asdict(plan))


def arrived_of(line: str) -> Arrived:
    """What the process printed.

    Raises:
        MeshError: it could not be done.
    """
    values: dict[str, Any] = json.loads(line)
    if "error" in values:
        raise MeshError(str(values["error"]))
    values["cores"] = {int(pid): used for pid, used in values["cores"].items()}
    return Arrived(**values)


def main() -> None:
    """Carries the plan out."""
    values = json.loads(sys.argv[1])
    # This process, and the one that started it and stands in for the ledger, are part of the measurement.
    own = (os.getpid(), os.getppid())
    plan = Plan(**{**values, "watched_pids": (*values["watched_pids"], *own)})
    feeder: Feeder = BareFeeder(plan.control_port) if plan.control_port else LogFeeder(plan.redis_url)
    swarm = Swarm(plan)
    try:
        swarm.open(min(plan.subscribers, _WARM_STREAMS) if plan.mode == "idle" else plan.subscribers)
        gc.collect()
        gc.freeze()
        gc.disable()
        arrived = {"saturate": saturate, "pace": pace, "idle": idle}[plan.mode](plan, swarm, feeder)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise SystemExit(1) from error
    print(json.dumps(asdict(arrived)), flush=True)


if __name__ == "__main__":
    main()
