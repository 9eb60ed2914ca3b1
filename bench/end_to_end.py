"""`ecp bench end-to-end`: from a master's send to its subscribers' receipt, beside NATS JetStream; it gates nothing.

Everything real runs on this machine: front door, Valkey with its append-only file, fan-out, HTTP/2. Runs of both sides
take turns, so that what else happens on the machine meets both.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any, Final

from bench import end_to_end_master, end_to_end_readers, machine
from bench.authority import answering
from bench.bare_way import Way, bare_process, bare_relay, bare_way
from bench.end_to_end_master import Sending, Sent
from bench.end_to_end_pace import Pace, now_us
from bench.end_to_end_readers import RANKS, Reading, Received
from bench.fanout_process import FanoutProcess, fanout
from bench.front_door import FrontDoorProcess, front_door
from bench.jetstream import INBOX, SUBJECT, JetStream, jetstream, server_binary, stream
from bench.licenses import MASTER_ID, licensing
from bench.machine import CpuTimes, Disturbance
from bench.plot import Line, line_chart
from bench.process import worker
from bench.result import Result, result_of
from mesh.embedded import RedisServer, redis
from mesh.embedded.folders import run_folder

OURS, YARDSTICK = "ecp", "jetstream"
SHARED: Final = "jetstream, one consumer"
"""One consumer for all subscribers, which then have no place of their own in the stream."""
ACKNOWLEDGED: Final = "jetstream, acknowledged"
"""Each subscriber acknowledges each message."""
NATS_PY: Final = "jetstream, nats-py"
"""With JetStream's own Python client instead of raw sockets."""
BARE: Final = "bare way"
"""Door, Valkey and fan-out that check nothing: the least that our way can cost."""
_SHORTER: Final = {"bare way, one process": bare_process, "bare way, no log": bare_relay}
"""Ways that we do not go: door and fan-out in one process; and that without a log."""
_READERS: Final = "bench.end_to_end_readers"
# Each signal in a message of its own, and no rest between rounds of writing: what is measured is a delivery.
_SINGLE: Final = {"MESSAGE_SIGNALS_MAX": "1", "COALESCING_DELAY_SECONDS_MAX": "0"}
_REPEATS_EACH: Final = 2
_READY_SECONDS_MAX: Final = 90.0
_RESULT_SECONDS_MAX: Final = 180.0
_CHART_MS_MIN: Final = 0.001


@dataclass(frozen=True, slots=True)
class EndToEndOptions:
    """How much to measure."""

    subscribers: tuple[int, ...] = (1, 100)
    signals_per_second: float = 1_000.0
    seconds: float = 4.0
    warmup_seconds: float = 1.0
    runs: int = 5
    repeats: int = 8
    """How many runs may be made anew, in all, when others used too much of the machine."""
    with_yardstick: bool = True


@dataclass(frozen=True, slots=True)
class Placement:
    """The core of each of our processes, and of the clients of both sides; None leaves it to the scheduler.

    JetStream's server has many threads and may run wherever it wants.
    """

    fanout: int | None = None
    log: int | None = None
    door: int | None = None
    clients: int | None = None


@dataclass(slots=True)
class Run:
    """One run of one side."""

    who: str
    subscribers: int
    sent: Sent
    received: Received
    disturbance: Disturbance
    names: dict[int, str]
    """Of the processes, by their ids."""

    @property
    def is_disturbed(self) -> bool:
        """Whether others used too much of the machine."""
        return self.disturbance.is_too_much

    @property
    def p99_ms(self) -> float:
        """Over all deliveries."""
        return self.received.latency_ms["p99"]

    @property
    def per_second(self) -> float:
        """Deliveries."""
        return self.received.delivered / max(self.received.seconds, 1e-6)

    @property
    def delivered_share(self) -> float:
        """1 when every delivery was made."""
        return self.received.delivered / self.received.expected

    def details(self) -> dict[str, Any]:
        """What the JSON tells of it."""
        return {
            "p50_ms": self.received.latency_ms["p50"],
            "latency_ms": self.received.latency_ms,
            "expected": self.received.expected,
            "delivered": self.received.delivered,
            "messages": self.received.messages,
            "deliveries_per_second": round(self.per_second),
            "acknowledged": self.sent.acknowledged,
            "payload_bytes": self.sent.payload_bytes,
            "sent_late_ms": self.sent.late_ms,
            "cores": {self.names[pid]: used for pid, used in self.disturbance.process_cores.items()},
            "steal_cores": self.disturbance.steal_cores,
            "others_cores": self.disturbance.others_cores,
        }


