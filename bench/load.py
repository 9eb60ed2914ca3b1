"""The load's process: `python -m bench.load JSON` logs in, signs, then sends at a pace and prints what it saw as JSON.

`saturate` keeps a window of signals under way on every connection and counts what is acknowledged in a time. `pace`
sends single signals at set times, whatever the other side does, and takes each latency from the set time.
"""

from __future__ import annotations

import gc
import json
import math
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.echo_load import EchoConnection
from bench.machine import CpuTimes, Disturbance, resident_bytes
from bench.samples import Samples
from bench.signed_load import LoadConnection, LoadError, sign
from mesh.errors import MeshError

_POLL_SECONDS: Final = 0.1
_NAP_SECONDS: Final = 0.0001
_LAST_ACK_SECONDS_MAX: Final = 20.0

Connection = LoadConnection | EchoConnection


@dataclass(frozen=True, slots=True)
class Load:
    """What to send."""

    port: int
    connections: int = 64
    batch: int = 1
    seconds: float = 4.0
    warmup_seconds: float = 1.0
    signals_per_second: int = 100_000
    """Of `pace`: the pace. Of `saturate`: for how many to sign frames; a load that runs out ends early."""
    window: int = 512
    """Signals under way on each connection, of `saturate`."""
    paced: bool = False
    echo: bool = False
    """Against a bare echo instead of a front door."""
    first_master_id: int = 1
    watched_pids: tuple[int, ...] = ()
    """Processes that belong to the measurement, besides the load; the first is the one that is measured."""


@dataclass(slots=True)
class Seen:
    """What one load saw, of the time after the warm-up."""

    seconds: float = 0.0
    signals: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    late_ms: dict[str, float] = field(default_factory=dict)
    """How far behind the set times the load itself sent."""
    cores: dict[int, float] = field(default_factory=dict)
    """Used by each watched process."""
    steal_cores: float = 0.0
    others_cores: float = 0.0
    is_disturbed: bool = False
    ran_out: bool = False
    """A connection had sent all its frames before the time was over; perhaps still in the warm-up."""
    resident_start_bytes: int = 0
    resident_end_bytes: int = 0

    @property
    def signals_per_second(self) -> float:
        """Acknowledged."""
        return self.signals / self.seconds if self.seconds else 0.0


class _Clock:
    """Begins the measured time after the warm-up and writes down its circumstances."""

    def __init__(self, load: Load) -> None:
        self._pids = load.watched_pids
        self._start: CpuTimes | None = None
        self._resident_bytes = 0

    def begin(self, now: float) -> None:
        """The warm-up is over."""
        self._resident_bytes = resident_bytes(self._pids[0]) if self._pids else 0
        self._start = CpuTimes.now(self._pids, now)

    def end(self, now: float, seen: Seen) -> None:
        """The measured time is over."""
        assert self._start is not None
        disturbance = Disturbance.between(self._start, CpuTimes.now(self._pids, now))
        seen.seconds = now - self._start.wall_seconds
        seen.cores = disturbance.process_cores
        seen.steal_cores, seen.others_cores = disturbance.steal_cores, disturbance.others_cores
        seen.is_disturbed = disturbance.is_too_much
        seen.resident_start_bytes = self._resident_bytes
        seen.resident_end_bytes = resident_bytes(self._pids[0]) if self._pids else 0


def connect(load: Load) -> list[Connection]:
    """Opens and prepares every connection; frames are signed in the order of the connections."""
    opened: list[Connection] = []
    per_second = load.signals_per_second / load.connections / load.batch
    frames = math.ceil(per_second * (load.seconds + load.warmup_seconds)) + 1
    for number in range(load.connections):
        master_id = load.first_master_id + number
        if load.echo:
            echo = EchoConnection(load.port)
            echo.frames = sign(b"no key", 1, frames, load.batch)
            opened.append(echo)
        else:
            connection = LoadConnection(load.port, master_id)
            connection.log_in()
            connection.frames = sign(connection.session_key, connection.base + 1, frames, load.batch)
            opened.append(connection)
        for other in opened:
            other.receive()
    return opened


