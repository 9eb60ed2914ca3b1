"""`ecp torture clients`: stock clients read one busy stream each, for long, and every one must read all of it.

Each client reads in plaintext and over TLS from a real fan-out, whose end they hear of at last; it repairs nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.licenses import licensing
from bench.machine import CpuTimes, Disturbance, describe
from bench.torture.clients_judge import Output, StreamJudge
from bench.torture.clients_programs import STOCK_CLIENTS, AbsentError, Endpoint, StockClient
from bench.torture.clients_server import Certificate, FanoutServer, serving
from mesh.embedded import redis
from mesh.errors import MeshError, UsageError
from mesh.process import bound_to_us

_OPEN_SECONDS_MAX: Final = 60.0
_LAST_SECONDS_MAX: Final = 300.0
"""What clients that lag have to catch up in when the load is over."""
_STATUS_SECONDS_MAX: Final = 20.0
_POLL_SECONDS: Final = 0.2
_TELL_SECONDS: Final = 10.0
_CHUNK_BYTES: Final = 262_144
_ERROR_BYTES_MAX: Final = 16_384
_SPARE_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class ClientsOptions:
    """What to let them read."""

    seconds: float = 300.0
    signals_per_second: float = 1_000.0
    groups: int = 1
    """So many turns, each with a part of the clients and of full length."""
    clients: tuple[str, ...] = tuple(one.name for one in STOCK_CLIENTS)


@dataclass(slots=True)
class StreamReport:
    """One client over one transport."""

    client: str
    transport: str
    signals: int = 0
    lag_signals_max: int = 0
    """By how many signals it was behind what was sent, at most; looked at several times a second."""
    cores: float = 0.0
    status: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ClientsReport:
    """What came of it; sound when no stream has a problem and at least one was read."""

    options: dict[str, Any]
    machine: dict[str, Any]
    seconds: float = 0.0
    sent: int = 0
    """Signals, to each stream."""
    streams: list[StreamReport] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Clients that are not on this machine, and why."""
    other_cores: dict[str, float] = field(default_factory=dict)
    """What everything around the clients used while signals flowed, in the last turn."""

    @property
    def is_sound(self) -> bool:
        """Whether every stream was read whole."""
        return bool(self.streams) and not any(one.problems for one in self.streams)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"is_sound": self.is_sound, **asdict(self)}

    def summary(self) -> list[str]:
        """For people."""
        lines = [
            f"{len(self.streams)} streams of {self.sent:,} signals each in {self.seconds:.0f} s",
            f"{'client':<10} {'over':<6} {'signals':>9} {'lag max':>8} {'cores':>6}  ended with",
        ]
        lines += [
            f"{one.client:<10} {one.transport:<6} {one.signals:>9,} {one.lag_signals_max:>8,}"
            f" {one.cores:>6.2f}  {one.status or '-'}"
            for one in self.streams
        ]
        shown = ", ".join(f"{name} {cores:.2f}" for name, cores in self.other_cores.items())
        lines.append(f"cores of the rest: {shown}")
        lines += [f"SKIPPED {name}: {why}" for name, why in self.skipped.items()]
        for one in self.streams:
            lines += [f"DIFFERENCE {one.client} over {one.transport}: {what}" for what in one.problems]
        return [*lines, "sound" if self.is_sound else "NOT SOUND"]


class _Reading:
    """One client's process, and the judge of what it prints."""

    def __init__(
        self, client: StockClient, transport: str, process: asyncio.subprocess.Process, lag_max: int = 0
    ) -> None:
        self.client = client
        self.transport = transport
        self.process = process
        self.judge = StreamJudge()
        self.lag_max = lag_max
        self._output: Output = client.output(self.judge)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._read_errors())]

    @property
    def is_over(self) -> bool:
        """Whether its stream has ended, or it has."""
        return bool(self.judge.status) or self.process.returncode is not None

    async def stop(self) -> None:
        """Ends it and reads what is left."""
        if self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(_STATUS_SECONDS_MAX):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
        await asyncio.gather(*self._tasks)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(_CHUNK_BYTES):
            self._output.take(data)

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        kept = b""
        while data := await self.process.stderr.read(_CHUNK_BYTES):
            kept = (kept + data)[-_ERROR_BYTES_MAX:]
        await self.process.wait()
        self._output.take_errors(kept.decode("utf-8", "replace"))


