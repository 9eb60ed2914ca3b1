"""`ecp torture fanout`: restarts and kills fan-out processes under load and holds what came against what was logged.

Several processes, as replicas behind a balancer of the clients' own, and each of one or more workers. One after the
other is told to end, drains, and comes back, while every subscriber goes on elsewhere from the position that it holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.authority import SERVICE_TOKEN
from bench.licenses import licensing
from bench.torture.followers import Outcome, Plan, Status
from mesh.embedded import redis
from mesh.errors import MeshError
from mesh.open_files import require_open_files
from mesh.ports import LOOPBACK, PortBlock, port_block
from mesh.supervisor import ServiceSpec, Supervised

_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
_PROGRESS_SECONDS_MAX: Final = 60.0
_POLL_SECONDS: Final = 0.1
_PAUSE_SECONDS_MAX: Final = 1.0
_ANSWER_SECONDS_MAX: Final = 90.0
_PROBLEMS_SHOWN: Final = 20
_SPARE_FILES: Final = 300


@dataclass(frozen=True, slots=True)
class FanoutTortureOptions:
    """What to do to it."""

    processes: int = 3
    workers: int = 1
    """Of each process."""
    subscribers: int = 300
    signals_per_second: float = 1_000.0
    rounds: int = 3
    """How often each process is restarted in order."""
    kills: int = 0
    """How often a process, or one of its workers, is killed, at random among the restarts."""
    edge: str = "h2"
    drain_spread_seconds: float = 5.0
    seed: int = 0


@dataclass(slots=True)
class FanoutTortureReport:
    """What was done and what it led to; sound when nothing is missing or doubled, and nothing else broken."""

    options: dict[str, Any]
    seconds: float = 0.0
    restarts: int = 0
    kills: int = 0
    load_average: float = 0.0
    """Of the machine over the last minute: beyond the number of its cores silences are not the fan-out's alone."""
    outcome: Outcome = field(default_factory=lambda: Outcome(0))

    @property
    def is_sound(self) -> bool:
        """Whether every subscriber had each signal once and in order."""
        outcome = self.outcome
        return not (outcome.missing or outcome.doubled or outcome.problems) and outcome.deliveries > 0

    def silence_seconds(self, share: float) -> float:
        """So long or shorter was the longest silence of this share of the subscribers."""
        silences = self.outcome.silences_seconds
        return silences[min(len(silences) - 1, int(share * len(silences)))] if silences else 0.0

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        silence = {name: round(self.silence_seconds(share), 3) for name, share in _SHARES.items()}
        values = asdict(self)
        del values["outcome"]["silences_seconds"]
        return {"is_sound": self.is_sound, **values, "longest_silence_seconds": silence}

    def summary(self) -> list[str]:
        """For people."""
        outcome = self.outcome
        ends = ", ".join(f"{count:,} × {how}" for how, count in sorted(outcome.ends.items()))
        silence = ", ".join(f"{name} {self.silence_seconds(share):.2f} s" for name, share in _SHARES.items())
        return [
            f"{self.restarts} restarts and {self.kills} kills in {self.seconds:.0f} s, {outcome.signals:,} signals;"
            f" load average {self.load_average:.1f} on {os.cpu_count()} cores",
            f"{outcome.deliveries:,} deliveries in {outcome.streams:,} streams: missing {outcome.missing:,},"
            f" doubled {outcome.doubled:,}",
            f"{outcome.drains:,} drains; streams ended: {ends or 'none'}",
            f"longest silence of a subscriber: {silence} (of the log itself: {outcome.feed_pause_seconds_max:.2f} s)",
            *(f"VIOLATION {problem}" for problem in outcome.problems[:_PROBLEMS_SHOWN]),
            "sound" if self.is_sound else "NOT SOUND",
        ]


_SHARES: Final = {"median": 0.5, "p99": 0.99, "max": 1.0}


