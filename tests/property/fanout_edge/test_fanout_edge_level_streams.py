"""Streams that are told together, past the pump, are told just what each would have been told alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from execution.common.v1 import position_pb2, signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.clock import ManualClock
from services.common.errors import ServiceError
from services.fanout.delivery import Delivery, Needs
from services.fanout.domain.codec import Message, signal_chunk
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.filter import Pause
from services.fanout.domain.lag import LagLimits
from services.fanout.domain.ring import EpochRecord, GapRecord, MasterLog, Ring, SignalRecord
from services.fanout.domain.stream import Reader, Stream, StreamLimits
from services.fanout.hub import Hub, HubLimits

MASTERS = (1, 2)
FAR = 10**9
LIMITS = StreamLimits(message_bytes_max=300, message_signals_max=4, progress_interval_seconds=0.8)


class Keeping:
    """A writer whose reader takes messages only while it is open; one that is not quick takes none with others."""

    def __init__(self, is_quick: bool) -> None:
        self.is_quick = is_quick
        self.is_open = True
        self.messages: list[bytes] = []

    @property
    def is_writable(self) -> bool:
        return self.is_open

    def write(self, messages: Sequence[Message]) -> None:
        self.messages += [message.data for message in messages]

    @property
    def outlet(self) -> Keeping:
        return self

    def write_to_each(self, outlets: Sequence[Keeping], message: Message) -> list[int]:
        refused = []
        for index, one in enumerate(outlets):
            if one.is_quick and one.is_open:
                one.messages.append(message.data)
            else:
                refused.append(index)
        return refused

    def finish(self, error: ServiceError, *, at_once: bool = False) -> None:
        self.is_open = False

    def told(self) -> list[bytes]:
        """Every event in order; how many signals share a message is nobody's business."""
        events: list[bytes] = []
        for data in self.messages:
            response = pb.SubscribeResponse.FromString(data)
            if response.HasField("signals"):
                events += [one.SerializeToString() for one in response.signals.signals]
            else:
                events.append(data)
        return events


class World:
    """One hub, and for each reader two streams: one that may be told together with others, and one that never is."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_000_000)
        self.ring = Ring(records_per_master_max=40, memory_bytes_max=FAR)
        self.hub = Hub(self.ring, self.clock, HubLimits(FAR, FAR, None, 0.8, 0, LIMITS))
        self.pairs: list[tuple[Keeping, Keeping, Delivery, Delivery]] = []

    def join(self, masters: Sequence[int], pause: Pause) -> None:
        one, other = (self._join(masters, pause, is_quick) for is_quick in (True, False))
        self.pairs.append((one[0], other[0], one[1], other[1]))

    def _join(self, masters: Sequence[int], pause: Pause, is_quick: bool) -> tuple[Keeping, Delivery]:
        cursors = []
        for master_id in masters:
            cursor = Cursor(self.ring.open(master_id), pause=pause)
            cursor.start(cursor.log.head)
            cursors.append(cursor)
        stream = Stream(
            self.hub.next_id(),
            Reader(f"user-{is_quick}", "license", FAR * FAR),
            cursors,
            LIMITS,
            now_us=self.clock.now_us(),
        )
        writer = Keeping(is_quick)
        needs = Needs(lambda *_: None, lambda *_: None)
        limits = LagLimits(FAR, FAR, FAR, FAR, FAR)
        delivery = Delivery(stream, writer, needs, self.clock, limits)
        self.hub.add(delivery)
        delivery.pump()
        return writer, delivery

    def grow(self, log: MasterLog, what: str, count: int) -> None:
        head = log.head
        for number in range(head.sequence + 1, head.sequence + 1 + count):
            if what == "signals":
                sequenced = signal_pb2.SequencedSignal(
                    master_id=log.master_id, epoch=head.epoch, sequence=number
                )
                record = SignalRecord(
                    head.epoch, number, signal_chunk(sequenced), self.clock.now_us(), number % 2, None
                )
                self.ring.append(log, record)
        last = head.sequence
        if what == "gap":
            self.ring.append(
                log,
                GapRecord(head.epoch, last + 1, last + count, position_pb2.GAP_REASON_REJECTED, "hole"),
            )
        elif what == "epoch":
            self.ring.append(
                log, EpochRecord(head.epoch + 1, last + count, head, position_pb2.GAP_REASON_LOG_LOST)
            )


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("grow"),
            st.lists(
                st.tuples(
                    st.sampled_from(MASTERS),
                    st.sampled_from(["signals", "signals", "gap", "epoch"]),
                    st.integers(1, 60),
                ),
                min_size=1,
                max_size=3,
            ),
        ),
        st.tuples(st.just("join"), st.sampled_from([(1,), (2,), (1, 2)]), st.sampled_from(list(Pause))),
        st.tuples(st.just("shut"), st.integers(0, 5)),
        st.tuples(st.just("open"), st.integers(0, 5)),
    ),
    max_size=25,
)


@given(steps=steps)
def test_level_streams_are_told_what_each_would_be_told_alone(steps: list[tuple]) -> None:
    async def play() -> None:
        world = World()
        world.join((1,), Pause.NONE)
        world.join((1, 2), Pause.NONE)
        for step in steps:
            if step[0] == "grow":
                for master_id, what, count in step[1]:
                    world.grow(world.ring.open(master_id), what, count)
                world.hub.log_grew(
                    [world.ring.open(one) for one in {master_id for master_id, _, _ in step[1]}]
                )
            elif step[0] == "join":
                world.join(step[1], step[2])
            else:
                for writer, twin, first, second in world.pairs[step[1] : step[1] + 1]:
                    writer.is_open = twin.is_open = step[0] == "open"
                    first.on_writable()
                    second.on_writable()
        for writer, twin, first, second in world.pairs:
            writer.is_open = twin.is_open = True
            first.pump()
            second.pump()
            assert writer.told() == twin.told()

    asyncio.run(play())