async def torture(options: ClientsOptions, tell: Callable[[str], None]) -> ClientsReport:
    """Lets all clients read and judges what they print. `tell` gets a line now and then.

    Raises:
        UsageError: a name is not a client's.
        MeshError: something of ours did not start.
    """
    report = ClientsReport(asdict(options), describe())
    started = time.monotonic()
    chosen = _present(_named(options.clients), report, tell)
    for turn in range(options.groups):
        group = chosen[turn :: options.groups]
        if group:
            await _run_group(options, group, report, tell)
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _named(names: Sequence[str]) -> list[StockClient]:
    unknown = set(names) - {one.name for one in STOCK_CLIENTS}
    if unknown:
        known = ", ".join(one.name for one in STOCK_CLIENTS)
        raise UsageError(f"no such client: {', '.join(sorted(unknown))} (there are {known})")
    return [one for one in STOCK_CLIENTS if one.name in names]


def _present(
    clients: list[StockClient], report: ClientsReport, tell: Callable[[str], None]
) -> list[StockClient]:
    """Those that this machine has; the others are named in the report."""
    found = []
    for client in clients:
        try:
            client.command(Endpoint("localhost:1", "nobody", None, Path("/nowhere")))
        except AbsentError as error:
            report.skipped[client.name] = str(error)
            tell(f"skipped {client.name}: {error}")
        else:
            found.append(client)
    return found


async def _run_group(
    options: ClientsOptions, clients: list[StockClient], report: ClientsReport, tell: Callable[[str], None]
) -> None:
    async with AsyncExitStack() as stack:
        ledger_port = await stack.enter_async_context(licensing())
        valkey = await stack.enter_async_context(redis())
        folder = valkey.run_folder
        patience_seconds = str(options.seconds + _SPARE_SECONDS)
        environment = {
            # The curl-like tools never acknowledge.
            "UNACKNOWLEDGED_SECONDS_MAX": patience_seconds,
            # On a busy machine clients lag; what counts here is that they get everything.
            "LAG_SECONDS_MAX": patience_seconds,
        }
        servers = [
            await stack.enter_async_context(
                serving(
                    name, valkey.url, ledger_port, folder, certificate=certificate, environment=environment
                )
            )
            for name, certificate in (("plain", None), ("tls", Certificate.issued(folder)))
        ]
        group = _Group(options, servers, valkey.pid, tell)
        async with group.reading(clients, folder):
            await group.run(valkey.url)
        report.sent = max(report.sent, group.sent)
        report.streams += group.reports()
        report.other_cores = group.other_cores


