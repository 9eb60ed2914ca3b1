"""A real front door in its own process under mutated bytes, beside a master that works; it looks at sockets and memory.

Strangers connect, some of them log in, and all send mutated frames in pieces. Meanwhile a master trades through the
client library, and nothing may reach the log but what somebody signed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

from redis.asyncio import Redis

from bench.authority import answering
from bench.front_door import FrontDoorProcess, front_door
from bench.fuzz.mutation import mutate, pieces
from bench.fuzz.seeds import Seeds, seeds
from bench.fuzz.session_target import ViolationError
from bench.fuzz.structured import structured
from bench.machine import resident_bytes
from bench.torture.log_reading import read_runs
from bench.torture.masters import WatchedMaster, trading
from bench.torture.promises import MasterLog, judge
from ecp_client.master.frames import FrameDecoder
from ecp_client.master.frames import frame as framed
from execution.common.v1.position_pb2 import DURABILITY_APPENDED
from execution.common.v1.signal_pb2 import Signal
from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded import RedisServer, redis

_STRANGERS: Final = 8
_FRAMES_PER_CONNECTION_MAX: Final = 12
_ANSWER_SECONDS_MAX: Final = 10.0
_LINGER_SECONDS: Final = 0.02
_SIGNALS_PER_SECOND: Final = 200.0
_MASTER_ID_BASE: Final = 1_000
_SIGNED_AFTER_MUTATION: Final = 0.3
# What a few thousand sessions with their caches may add to a process that has just started.
_GROWTH_BYTES_MAX: Final = 96 * 1_048_576


@dataclass(slots=True)
class _Stranger:
    """One hostile client, which may hold a license of its own."""

    target: LiveTarget
    master_id: int
    random: Random

    async def run(self) -> None:
        """One connection after the other, until there were enough frames, or cancelled."""
        while self.target.frames < self.target.frames_max:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                    await self._connection()
            except TimeoutError:
                raise ViolationError("the front door left a stranger without an answer") from None
            except OSError:
                # Cut off, at whatever point.
                continue

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target.door.port)
        try:
            known, expected = await self._enter(reader, writer)
            for _ in range(self.random.randint(1, _FRAMES_PER_CONNECTION_MAX)):
                data = self._mutated(known, expected)
                self.target.frames += 1
                for piece in pieces(data, self.random):
                    writer.write(piece)
                    await asyncio.sleep(0)
                await writer.drain()
            if self.random.random() < 0.5 and writer.can_write_eof():
                writer.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    while await reader.read(65_536):
                        pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self.target.connections += 1

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Seeds, int]:
        """Goes as far into the protocol as chance will have it; returns what to send there, and the next sequence."""
        nonce, far = os.urandom(32), self.random.random()
        known = seeds(self.master_id, nonce, b"?" * 32)
        if far < 0.2:
            return known, 1
        writer.write(framed(known.hello))
        decoder = FrameDecoder()
        challenge = await _answer(reader, decoder, "challenge")
        known = seeds(self.master_id, nonce, challenge.challenge.nonce)
        if far < 0.3:
            return known, 1
        writer.write(framed(known.login))
        welcome = await _answer(reader, decoder, "welcome")
        expected = welcome.welcome.position.sequence + 1
        now_us = self.target.attacked_at_us
        return seeds(self.master_id, nonce, challenge.challenge.nonce, expected, now_us=now_us), expected

    def _mutated(self, known: Seeds, expected: int) -> bytes:
        if self.random.random() >= _SIGNED_AFTER_MUTATION:
            return mutate(framed(self.random.choice(known.all)), self.random, known.all)
        kind, body = self.random.choice(known.bodies)
        body = structured(kind, body, self.random, expected)
        self.target.signed(kind, body)
        return framed(known.sign(kind, body))


async def _answer(reader: asyncio.StreamReader, decoder: FrameDecoder, kind: str) -> pb.ServerFrame:
    while True:
        while (answer := decoder.next_frame()) is None:
            data = await reader.read(65_536)
            if not data:
                raise ConnectionError("closed")
            decoder.receive_data(data)
        if answer.WhichOneof("frame") == kind:
            return answer
        if answer.HasField("reject"):
            raise ConnectionError(answer.reject.message)


@dataclass(slots=True)
class LiveTarget:
    """A front door with its Redis, and what was done to it."""

    door: FrontDoorProcess
    server: RedisServer
    worker: WatchedMaster
    frames: int = 0
    connections: int = 0
    frames_max: int = 0
    baseline_bytes: int = 0
    growth_bytes: int = 0
    attacked_at_us: int = 0
    signed_signals: set[int] = field(default_factory=set)
    """Hashes of every signal that a stranger signed in a batch for an open session."""

    def signed(self, kind: str, body: bytes) -> None:
        """Remembers what may be found in the log."""
        if kind == "signals":
            batch = pb.SignalBatch.FromString(body)
            self.signed_signals.update(map(_hash_of, batch.signals))

    async def attack(self, random: Random, seconds: float, frames_max: int) -> None:
        """Strangers at work for a time.

        Raises:
            ViolationError: the front door died, grew, or left somebody without an answer.
        """
        pid, self.frames_max = self.door.pid, frames_max
        self.baseline_bytes = self.baseline_bytes or resident_bytes(pid)
        strangers = [
            _Stranger(self, _MASTER_ID_BASE + number, Random(random.random())) for number in range(_STRANGERS)
        ]
        # A mutation may leave a frame whole and only add to it: then it is taken, and rightly so.
        self.attacked_at_us = time.time_ns() // 1_000
        for kind, body in seeds(_MASTER_ID_BASE, b"n" * 32, b"s" * 32, now_us=self.attacked_at_us).bodies:
            self.signed(kind, body)
        tasks = [asyncio.create_task(one.run()) for one in strangers]
        acknowledged = self.worker.promises.sequence
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome
        resident = resident_bytes(pid)
        if resident == 0:
            raise ViolationError(f"the front door died; see {self.door.log_file}")
        self.growth_bytes = resident - self.baseline_bytes
        if self.growth_bytes > _GROWTH_BYTES_MAX:
            raise ViolationError(f"the front door grew by {self.growth_bytes:,} bytes")
        if self.worker.promises.sequence == acknowledged:
            raise ViolationError("the master beside the strangers got nothing acknowledged")

    async def check_log(self) -> None:
        """Looks for anything that nobody signed.

        Raises:
            ViolationError: there is.
        """
        log = MasterLog(self.worker.master_id)
        # The master goes on while the log is read, and may hear of more than the last page had.
        promises = self.worker.promises.so_far()
        async with Redis.from_url(self.server.url) as client:
            async for run in read_runs(client):
                if run.master_id == log.master_id:
                    log.take(run)
                    continue
                for signal in run.batch.signals:
                    if _hash_of(signal) not in self.signed_signals:
                        raise ViolationError(f"master {run.master_id} did not sign {signal}")
        problems = [*self.worker.problems, *judge(promises, log).problems]
        if problems:
            raise ViolationError("; ".join(problems))
        written = self.door.log_file.read_text(encoding="utf-8", errors="replace")
        if "Traceback" in written or '"error.stack_trace"' in written:
            raise ViolationError(f"the front door logged a traceback: {written[-4_000:]}")


def _hash_of(signal: Signal) -> int:
    return hash(signal.SerializeToString(deterministic=True))


@asynccontextmanager
async def live_target() -> AsyncIterator[LiveTarget]:
    """A front door that serves, with a master at work."""
    limits = {"UNAUTHENTICATED_CONNECTIONS_MAX": "10000", "LOG_ENTRIES_MAX": "0", "LINGER_SECONDS": "0.2"}
    async with (
        answering() as authority_port,
        redis(appendfsync="no") as server,
        front_door(server.url, authority_port, server.run_folder, environment=limits) as door,
        trading(
            f"127.0.0.1:{door.port}",
            server.run_folder,
            masters=1,
            signals_per_second=_SIGNALS_PER_SECOND,
            durability=DURABILITY_APPENDED,
        ) as watched,
    ):
        yield LiveTarget(door, server, watched[0])
