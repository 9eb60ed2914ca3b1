"""The real fan-out on real servers, and a subscriber that keeps everything it was told and checks the order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from execution.common.v1 import position_pb2, signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from services.common import settings
from services.fanout import app
from services.fanout.settings import FanoutSettings
from tests.integration.fanout.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger

WAIT_SECONDS = 30.0
SERVICE = "execution.fanout.v1.FanoutService"


def fanout_settings(redis_url: str, ledger: StandInLedger, **overrides: object) -> FanoutSettings:
    values: dict[str, object] = {
        "grpc_bind_address": "127.0.0.1:0",
        "admin_bind_address": "127.0.0.1:0",
        "redis_url": redis_url,
        "ledger_address": f"127.0.0.1:{ledger.port}",
        "service_token": SERVICE_TOKEN,
        "operator_token": OPERATOR_TOKEN,
        "drain_grace_seconds": 5,
        "drain_jitter_seconds": 0.1,
        "progress_interval_seconds": 0.2,
        "record_interval_seconds": 0.05,
        "snapshot_wait_seconds": 2,
        "snapshot_poll_seconds": 0.1,
    }
    values.update(overrides)
    return settings.load(FanoutSettings, **values)


@dataclass
class Fanout:
    """A running fan-out and a way to it."""

    running: app.Running
    channel: grpc.aio.Channel

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.running.port}"

    @property
    def stub(self) -> fanout_service_pb2_grpc.FanoutServiceAsyncStub:
        return fanout_service_pb2_grpc.FanoutServiceStub(self.channel)

    def subscribe(self, token: str, *starts: pb.MasterStart, client: str = "test") -> Subscriber:
        return Subscriber(self.stub, token, starts, client)


@asynccontextmanager
async def fanout_running(loaded: FanoutSettings, *, ready: bool = True) -> AsyncIterator[Fanout]:
    """The fan-out; its clients outlive it, so that they see how it ends. `ready`: streams can be opened."""
    async with AsyncExitStack() as clients, app.running(loaded) as running:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = await clients.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options)
        )
        if ready:
            await until_serving(channel)
        yield Fanout(running, channel)


async def until_serving(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), wait_for_ready=True)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(0.01)


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def after(master_id: int, epoch: int, sequence: int) -> pb.MasterStart:
    return pb.MasterStart(
        master_id=master_id, after=position_pb2.StreamPosition(epoch=epoch, sequence=sequence)
    )


def from_now(master_id: int) -> pb.MasterStart:
    return pb.MasterStart(master_id=master_id, from_now=pb.FromNow())


def from_snapshot(master_id: int) -> pb.MasterStart:
    return pb.MasterStart(master_id=master_id, from_snapshot=pb.FromSnapshot())


Place = tuple[int, int]


def place(position: position_pb2.StreamPosition) -> Place:
    return position.epoch, position.sequence


@dataclass
class Told:
    """Everything a subscriber was told of one master, and where it stands."""

    held: Place | None = None
    signals: list[signal_pb2.SequencedSignal] = field(default_factory=list)
    gaps: list[pb.Gap] = field(default_factory=list)
    snapshots: list[pb.Snapshot] = field(default_factory=list)
    states: list[int] = field(default_factory=list)

    @property
    def sequences(self) -> list[int]:
        return [one.sequence for one in self.signals]

    @property
    def places(self) -> list[Place]:
        return [(one.epoch, one.sequence) for one in self.signals]


class Subscriber:
    """One Subscribe call. Fails the test at once when something arrives that does not follow what it holds."""

    def __init__(
        self,
        stub: fanout_service_pb2_grpc.FanoutServiceAsyncStub,
        token: str,
        starts: Sequence[pb.MasterStart],
        client: str = "",
    ) -> None:
        self.told: dict[int, Told] = {}
        self.messages = 0
        self.progress = 0
        self.drain: pb.Drain | None = None
        self.error: grpc.aio.AioRpcError | None = None
        for start in starts:
            if start.WhichOneof("start") == "after":
                held = place(start.after)
                self.told[start.master_id] = Told(held=(1, 0) if held == (0, 0) else held)
        self.call = stub.Subscribe(
            pb.SubscribeRequest(masters=starts, client=client), metadata=metadata(token)
        )
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(), name="subscriber")

    async def __aenter__(self) -> Subscriber:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def of(self, master_id: int) -> Told:
        return self.told.setdefault(master_id, Told())

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Waits until the condition holds; the reader's failure, or its end, fails the test."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                if self._task.done():
                    self._task.result()
                    if condition():
                        return
                    raise AssertionError(f"the stream ended before {what or 'that'}: {self.error}")
                self._changed.clear()
                await self._changed.wait()

    async def begun(self) -> None:
        await self.until(lambda: self.progress > 0, "the first Progress")

    async def over(self) -> None:
        """Waits for the end, however long it takes, and whatever it is."""
        await self._task

    async def ended(self) -> grpc.aio.AioRpcError:
        async with asyncio.timeout(WAIT_SECONDS):
            await self._task
        assert self.error is not None
        return self.error

    async def _read(self) -> None:
        try:
            async for response in self.call:
                self.messages += 1
                self._take(response)
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self.error = error
        except asyncio.CancelledError:
            if not self.call.cancelled():
                raise
        finally:
            self._changed.set()

    def _take(self, response: pb.SubscribeResponse) -> None:
        kind = response.WhichOneof("event")
        if kind == "signals":
            for one in response.signals.signals:
                self._take_signal(one)
        elif kind == "gap":
            self._take_gap(response.gap)
        elif kind == "snapshot":
            told = self.of(response.snapshot.snapshot.master_id)
            told.snapshots.append(response.snapshot)
            told.held = place(response.snapshot.snapshot.as_of)
        elif kind == "progress":
            self.progress += 1
            for one in response.progress.positions:
                told = self.of(one.master_id)
                assert told.held is None or told.held == place(one.position), (told.held, one)
                told.held = place(one.position)
        elif kind == "state_change":
            self.of(response.state_change.master_id).states.append(response.state_change.state)
        else:
            assert kind == "drain"
            self.drain = response.drain

    def _take_signal(self, one: signal_pb2.SequencedSignal) -> None:
        told = self.of(one.master_id)
        previous = (one.previous_epoch, one.previous_sequence)
        assert told.held == previous, f"held {told.held}, but {previous} comes before {one.sequence}"
        assert (one.epoch, one.sequence) > previous
        told.held = (one.epoch, one.sequence)
        told.signals.append(one)

    def _take_gap(self, gap: pb.Gap) -> None:
        told = self.of(gap.master_id)
        first = place(getattr(gap, "from"))
        assert told.held is not None
        is_next = first == (told.held[0], told.held[1] + 1)
        is_new_epoch = first == place(gap.resume_after) and first[0] > told.held[0]
        assert is_next or is_new_epoch or gap.resume_after.epoch > told.held[0], (told.held, gap)
        told.gaps.append(gap)
        told.held = place(gap.resume_after)
