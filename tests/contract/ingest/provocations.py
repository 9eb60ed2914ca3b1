"""For each reject code, how a client on a live socket earns it; nothing here judges the answer."""

from __future__ import annotations

import asyncio
import os
import signal as os_signals
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded import RedisServer
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import RawMaster, connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, login_body, now_us, signal

HOUR_US = 3_600_000_000


@dataclass
class Scene:
    """A front door that is not started yet, with the log and the ledger behind it."""

    server: RedisServer
    ledger: StandInLedger

    def running(self, **settings: object) -> AbstractAsyncContextManager[Running]:
        return ingest_running(self.server.url, self.ledger.port, **settings)

    @asynccontextmanager
    async def session(self, **settings: object) -> AsyncIterator[RawMaster]:
        async with self.running(**settings) as ingest, logged_in(ingest.port) as master:
            yield master

    @asynccontextmanager
    async def stalled_log(self) -> AsyncIterator[None]:
        os.kill(self.server.pid, os_signals.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.pid, os_signals.SIGCONT)


@dataclass
class Earned:
    """A Reject and the client that got it."""

    master: RawMaster
    reject: pb.Reject = field(default_factory=pb.Reject)


Provocation = Callable[[Scene], AbstractAsyncContextManager[Earned]]
PROVOCATIONS: dict[str, Provocation] = {}


def earns(code: str) -> Callable[[Callable[[Scene], AsyncIterator[Earned]]], Provocation]:
    """Enters a function into the table under the code that it earns."""

    def enter(function: Callable[[Scene], AsyncIterator[Earned]]) -> Provocation:
        assert code not in PROVOCATIONS
        PROVOCATIONS[code] = asynccontextmanager(function)
        return PROVOCATIONS[code]

    return enter


async def send_login(master: RawMaster) -> None:
    assert master.keys is not None
    master.send(master.keys.login(login_body(master.who).SerializeToString()))


@asynccontextmanager
async def refused_login(scene: Scene, who: Credentials) -> AsyncIterator[Earned]:
    async with scene.running() as ingest, connected(ingest.port, who) as master:
        await master.greet()
        await send_login(master)
        yield Earned(master, await master.reject())


@earns("MALFORMED")
async def malformed(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session() as master:
        master.send_bytes(b"\0\0\0\x02\xff\xff")
        yield Earned(master, await master.reject())


@earns("TOO_LARGE")
async def too_large(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session(frame_bytes_max=2_048) as master:
        master.send_bytes((2_049).to_bytes(4, "big"))
        yield Earned(master, await master.reject())


@earns("UNSUPPORTED_VERSION")
async def unsupported_version(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.running() as ingest, connected(ingest.port) as master:
        hello = pb.Hello(version=9, version_min=2, master_id=1, key_id="k1", nonce=master.nonce)
        master.send(pb.ClientFrame(hello=hello))
        yield Earned(master, await master.reject())


@earns("BAD_MAC")
async def bad_mac(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session() as master:
        frame = master.keys.signals(1, [signal(1)])
        frame.signals.mac = bytes(32)
        master.send(frame)
        yield Earned(master, await master.reject())


@earns("UNAUTHENTICATED")
async def unauthenticated(scene: Scene) -> AsyncIterator[Earned]:
    async with refused_login(scene, Credentials(master_id=99)) as earned:
        yield earned


@earns("LICENSE_EXPIRED")
async def license_expired(scene: Scene) -> AsyncIterator[Earned]:
    scene.ledger.refusals[1] = "LICENSE_EXPIRED"
    async with refused_login(scene, Credentials()) as earned:
        yield earned


@earns("LICENSE_REVOKED")
async def license_revoked(scene: Scene) -> AsyncIterator[Earned]:
    scene.ledger.refusals[1] = "LICENSE_REVOKED"
    async with refused_login(scene, Credentials()) as earned:
        yield earned


@earns("FENCED")
async def fenced(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.running() as ingest, logged_in(ingest.port) as first, logged_in(ingest.port):
        yield Earned(first, await first.reject())


@earns("GAP")
async def gap(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session() as master:
        master.send_signals(5)
        yield Earned(master, await master.reject())


@earns("CONFLICT")
async def conflict(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session() as master:
        master.send_signals(1)
        await master.acknowledged_up_to(1)
        master.send_signals(1, position_id=2)
        yield Earned(master, await master.reject())


@earns("STALE")
async def stale(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session() as master:
        master.send_signals(1, occurred_at_us=now_us() - HOUR_US)
        yield Earned(master, await master.reject())


@earns("INVALID_SIGNAL")
async def invalid_signal(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session() as master:
        master.send_signals(1, price_e8=-1)
        yield Earned(master, await master.reject())


@earns("RATE_LIMITED")
async def rate_limited(scene: Scene) -> AsyncIterator[Earned]:
    scene.ledger.signals_per_second_max[1] = 1
    async with scene.session(rate_burst_seconds=1) as master:
        master.send_signals(1, 2)
        yield Earned(master, await master.reject())


@earns("WINDOW_EXCEEDED")
async def window_exceeded(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session(signal_window=4) as master:
        master.send_signals(1, 5)
        yield Earned(master, await master.reject())


@earns("UNAVAILABLE")
async def unavailable(scene: Scene) -> AsyncIterator[Earned]:
    async with scene.session(redis_timeout_seconds=0.3) as master, scene.stalled_log():
        master.send_signals(1)
        yield Earned(master, await master.reject())


@earns("DRAINING")
async def draining(scene: Scene) -> AsyncIterator[Earned]:
    """The server stops while something is under way to the log, and the client goes on sending."""
    running = scene.running(redis_timeout_seconds=30, drain_grace_seconds=30)
    ingest = await running.__aenter__()
    async with logged_in(ingest.port) as master:
        async with scene.stalled_log():
            master.send_signals(1)
            await until(lambda: ingest.door.sessions.find(1).session.intake.in_flight == 1)
            stopping = asyncio.create_task(running.__aexit__(None, None, None))
            await master.expect("drain")
            master.send_signals(2)
            yield Earned(master, await master.reject())
        # What was under way is still acknowledged, and then it is over.
        kinds = [frame.WhichOneof("frame") for frame in await master.ended()]
        assert kinds[-2:] == ["ack", "bye"], kinds
    await stopping


@earns("TOO_MANY_CONNECTIONS")
async def too_many_connections(scene: Scene) -> AsyncIterator[Earned]:
    async with (
        scene.running(connections_per_address_max=1) as ingest,
        logged_in(ingest.port),
        connected(ingest.port) as second,
    ):
        yield Earned(second, await second.reject())
