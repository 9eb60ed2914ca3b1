"""A wall clock that is set makes no stream silent and no reader slow: only time that really passed counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from execution.common.v1 import signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.clock import ManualClock
from services.common.errors import ServiceError
from services.fanout.delivery import Delivery, Needs
from services.fanout.domain.codec import Message, signal_chunk
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.lag import LagLimits
from services.fanout.domain.position import Position
from services.fanout.domain.ring import MasterLog, Ring, SignalRecord
from services.fanout.domain.stream import ProgressCache, Reader, Stream, StreamLimits
from services.fanout.hub import Hub, HubLimits

FAR = 10**9
HOUR_US = 3_600_000_000
LAG = LagLimits(FAR, FAR, seconds_max=30, catch_up_seconds_max=900, unacknowledged_seconds_max=600)
LIMITS = StreamLimits(message_bytes_max=16_000, message_signals_max=100, progress_interval_seconds=0.8)


class Kept:
    """A writer that keeps what it is given, and takes more while it is open."""

    def __init__(self) -> None:
        self.is_writable = True
        self.messages: list[pb.SubscribeResponse] = []
        self.error: ServiceError | None = None
        self.outlet = object()

    def write(self, messages: Sequence[Message]) -> None:
        self.messages += [pb.SubscribeResponse.FromString(one.data) for one in messages]

    def write_to_each(self, outlets: Sequence[object], message: Message) -> list[int]:
        return list(range(len(outlets)))

    def finish(self, error: ServiceError, *, at_once: bool = False) -> None:
        self.error = error


class World:
    """One stream of one master."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.ring = Ring(records_per_master_max=100, memory_bytes_max=FAR)
        self.log: MasterLog = self.ring.open(1, Position(1, 0))
        self.cursor = Cursor(self.log)
        self.cursor.start(self.log.head)
        reader = Reader("user", "license", self.clock.now_us() + 10 * HOUR_US)
        self.stream = Stream(1, reader, [self.cursor], LIMITS, now_us=self.clock.now_us())
        self.writer = Kept()
        self.delivery = Delivery(
            self.stream, self.writer, Needs(lambda *_: None, lambda *_: None), self.clock, LAG
        )
        self.delivery.pump()
        self.pass_second()

    def pass_second(self) -> int:
        """How many Progress messages came with it."""
        before = len(self.writer.messages)
        self.clock.advance(seconds=1)
        self.delivery.tick(ProgressCache(self.clock.now_us()))
        return sum(one.HasField("progress") for one in self.writer.messages[before:])

    def signal(self, sequence: int) -> None:
        sequenced = signal_pb2.SequencedSignal(master_id=1, epoch=1, sequence=sequence)
        record = SignalRecord(1, sequence, signal_chunk(sequenced), self.clock.now_us(), 1, None)
        self.ring.append(self.log, record)
        self.stream.wake(self.cursor)
        self.delivery.pump()

    def set_clock(self, step_us: int) -> None:
        self.clock.set_us(self.clock.now_us() + step_us)


@pytest.mark.parametrize("step_us", [HOUR_US, -HOUR_US])
def test_progress_goes_on_each_second(step_us: int) -> None:
    world = World()
    world.set_clock(step_us)
    assert [world.pass_second() for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("step_us", [HOUR_US, -HOUR_US])
def test_a_reader_that_is_busy_for_a_moment_is_not_slow(step_us: int) -> None:
    world = World()
    world.writer.is_writable = False
    world.signal(1)
    world.pass_second()
    world.set_clock(step_us)
    world.pass_second()
    assert world.writer.error is None


@pytest.mark.parametrize("step_us", [HOUR_US, -HOUR_US])
def test_a_reader_that_is_slow_is_ended_in_its_time(step_us: int) -> None:
    world = World()
    world.writer.is_writable = False
    world.signal(1)
    world.set_clock(step_us)
    for _ in range(32):
        world.pass_second()
    assert world.writer.error is not None


@pytest.mark.parametrize("step_us", [HOUR_US, -HOUR_US])
def test_one_who_acknowledged_a_moment_ago_still_did(step_us: int) -> None:
    world = World()
    world.signal(1)
    world.signal(2)
    world.stream.acknowledge(1, Position(1, 1), world.clock.now_us())
    world.pass_second()
    world.set_clock(step_us)
    world.pass_second()
    assert world.writer.error is None
    for _ in range(602):
        world.pass_second()
    assert world.writer.error is not None


def test_a_license_ends_when_the_clock_that_was_set_says_so() -> None:
    world = World()
    world.set_clock(11 * HOUR_US)
    world.pass_second()
    assert world.writer.error is not None


@pytest.mark.parametrize("step_us", [HOUR_US, -HOUR_US])
async def test_a_stream_is_as_old_as_the_time_that_passed(step_us: int) -> None:
    world = World()
    limits = HubLimits(
        streams_max=1,
        streams_per_user_max=1,
        stream_age_seconds_max=1_000,
        progress_interval_seconds=0.001,
        drain_jitter_seconds=0,
        messages=LIMITS,
    )
    hub = Hub(world.ring, world.clock, limits)
    hub.add(world.delivery)
    world.set_clock(step_us)
    before = len(world.writer.messages)
    ticking = asyncio.create_task(hub.tick_forever())
    try:
        async with asyncio.timeout(30):
            while len(world.writer.messages) == before:  # noqa: ASYNC110 - nothing tells of a turn but what it writes
                await asyncio.sleep(0.001)
            assert not any(one.HasField("drain") for one in world.writer.messages)
            world.clock.advance(seconds=1_200)
            while not any(one.HasField("drain") for one in world.writer.messages):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
    finally:
        ticking.cancel()