@dataclass(slots=True)
class EndToEndReport:
    """All figures."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def of(self, who: str, subscribers: int) -> list[Run]:
        """The runs that count: those that nobody disturbed or, if there are none, all."""
        runs = [one for one in self.runs if (one.who, one.subscribers) == (who, subscribers)]
        return [one for one in runs if not one.is_disturbed] or runs

    def chart(self) -> str:
        """Latency by how rare it is, as SVG."""
        lines = []
        for who, subscribers in dict.fromkeys((one.who, one.subscribers) for one in self.runs):
            runs = self.of(who, subscribers)
            points = [
                (
                    1 / (1 - rank / 100),
                    max(median(one.received.latency_ms[f"p{rank:g}"] for one in runs), _CHART_MS_MIN),
                )
                for rank in RANKS
                if rank < 100
            ]
            lines.append(Line(f"{who}, {subscribers}", points, dashed=who != OURS))
        title = "Latency from the master's intended send to receipt, by number of subscribers"
        return line_chart(title, "one delivery in so many takes at least", "ms", lines)


@dataclass(slots=True)
class _Bench:
    """Both sides, up and running."""

    options: EndToEndOptions
    tell: Callable[[str], None]
    server: RedisServer
    door: FrontDoorProcess
    fanout: FanoutProcess
    nats: JetStream | None
    placement: Placement
    repeats_left: int

    @property
    def pace(self) -> Pace:
        """Of every run."""
        options = self.options
        return Pace.of(options.signals_per_second, options.warmup_seconds, options.seconds)

    async def ours(self, subscribers: int) -> Run:
        """From the front door to the fan-out's streams."""
        pace = asdict(self.pace)
        processes = {self.door.pid: "ingest", self.server.pid: "log", self.fanout.pid: "fanout"}
        reading = Reading(port=self.fanout.port, subscribers=subscribers, **pace)
        sending = Sending(port=self.door.port, master_id=MASTER_ID, **pace)
        return await self._run(OURS, reading, sending, processes)

    async def theirs(self, subscribers: int, *, who: str = YARDSTICK) -> Run:
        """From a JetStream publisher to JetStream's push consumers."""
        assert self.nats is not None
        pace = asdict(self.pace)
        is_acknowledged = who == ACKNOWLEDGED
        async with stream(
            self.nats, subscribers, is_shared=who == SHARED, is_acknowledged=is_acknowledged
        ) as subjects:
            reading = Reading(
                port=self.nats.port,
                subscribers=subscribers,
                subjects=tuple(subjects),
                acknowledges=is_acknowledged,
                **pace,
            )
            sending = Sending(port=self.nats.port, subject=SUBJECT, inbox=INBOX, **pace)
            readers = "bench.jetstream_nats_py" if who == NATS_PY else _READERS
            return await self._run(who, reading, sending, {self.nats.pid: "nats-server"}, readers)

    async def bare(self, subscribers: int, *, who: str = BARE, bare_way: Way = bare_way) -> Run:
        """Our way, or a shorter one, without all that it is for."""
        pace = asdict(self.pace)
        async with bare_way(self.server.socket, core=self.placement.fanout) as way:
            subjects = (SUBJECT,) * subscribers
            reading = Reading(port=way.fanout_port, subscribers=subscribers, subjects=subjects, **pace)
            sending = Sending(port=way.door_port, subject=SUBJECT, inbox=INBOX, **pace)
            return await self._run(who, reading, sending, {**way.names, self.server.pid: "log"})

    async def _run(
        self,
        who: str,
        reading: Reading,
        sending: Sending,
        processes: dict[int, str],
        module: str = _READERS,
    ) -> Run:
        core = self.placement.clients
        async with worker(core, module, end_to_end_readers.as_json(reading)) as readers:
            end_to_end_readers.check_ready(await readers.line(_READY_SECONDS_MAX))
            async with worker(core, "bench.end_to_end_master", end_to_end_master.as_json(sending)) as master:
                began_us = end_to_end_master.began_us_of(await master.line(_READY_SECONDS_MAX))
                names = {**processes, master.pid: "master", readers.pid: "readers", os.getpid(): "bench"}
                disturbance = await self._watch(began_us, names)
                sent = end_to_end_master.sent_of(await master.line(_RESULT_SECONDS_MAX))
                received = end_to_end_readers.received_of(await readers.line(_RESULT_SECONDS_MAX))
        return Run(who, reading.subscribers, sent, received, disturbance, names)

    async def _watch(self, began_us: int, names: dict[int, str]) -> Disturbance:
        """Who uses the cores from the end of the warm-up to the last signal."""
        pace = self.pace
        await _sleep_until(pace.intended_us(began_us, pace.warmup_signals))
        start = CpuTimes.now(names, time.perf_counter())
        await _sleep_until(pace.intended_us(began_us, pace.signals))
        return Disturbance.between(start, CpuTimes.now(names, time.perf_counter()))

    async def quietest(self, once: Callable[[], Awaitable[Run]]) -> Run:
        """A run that others did not disturb or, when no more may be made anew, the last one."""
        run = await once()
        self.tell(_line(run))
        for _ in range(min(_REPEATS_EACH, self.repeats_left)):
            if not run.is_disturbed:
                break
            self.repeats_left -= 1
            run = await once()
            self.tell(_line(run))
        return run


def _on(core: int | None) -> AbstractContextManager[None]:
    return machine.pinned(core) if core is not None else nullcontext()


async def _sleep_until(at_us: int) -> None:
    await asyncio.sleep(max(0, at_us - now_us()) / 1e6)


