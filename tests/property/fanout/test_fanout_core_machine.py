"""Random schedules of masters, losses, trims, pauses, stalls and restarts against a model of what a reader is told.

The core is driven as the service drives it, with lists in place of Redis and the archive. The model is the reader: it
knows the true history, and checks each event as it comes. Whatever happened, everything is told once and in order, or
named exactly as missing, and a reader that is pumped dry stands at the head.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2, log_pb2
from services.fanout.domain.cursor import Cursor, Place
from services.fanout.domain.filter import Pause
from services.fanout.domain.intake import Intake
from services.fanout.domain.level import Follower, level_at, move_behind, pieces
from services.fanout.domain.position import Position
from services.fanout.domain.resume import Reach, reach_of
from services.fanout.domain.ring import MasterLog, Ring, Segment
from services.fanout.domain.runs import runs_of
from services.fanout.domain.stream import ProgressCache, Reader, Stream
from tests.property.fanout.core_model import (
    FAR_US,
    KINDS,
    LIMITS,
    MASTERS,
    Model,
    World,
)

SCHEDULES = int(os.environ.get("ECP_TEST_CORE_SCHEDULES", "150"))
"""How many random schedules are tried; ten thousand take two minutes."""


class FanoutMachine(RuleBasedStateMachine):
    """The core as the service drives it."""

    readers = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.now_us = 1_000_000
        self.version = 1
        self.models: list[Model] = []
        self.start_process()

    def start_process(self) -> None:
        self.ring = Ring(records_per_master_max=16, memory_bytes_max=65_536)
        self.intake = Intake(self.ring, tracked_positions_max=4)
        self.tailed = 0
        self.models.clear()

    # --- masters

    @rule(master=st.sampled_from(MASTERS), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
    def signals(self, master: int, kinds: list[signal_pb2.SignalKind.ValueType]) -> None:
        history = self.world.histories[master]
        first = history.head.sequence + 1
        made = [
            signal_pb2.Signal(
                kind=kind, position_id=1 + index % 3, side=signal_pb2.SIDE_BUY, stop_loss_e8=first
            )
            for index, kind in enumerate(kinds)
        ]
        for index, one in enumerate(made):
            place = Position(history.head.epoch, first + index)
            history.signals[place] = one
            history.places.append(place)
        last = first + len(made) - 1
        self.world.append(
            log_pb2.LogRun(
                master_id=master,
                epoch=history.head.epoch,
                first_sequence=first,
                last_sequence=last,
                received_at_us=self.now_us,
                batch=frames_pb2.SignalBatch(first_sequence=first, sent_at_us=self.now_us, signals=made),
            )
        )
        history.head = Position(history.head.epoch, last)

    @rule(master=st.sampled_from(MASTERS), count=st.integers(1, 5))
    def hole(self, master: int, count: int) -> None:
        history = self.world.histories[master]
        last = Position(history.head.epoch, history.head.sequence + count)
        for sequence in range(history.head.sequence + 1, last.sequence + 1):
            history.holes[Position(last.epoch, sequence)] = last
        self.world.append(
            log_pb2.LogRun(
                master_id=master,
                epoch=last.epoch,
                first_sequence=history.head.sequence + 1,
                last_sequence=last.sequence,
                gap=log_pb2.GapMarker(reason=position_pb2.GAP_REASON_REJECTED),
            )
        )
        history.head = last
        history.places.append(last)

    @rule(master=st.sampled_from(MASTERS))
    def master_lost_its_outbox(self, master: int) -> None:
        self.begin_epoch(
            master, self.world.histories[master].head.sequence, position_pb2.GAP_REASON_MASTER_LOST
        )

    @rule(master=st.sampled_from(MASTERS), lost=st.integers(1, 8), unacknowledged=st.integers(0, 3))
    def log_comes_back_with_less(self, master: int, lost: int, unacknowledged: int) -> None:
        """The log lost this master's last runs, of which the master never saw the last ones acknowledged."""
        runs = [run for run in self.world.log if run.master_id == master and run.HasField("batch")]
        history = self.world.histories[master]
        gone = [run for run in runs[-lost:] if run.epoch == history.head.epoch]
        tail = self.world.log[-len(gone) :] if gone else []
        if not gone or gone != tail:
            return
        acknowledged = max(gone[0].first_sequence - 1, history.head.sequence - unacknowledged)
        del self.world.log[-len(gone) :]
        del self.world.archive[-len(gone) :]
        self.tailed = min(self.tailed, len(self.world.log))
        previous = Position(history.head.epoch, gone[0].first_sequence - 1)
        if acknowledged == previous.sequence:
            # Nothing that was acknowledged is lost: the master sends the same again.
            for run in gone:
                self.world.append(run)
            return
        history.head = previous
        self.begin_epoch(master, acknowledged, position_pb2.GAP_REASON_LOG_LOST)

    def begin_epoch(self, master: int, resume: int, reason: position_pb2.GapReason.ValueType) -> None:
        history = self.world.histories[master]
        previous = history.head
        history.head = Position(previous.epoch + 1, resume)
        start = log_pb2.LogRun(
            master_id=master,
            epoch=history.head.epoch,
            first_sequence=resume,
            last_sequence=resume,
            epoch_start=log_pb2.EpochStart(
                previous=position_pb2.StreamPosition(epoch=previous.epoch, sequence=previous.sequence),
                reason=reason,
            ),
        )
        history.epochs[history.head.epoch] = start
        history.places.append(history.head)
        self.world.append(start)

    # --- the process

    @rule(runs=st.integers(1, 5))
    def tail(self, runs: int) -> None:
        batch = log_pb2.LogBatch(runs=self.world.log[self.tailed : self.tailed + runs])
        self.tailed += len(batch.runs)
        ends = {log.master_id: log.end for log in self.ring}
        grown, _ = self.intake.apply(runs_of(batch.SerializeToString())[0])
        for log in grown:
            self.wake(log, ends.get(log.master_id))

    def wake(self, log: MasterLog, start: int | None = None) -> None:
        """As the service does: who stands where the log ended is told at once, if it takes it; others are woken."""
        for model in self.models:
            cursor = model.stream.cursors.get(log.master_id)
            if cursor is None:
                continue
            if start is not None and model.is_eager:
                self.tell_level(model, cursor, log, start)
            model.stream.wake(cursor)

    def tell_level(self, model: Model, cursor: Cursor, log: MasterLog, start: int) -> None:
        follower = Follower(model.stream, cursor)
        if level_at(start, [follower]):
            for piece in pieces(log, start, LIMITS):
                model.take(piece.message.data)
                move_behind(piece, [follower], self.now_us)

    @rule()
    def audit(self) -> None:
        """Heads that the log tells and that were not read, although everything was."""
        if self.tailed < len(self.world.log):
            return
        for log in self.ring:
            if self.intake.advance(log, self.world.histories[log.master_id].head):
                self.wake(log)

    @rule(filled=st.integers(0, 6))
    def restart(self, filled: int) -> None:
        """A new process fills its ring from the log's end; readers come back where they stand."""
        before = list(self.models)
        self.start_process()
        self.tailed = max(0, len(self.world.log) - filled)
        self.tail(1_000)
        for model in before:
            if all(held is not None for held in model.held.values()):
                self.reconnect(model)

    @rule(count=st.integers(1, 6))
    def trim_log(self, count: int) -> None:
        count = min(count, len(self.world.log), self.tailed)
        del self.world.log[:count]
        self.tailed -= count

    @rule(count=st.integers(1, 6))
    def trim_archive(self, count: int) -> None:
        del self.world.archive[:count]

    @rule(count=st.integers(1, 4))
    def trim_log_before_it_is_read(self, count: int) -> None:
        """The process was away for longer than the log holds: what comes next leaves a hole in its ring."""
        del self.world.log[: self.tailed + count]
        self.tailed = 0

    # --- readers

    @rule(
        target=readers,
        masters=st.sets(st.sampled_from(MASTERS), min_size=1),
        back=st.integers(-1, 30),
        pause=st.sampled_from(Pause),
        reads=st.booleans(),
    )
    def connect(self, masters: set[int], back: int, pause: Pause, reads: bool) -> Model | object:
        """-1 begins now, others that many positions before the head."""
        positions: dict[int, Position | None] = {}
        for master in masters:
            places = self.world.histories[master].places
            positions[master] = self.log_of(master).head if back < 0 else places[-1 - back % len(places)]
        model = self.open(positions, pause)
        if model is not None and back < 0:
            # It said no position: the stream must, before anything else.
            model.held = dict.fromkeys(masters)
        if model is not None and reads:
            self.pump_dry(model)
        return model or multiple()

    @rule(target=readers, master=st.sampled_from(MASTERS), back=st.integers(0, 10))
    def connect_with_snapshot(self, master: int, back: int) -> Model | object:
        places = self.world.histories[master].places
        as_of = places[-1 - back % len(places)]
        model = self.open({master: None}, Pause.NONE)
        if model is None:
            return multiple()
        snapshot = snapshot_pb2.Snapshot(
            master_id=master, as_of=position_pb2.StreamPosition(epoch=as_of.epoch, sequence=as_of.sequence)
        )
        cursor = model.stream.cursors[master]
        if reach_of(cursor.log, as_of) is Reach.BEHIND and not isinstance(
            self.world.page(master, as_of, 3), Segment
        ):
            self.models.remove(model)
            return multiple()
        model.stream.begin_with(cursor, snapshot, self.now_us)
        return model

    @rule(model=readers, master=st.sampled_from(MASTERS), back=st.integers(0, 30))
    def full_sync(self, model: Model, master: int, back: int) -> None:
        """In the midst of a stream, from a snapshot that may lie before or behind what the reader holds."""
        cursor = model.stream.cursors.get(master)
        if model not in self.models or cursor is None or cursor.place is Place.SNAPSHOT:
            return
        places = self.world.histories[master].places
        as_of = places[-1 - back % len(places)]
        if as_of > cursor.log.head or (
            reach_of(cursor.log, as_of) is Reach.BEHIND
            and not isinstance(self.world.page(master, as_of, 3), Segment)
        ):
            return
        asked = {one: self.world.page(one.master_id, one.position, 3) for one in model.stream.wants()}
        model.stream.resync(cursor, "a test", self.now_us)
        snapshot = snapshot_pb2.Snapshot(
            master_id=master, as_of=position_pb2.StreamPosition(epoch=as_of.epoch, sequence=as_of.sequence)
        )
        model.full_syncs[master].append(as_of)
        model.stream.begin_with(cursor, snapshot, self.now_us)
        # A page that was asked for before comes now.
        page = asked.get(cursor)
        if isinstance(page, Segment):
            model.stream.feed(cursor, page, self.now_us)

    @rule(model=readers)
    def drop_and_resume(self, model: Model) -> None:
        if model in self.models and all(held is not None for held in model.held.values()):
            self.models.remove(model)
            self.reconnect(model)

    def reconnect(self, model: Model) -> None:
        """The reader goes on in the same model: what it saw before counts for what comes now."""
        again = self.open(dict(model.held), Pause.NONE)
        if again is not None:
            again.seen = model.seen

    def open(self, positions: dict[int, Position | None], pause: Pause) -> Model | None:
        """Opens a stream as the service does; None where it answers OUT_OF_RANGE."""
        cursors: list[Cursor] = []
        pages: dict[int, Segment] = {}
        for master, position in positions.items():
            log = self.log_of(master)
            cursor = Cursor(log, pause=pause, version=self.version)
            cursors.append(cursor)
            if position is None:
                cursor.resync()
                continue
            reach = reach_of(log, position)
            if reach is Reach.AHEAD and position > self.world.histories[master].head:
                return None
            if reach is Reach.BEHIND:
                page = self.world.page(master, position, 3)
                if not isinstance(page, Segment):
                    return None
                pages[master] = page
            cursor.start(position)
        reader = Reader("user", "license", FAR_US)
        stream = Stream(1, reader, cursors, LIMITS, now_us=self.now_us)
        for cursor in stream.wants():
            stream.feed(cursor, pages[cursor.master_id], self.now_us)
        model = Model(stream, self.world, positions)
        self.models.append(model)
        return model

    def log_of(self, master: int) -> MasterLog:
        """The ring's log; as the service does, it begins at the log's head when the ring has none."""
        return self.ring.get(master) or self.ring.open(master, self.world.histories[master].head)

    @rule(model=readers, times=st.integers(1, 4))
    def write(self, model: Model, times: int) -> None:
        """The reader takes a few messages; who is never drawn is stalled."""
        if model in self.models:
            for _ in range(times):
                self.pump_once(model)

    @rule(model=readers, pause=st.sampled_from(Pause), master=st.sampled_from(MASTERS))
    def pause(self, model: Model, pause: Pause, master: int) -> None:
        if model in self.models and master in model.stream.cursors:
            self.version += 1
            model.stream.pause(master, pause, self.version, "a test", self.now_us)
            model.pauses[master].add(pause)

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.now_us += seconds * 1_000_000
        cache = ProgressCache(self.now_us)
        for model in self.models:
            model.stream.tick(self.now_us, cache)

    def pump_once(self, model: Model) -> bool:
        stream = model.stream
        messages = stream.next_messages(self.now_us)
        for message in messages:
            model.take(message.data)
        for cursor in stream.wants():
            page = self.world.page(cursor.master_id, cursor.position, 3)
            if isinstance(page, Segment):
                stream.feed(cursor, page, self.now_us)
            else:
                floor = page if page is not None and cursor.position < page < cursor.log.floor else None
                stream.skip_to(cursor, floor or cursor.log.floor, self.now_us)
        return bool(messages) or stream.has_next

    def pump_dry(self, model: Model) -> None:
        for _ in range(10_000):
            if not self.pump_once(model):
                return
        raise AssertionError("a stream that never comes to its end")

    @invariant()
    def bounds_hold(self) -> None:
        for log in self.ring:
            assert len(log) <= 16

    def teardown(self) -> None:
        """Pumped dry, everybody stands at the head."""
        self.tail(10_000)
        self.audit()
        for model in self.models:
            self.pump_dry(model)
        self.time_passes(2)
        for model in self.models:
            self.pump_dry(model)
            for master, cursor in model.stream.cursors.items():
                if cursor.place is Place.SNAPSHOT:
                    continue
                head = self.world.histories[master].head
                held = model.held[master]
                assert held is not None
                # One who held more than the log has now waits until the log gets there.
                assert held == head or (held > head and held.epoch == head.epoch), (held, head)


FanoutMachine.TestCase.settings = settings(
    max_examples=SCHEDULES,
    stateful_step_count=40,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestFanoutCore = pytest.mark.timeout(120 + SCHEDULES // 10)(FanoutMachine.TestCase)