def saturate(load: Load, connections: list[Connection]) -> Seen:
    """Keeps every window full until the time is over or a connection has no more frames."""
    poller, by_fd = select.epoll(), {one.socket.fileno(): one for one in connections}
    window_frames = max(1, load.window // load.batch)
    for fd, one in by_fd.items():
        poller.register(fd, select.EPOLLIN)
        one.allow(window_frames)
        one.send()
    seen, clock, counted, is_measuring = Seen(), _Clock(load), 0, False
    began = time.perf_counter()
    ends_at = began + load.warmup_seconds + load.seconds
    has_frames = True
    clock.begin(began)
    while has_frames and (now := time.perf_counter()) < ends_at:
        if not is_measuring and now - began >= load.warmup_seconds:
            is_measuring, counted = True, 0
            clock.begin(now)
        for fd, _ in poller.poll(_POLL_SECONDS):
            one = by_fd[fd]
            counted += one.receive()
            if one.allow(one.acknowledged // load.batch + window_frames):
                has_frames = False
            # What does not fit now goes out behind the next acknowledgement: part of a window is under way.
            one.send()
    clock.end(time.perf_counter(), seen)
    seen.signals, seen.ran_out = counted, not has_frames
    return seen


class _Pacer:
    """Sends signal k on connection k modulo n, at its time; takes the latency of each from that time."""

    def __init__(self, load: Load, connections: list[Connection], began: float) -> None:
        self._connections = connections
        self._interval = 1 / load.signals_per_second
        self._began = began
        self._measured_from = math.ceil(load.warmup_seconds * load.signals_per_second)
        self.signals = int((load.seconds + load.warmup_seconds) * load.signals_per_second)
        self.sent = 0
        self.answered = 0
        self.latencies = Samples()
        self.late = Samples()

    def send_due(self, now: float) -> float:
        """Sends what is due; returns the seconds until the next is."""
        due = min(self.signals, int((now - self._began) / self._interval) + 1)
        count = len(self._connections)
        while self.sent < due:
            one = self._connections[self.sent % count]
            one.allow(self.sent // count + 1)
            one.send()
            if self.sent >= self._measured_from:
                self.late.add_seconds(now - self._began - self.sent * self._interval)
            self.sent += 1
        return self._began + self.sent * self._interval - now

    def receive(self, index: int, now: float) -> None:
        """Takes the answers that came on a connection."""
        one, count = self._connections[index], len(self._connections)
        before = one.acknowledged
        answers = one.receive()
        self.answered += answers
        for number in range(before, before + answers):
            signal = number * count + index
            if signal >= self._measured_from:
                self.latencies.add_seconds(now - self._began - signal * self._interval)


def pace(load: Load, connections: list[Connection]) -> Seen:
    """Sends at set times and waits for the last answer.

    Raises:
        LoadError: answers are missing long after the last signal.
    """
    poller = select.epoll()
    index_of = {one.socket.fileno(): index for index, one in enumerate(connections)}
    for fd in index_of:
        poller.register(fd, select.EPOLLIN)
    seen, clock, is_measuring = Seen(), _Clock(load), False
    began = time.perf_counter()
    pacer = _Pacer(load, connections, began)
    ends_at = began + load.warmup_seconds + load.seconds + _LAST_ACK_SECONDS_MAX
    while pacer.answered < pacer.signals:
        now = time.perf_counter()
        if now > ends_at:
            raise LoadError(f"{pacer.signals - pacer.answered} of {pacer.signals} signals were not answered")
        if not is_measuring and now - began >= load.warmup_seconds:
            is_measuring = True
            clock.begin(now)
        wait_seconds = pacer.send_due(now)
        events = poller.poll(0)
        now = time.perf_counter()
        for fd, _ in events:
            pacer.receive(index_of[fd], now)
        if not events and wait_seconds > 0:
            # epoll counts in milliseconds, which is too coarse here.
            time.sleep(min(wait_seconds, _NAP_SECONDS))
    clock.end(time.perf_counter(), seen)
    seen.signals = len(pacer.latencies)
    seen.latency_ms, seen.late_ms = pacer.latencies.percentiles_ms(), pacer.late.percentiles_ms()
    return seen


def run(load: Load) -> Seen:
    """Connects, runs the load and closes.

    Raises:
        LoadError: the other side did not do what was expected.
    """
    connections = connect(load)
    way: Callable[[Load, list[Connection]], Seen] = pace if load.paced else saturate
    # Nothing that was made so far is garbage, and looking through it would make the load stutter.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return way(load, connections)
    finally:
        for one in connections:
            one.close()


def as_json(load: Load) -> str:
    """The argument of the process."""
    return json.dumps(asdict(load))


def seen_of(line: str) -> Seen:
    """What the process printed.

    Raises:
        MeshError: it printed why it failed.
    """
    document: dict[str, Any] = json.loads(line)
    if "error" in document:
        raise MeshError(document["error"])
    cores = {int(pid): used for pid, used in document.pop("cores").items()}
    return Seen(**document, cores=cores)


def main() -> int:
    """Runs the load that the argument describes."""
    fields = json.loads(sys.argv[1])
    try:
        seen = run(Load(**{**fields, "watched_pids": (*fields["watched_pids"], os.getpid())}))
    except (LoadError, OSError) as error:
        print(json.dumps({"error": f"the load failed: {error}"}), flush=True)
        return 1
    print(json.dumps(asdict(seen)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