@dataclass(slots=True)
class _Group:
    """The clients of one turn."""

    options: ClientsOptions
    servers: list[FanoutServer]
    valkey_pid: int
    tell: Callable[[str], None]
    readings: list[_Reading] = field(default_factory=list)
    sent: int = 0
    cores: dict[int, float] = field(default_factory=dict)
    other_cores: dict[str, float] = field(default_factory=dict)

    @asynccontextmanager
    async def reading(self, clients: Sequence[StockClient], folder: Path) -> AsyncIterator[None]:
        """All clients read from all servers until the block ends; what they print is whole then."""
        try:
            for server in self.servers:
                for client in clients:
                    self.readings.append(await _started(client, server, folder))
            yield
        finally:
            await asyncio.gather(*(one.stop() for one in self.readings))

    async def run(self, redis_url: str) -> None:
        """The load, the catching up, and the end of the servers."""
        await self._until(self._all_open, _OPEN_SECONDS_MAX, "open a stream")
        self.tell(f"{len(self.readings)} streams are open")
        await self._load(redis_url)
        await self._until(self._all_read, _LAST_SECONDS_MAX, "read everything")
        self.tell("everything was sent: the fan-outs are stopped")
        await asyncio.gather(*(server.stop() for server in self.servers))
        await self._until(self._all_over, _STATUS_SECONDS_MAX, "end")

    async def _all_open(self) -> bool:
        counts = await asyncio.gather(*(server.stream_count() for server in self.servers))
        return sum(counts) >= sum(not one.is_over for one in self.readings)

    async def _all_read(self) -> bool:
        self._look()
        return all(one.is_over or one.judge.last >= self.sent for one in self.readings)

    async def _all_over(self) -> bool:
        return all(one.is_over for one in self.readings)

    async def _until(self, condition: Callable[[], Any], seconds_max: float, what: str) -> None:
        """Waits for it, not for ever: what is missing then is the judges' affair."""
        try:
            async with asyncio.timeout(seconds_max):
                while not await condition():  # noqa: ASYNC110  # most of it happens in other processes
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            self.tell(f"not all streams {what} within {seconds_max:.0f} s")

    async def _load(self, redis_url: str) -> None:
        options = self.options
        total = round(options.seconds * options.signals_per_second)
        process = await asyncio.create_subprocess_exec(
            *bound_to_us(
                [
                    sys.executable, "-P", "-m", "bench.torture.clients_load", "--redis-url", redis_url,
                    "--signals", str(total), "--rate", str(options.signals_per_second),
                ]
            ),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        before = self._cpu_times(process.pid)
        try:
            await self._watch(process, before)
        finally:
            if process.returncode is None and self.sent < total:
                process.kill()
            await process.wait()
        if self.sent < total:
            raise MeshError(f"the load ended after {self.sent:,} of {total:,} signals")

    async def _watch(self, load: asyncio.subprocess.Process, before: CpuTimes) -> None:
        """Follows what the load says that it has sent, to its end."""
        assert load.stdout is not None
        began = told = time.monotonic()
        async for line in load.stdout:
            said = json.loads(line)
            self.sent = said["fed"]
            self._look()
            if said["is_over"]:
                self._see_cores(Disturbance.between(before, self._cpu_times(load.pid)), load.pid)
            if time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                self.tell(self._progress(told - began))

    def _see_cores(self, used: Disturbance, load_pid: int) -> None:
        self.cores = used.process_cores
        pids = {f"fan-out {server.name}": server.pid for server in self.servers}
        pids |= {"valkey": self.valkey_pid, "load": load_pid, "judge": os.getpid()}
        self.other_cores = {name: self.cores.get(pid, 0.0) for name, pid in pids.items()}
        self.other_cores["strangers"] = used.others_cores

    def _look(self) -> None:
        for one in self.readings:
            one.lag_max = max(one.lag_max, self.sent - one.judge.last)

    def _progress(self, seconds: float) -> str:
        slowest = min(self.readings, key=lambda one: one.judge.last)
        problems = sum(len(one.judge.problems) for one in self.readings)
        return (
            f"{seconds:.0f} s: {self.sent:,} signals sent; the slowest, {slowest.client.name} over"
            f" {slowest.transport}, is {self.sent - slowest.judge.last:,} behind; {problems} differences"
        )

    def _cpu_times(self, load_pid: int) -> CpuTimes:
        pids = [one.process.pid for one in self.readings] + [server.pid for server in self.servers]
        return CpuTimes.now([*pids, self.valkey_pid, load_pid, os.getpid()], time.monotonic())

    def reports(self) -> list[StreamReport]:
        """What is to be said of each stream."""
        return [
            StreamReport(
                one.client.name,
                one.transport,
                one.judge.signals,
                one.lag_max,
                self.cores.get(one.process.pid, 0.0),
                one.judge.status,
                one.judge.verdict(self.sent),
            )
            for one in self.readings
        ]


async def _started(client: StockClient, server: FanoutServer, folder: Path) -> _Reading:
    name = f"{client.name}-{server.name}".replace(" ", "-")
    endpoint = Endpoint(server.address, name, server.ca_file, folder / f"positions-{name}.json")
    process = await asyncio.create_subprocess_exec(
        *bound_to_us(client.command(endpoint)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return _Reading(client, server.name, process)