class _Swarm:
    """The subscribers' process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, word: str) -> dict[str, Any]:
        """What it prints when told a word.

        Raises:
            MeshError: it ended, or says nothing.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n".encode())
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise MeshError("the subscribers' process has ended or does not answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def status(self) -> Status:
        """How far everybody is."""
        return Status(**await self.ask("status"))


@asynccontextmanager
async def _swarm(plan: Plan) -> AsyncIterator[_Swarm]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "bench.torture.followers", json.dumps(asdict(plan))),
        stdin=PIPE,
        stdout=PIPE,
        limit=1 << 24,
    )
    try:
        yield _Swarm(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(slots=True)
class _Torture:
    options: FanoutTortureOptions
    tell: Callable[[str], None]
    replicas: list[Supervised]
    swarm: _Swarm
    report: FanoutTortureReport
    random: random.Random

    async def run(self) -> None:
        """Every restart in order, with kills among them."""
        acts = [index for _ in range(self.options.rounds) for index in range(len(self.replicas))]
        kills = sorted(self.random.randrange(len(acts) + 1) for _ in range(self.options.kills))
        await self._progress()
        for number, index in enumerate(acts):
            for _ in range(kills.count(number)):
                await self._kill()
            await self._restart(index)
        for _ in range(kills.count(len(acts))):
            await self._kill()

    async def _restart(self, index: int) -> None:
        replica = self.replicas[index]
        assert replica.child is not None
        began = time.monotonic()
        code = await replica.child.stop(grace_seconds=60)
        if code != 0:
            self.report.outcome.problems.append(f"process {index} ended with {code} when it was restarted")
        drained = time.monotonic()
        replica.start()
        await replica.until_serving()
        self.report.restarts += 1
        self.tell(
            f"restart {self.report.restarts}: process {index} drained in {drained - began:.1f} s,"
            f" back after {time.monotonic() - drained:.1f} s"
        )
        await self._progress()

    async def _kill(self) -> None:
        index = self.random.randrange(len(self.replicas))
        replica = self.replicas[index]
        assert replica.child is not None
        if self.options.workers > 1:
            os.kill(self.random.choice(_children(replica.child.pid)), signal.SIGKILL)
        else:
            replica.child.kill()
            replica.start()
            await replica.until_serving()
        self.report.kills += 1
        self.tell(f"kill {self.report.kills}: process {index}")
        await self._progress()

    async def _progress(self) -> None:
        """Waits until everybody has a stream and everything that is there by now, and a little longer.

        Raises:
            MeshError: that takes too long.
        """
        goal = (await self.swarm.status()).fed
        ends_at = time.monotonic() + _PROGRESS_SECONDS_MAX
        while True:
            status = await self.swarm.status()
            if status.held_min > goal and status.streaming == self.options.subscribers:
                break
            if time.monotonic() > ends_at:
                raise MeshError(
                    f"{status.streaming} of {self.options.subscribers} subscribers stream, and one of them has"
                    f" {status.held_min:,} of {status.fed:,} signals, {_PROGRESS_SECONDS_MAX:.0f} s after a restart"
                )
            await asyncio.sleep(_POLL_SECONDS)
        await asyncio.sleep(self.random.uniform(0, _PAUSE_SECONDS_MAX))


def _children(pid: int) -> list[int]:
    """The workers of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


async def torture(options: FanoutTortureOptions, tell: Callable[[str], None]) -> FanoutTortureReport:
    """Runs it whole and judges. `tell` gets a line for each restart and kill.

    Raises:
        ConfigurationError: the system does not allow as many connections.
        MeshError: something did not start, or nothing goes on.
    """
    report = FanoutTortureReport(asdict(options))
    started = time.monotonic()
    # The swarm has a connection for each and, in a restart, one to each of two processes.
    require_open_files(2 * options.subscribers + _SPARE_FILES, what=f"{options.subscribers:,} subscribers")
    async with AsyncExitStack() as stack:
        ledger_port = await stack.enter_async_context(licensing())
        server = await stack.enter_async_context(redis())
        block = stack.enter_context(port_block())
        replicas: list[Supervised] = []
        ports: list[int] = []
        for index in range(options.processes):
            spec, port = _spec(options, index, block, server.url, ledger_port, server.run_folder)
            replicas.append(Supervised(spec))
            ports.append(port)
            stack.push_async_callback(replicas[-1].stop)
            replicas[-1].start()
        for replica in replicas:
            await replica.until_serving()
        plan = Plan(server.url, tuple(ports), options.subscribers, options.signals_per_second)
        swarm = await stack.enter_async_context(_swarm(plan))
        acts = random.Random(options.seed or None)
        run = _Torture(options, tell, replicas, swarm, report, acts)
        await run.run()
        problems = report.outcome.problems
        report.outcome = Outcome(**await swarm.ask("finish"))
        report.outcome.problems += problems
    report.seconds = round(time.monotonic() - started, 1)
    report.load_average = round(os.getloadavg()[0], 1)
    return report


def _spec(
    options: FanoutTortureOptions,
    index: int,
    block: PortBlock,
    redis_url: str,
    ledger_port: int,
    folder: Path,
) -> tuple[ServiceSpec, int]:
    """A process to be run, and its port."""
    port = block.take()
    environment = {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        "EDGE": options.edge,
        "WORKERS": str(options.workers),
        "GRPC_BIND_ADDRESS": f"{LOOPBACK}:{port}",
        "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:{block.take()}",
        "REDIS_URL": redis_url,
        "LEDGER_ADDRESS": f"{LOOPBACK}:{ledger_port}",
        "SERVICE_TOKEN": SERVICE_TOKEN,
        "LOG_LEVEL": "WARNING",
        "DRAIN_JITTER_SECONDS": str(options.drain_spread_seconds),
    }
    return ServiceSpec("fanout", environment, f"{LOOPBACK}:{port}", folder / f"fanout-{index}.log"), port