def _line(run: Run) -> str:
    received = run.received
    shown = ", ".join(f"{rank} {value:.2f} ms" for rank, value in received.latency_ms.items())
    note = ""
    if run.is_disturbed:
        disturbance = run.disturbance
        stolen, used = disturbance.steal_cores, disturbance.others_cores
        note = f" (disturbed: {stolen:.2f} core stolen, {used:.2f} used by others)"
    return (
        f"{run.who} to {run.subscribers}: {received.delivered:,} of {received.expected:,} delivered,"
        f" {run.per_second:,.0f}/s; {shown}{note}"
    )


@asynccontextmanager
async def _running(
    options: EndToEndOptions, tell: Callable[[str], None], placement: Placement
) -> AsyncIterator[_Bench]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(run_folder())
        nats = await stack.enter_async_context(jetstream(folder)) if options.with_yardstick else None
        with _on(placement.log):
            server = await stack.enter_async_context(redis())
        authority_port = await stack.enter_async_context(answering())
        licensing_port = await stack.enter_async_context(licensing())
        door = await stack.enter_async_context(
            front_door(server.url, authority_port, folder, core=placement.door)
        )
        process = await stack.enter_async_context(
            fanout(server.url, licensing_port, folder, core=placement.fanout, environment=_SINGLE)
        )
        yield _Bench(options, tell, server, door, process, nats, placement, options.repeats)


async def measure(options: EndToEndOptions, tell: Callable[[str], None]) -> EndToEndReport:
    """Measures everything; `tell` gets a line for each run.

    Raises:
        ConfigurationError: this machine cannot be measured on, or the yardstick is not installed.
        MeshError: something did not start, refused its work, or broke the order of signals.
    """
    cores = machine.two_cores()
    if options.with_yardstick:
        server_binary()
    report = EndToEndReport(machine.describe())
    # The services together on one core, master and subscribers on the other: with a hundred subscribers those have
    # the most to do, and signals wait longer where anything else shares their core.
    placement = Placement(cores[0], cores[0], cores[0], cores[1])
    async with _running(options, tell, placement) as bench:
        if bench.nats is not None:
            report.machine["jetstream"] = f"nats-server {bench.nats.version}"
        for number in range(options.runs):
            for subscribers in options.subscribers:
                await _measure_round(bench, subscribers, report, is_first=number == 0)
    for subscribers in options.subscribers:
        report.results += _results(report, subscribers)
    return report


async def _measure_round(bench: _Bench, subscribers: int, report: EndToEndReport, *, is_first: bool) -> None:
    """Every side once, one after the other; what is told only beside the yardstick, in the first round."""
    report.runs.append(await bench.quietest(partial(bench.ours, subscribers)))
    if is_first:
        for who, way in {BARE: bare_way, **_SHORTER}.items():
            once = partial(bench.bare, subscribers, who=who, bare_way=way)
            report.runs.append(await bench.quietest(once))
    if bench.nats is None:
        return
    ways = [YARDSTICK]
    if is_first:
        ways += [ACKNOWLEDGED, NATS_PY] if subscribers == 1 else [ACKNOWLEDGED, NATS_PY, SHARED]
    for who in ways:
        report.runs.append(await bench.quietest(partial(bench.theirs, subscribers, who=who)))


def _results(report: EndToEndReport, subscribers: int) -> list[Result]:
    ours, theirs = report.of(OURS, subscribers), report.of(YARDSTICK, subscribers)
    disturbed = sum(one.is_disturbed for one in ours)
    details: dict[str, Any] = {
        "runs": [one.details() for one in ours],
        "bare_way_runs": [one.details() for one in report.of(BARE, subscribers)],
        "shorter_way_runs": {who: [one.details() for one in report.of(who, subscribers)] for who in _SHORTER},
        "yardstick_runs": [one.details() for one in theirs],
        "yardstick_runs_with_acknowledgements": [
            one.details() for one in report.of(ACKNOWLEDGED, subscribers)
        ],
        "yardstick_runs_with_nats_py": [one.details() for one in report.of(NATS_PY, subscribers)],
        "yardstick_runs_with_one_consumer": [one.details() for one in report.of(SHARED, subscribers)],
    }
    return [
        result_of(
            f"end_to_end.p99_ms_{subscribers}",
            "ms",
            [one.p99_ms for one in ours],
            [one.p99_ms for one in theirs],
            less_is_better=True,
            disturbed_runs=disturbed,
            details=details,
        ),
        result_of(
            f"end_to_end.p50_ms_{subscribers}",
            "ms",
            [one.received.latency_ms["p50"] for one in ours],
            [one.received.latency_ms["p50"] for one in theirs],
            less_is_better=True,
            disturbed_runs=disturbed,
        ),
        result_of(
            f"end_to_end.deliveries_per_second_{subscribers}",
            "deliveries/s",
            [one.per_second for one in ours],
            [one.per_second for one in theirs],
            disturbed_runs=disturbed,
        ),
        result_of(
            f"end_to_end.delivered_share_{subscribers}",
            "of all",
            [one.delivered_share for one in ours],
            [one.delivered_share for one in theirs],
            disturbed_runs=disturbed,
        ),
    ]
