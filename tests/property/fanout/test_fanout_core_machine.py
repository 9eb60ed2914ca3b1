"""Random schedules of masters, losses, trims, pauses, stalls and restarts against a model of what a reader is told.

The core is driven as the service drives it, with lists in place of Redis and the archive. The model is the reader: it
knows the true history, and checks each event as it comes. Whatever happened, everything is told once and in order, or
named exactly as missing, and a reader that is pumped dry stands at the head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ingest.v1 import frames_pb2, log_pb2
from services.fanout.domain.cursor import Cursor, Place
from services.fanout.domain.filter import Pause
from services.fanout.domain.intake import Intake, records_of_run
from services.fanout.domain.level import Follower, level_at, move_behind, pieces
from services.fanout.domain.position import BEGINNING, Position
from services.fanout.domain.resume import Reach, reach_of
from services.fanout.domain.ring import MasterLog, Record, Ring, Segment
from services.fanout.domain.stream import ProgressCache, Reader, Stream, StreamLimits

MASTERS = (1, 2)
KINDS = (
    signal_pb2.SIGNAL_KIND_OPEN,
    signal_pb2.SIGNAL_KIND_MODIFY,
    signal_pb2.SIGNAL_KIND_CLOSE,
    signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE,
    signal_pb2.SIGNAL_KIND_PENDING_CANCEL,
    signal_pb2.SIGNAL_KIND_PENDING_PLACE,
)
CLOSES = {signal_pb2.SIGNAL_KIND_CLOSE, signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE}
FAR_US = 10**18
LIMITS = StreamLimits(message_bytes_max=400, message_signals_max=5, progress_interval_seconds=1.0)


@dataclass
class History:
    """What truly happened with one master."""

    head: Position = BEGINNING
    signals: dict[Position, signal_pb2.Signal] = field(default_factory=dict)
    holes: dict[Position, Position] = field(default_factory=dict)
    """Declared holes: each missing position, and the last one of its hole."""
    epochs: dict[int, log_pb2.LogRun] = field(default_factory=dict)
    """The start of each epoch but the first."""
    places: list[Position] = field(default_factory=lambda: [BEGINNING])
    """Every place at which a reader may stand."""


@dataclass
class World:
    """The stores: the log's runs (entries of one run each) and the archive's; both are cut at the front."""

    log: list[log_pb2.LogRun] = field(default_factory=list)
    archive: list[log_pb2.LogRun] = field(default_factory=list)
    opened: int = 0
    histories: dict[int, History] = field(default_factory=lambda: {m: History() for m in MASTERS})

    def append(self, run: log_pb2.LogRun) -> None:
        self.log.append(run)
        self.archive.append(run)

    def page(self, master_id: int, after: Position, records_max: int) -> Segment | Position | None:
        """A page behind `after`; else the oldest place to go on from; else None when nothing is left."""
        oldest: Position | None = None
        for runs in (self.log, self.archive):
            records: list[Record] = []
            for run in runs:
                if run.master_id == master_id:
                    records.extend(records_of_run(run, after=after))
            if records and records[0].follows(after):
                return Segment(after, records[:records_max])
            if records:
                oldest = records[0].before
        return oldest


class Model:
    """One reader: what it holds, and what it was told."""

    def __init__(self, stream: Stream, world: World, held: dict[int, Position | None]) -> None:
        self.stream = stream
        self.world = world
        self.held = held
        self.pauses: dict[int, set[Pause]] = {m: {c.pause} for m, c in stream.cursors.items()}
        self.seen: dict[int, set[Position]] = {m: set() for m in held}
        self.is_eager = world.opened % 2 == 0
        """Whether it takes what is new at once, as nearly all do."""
        world.opened += 1

    def take(self, data: bytes) -> None:
        response = pb.SubscribeResponse.FromString(data)
        match response.WhichOneof("event"):
            case "signals":
                assert response.signals.signals
                for one in response.signals.signals:
                    self.take_signal(one)
            case "gap":
                self.take_gap(response.gap)
            case "progress":
                for one in response.progress.positions:
                    place = Position(one.position.epoch, one.position.sequence)
                    assert self.held[one.master_id] in (None, place)
                    self.held[one.master_id] = place
            case "snapshot":
                snapshot = response.snapshot.snapshot
                assert self.held[snapshot.master_id] is None
                self.held[snapshot.master_id] = Position(snapshot.as_of.epoch, snapshot.as_of.sequence)
            case "state_change":
                pass
            case other:
                raise AssertionError(other)

    def take_signal(self, one: signal_pb2.SequencedSignal) -> None:
        place = Position(one.epoch, one.sequence)
        held = self.held[one.master_id]
        assert held == (one.previous_epoch, one.previous_sequence)
        assert held is not None
        assert place == (held.epoch, held.sequence + 1)
        assert place not in self.seen[one.master_id]
        assert one.signal == self.world.histories[one.master_id].signals[place]
        pauses = self.pauses[one.master_id]
        assert any(may_pass(one.signal, pause) for pause in pauses), (one, pauses)
        self.seen[one.master_id].add(place)
        self.held[one.master_id] = place

    def take_gap(self, gap: pb.Gap) -> None:
        first = getattr(gap, "from")
        begin, end = Position(first.epoch, first.sequence), Position(gap.to.epoch, gap.to.sequence)
        resume_after = Position(gap.resume_after.epoch, gap.resume_after.sequence)
        held = self.held[gap.master_id]
        history = self.world.histories[gap.master_id]
        assert held is not None
        assert held < resume_after
        if gap.reason == position_pb2.GAP_REASON_WITHHELD:
            assert begin == (held.epoch, held.sequence + 1)
            assert end == resume_after
            for sequence in range(begin.sequence, end.sequence + 1):
                signal = history.signals[Position(begin.epoch, sequence)]
                assert any(may_withhold(signal, pause) for pause in self.pauses[gap.master_id])
        elif gap.reason == position_pb2.GAP_REASON_TRIMMED:
            assert begin == (held.epoch, held.sequence + 1)
            answer = self.world.page(gap.master_id, held, 1)
            assert not isinstance(answer, Segment), "it was to be had"
        elif resume_after.epoch > held.epoch:
            self.check_epoch(gap, held, begin, end, resume_after)
        else:
            assert begin == (held.epoch, held.sequence + 1)
            assert end == resume_after == history.holes[begin]
        self.held[gap.master_id] = resume_after

    def check_epoch(
        self, gap: pb.Gap, held: Position, begin: Position, end: Position, resume_after: Position
    ) -> None:
        start = self.world.histories[gap.master_id].epochs[resume_after.epoch]
        assert gap.reason == start.epoch_start.reason
        if held.sequence < start.last_sequence:
            assert begin == (held.epoch, held.sequence + 1)
            assert end == (held.epoch, start.last_sequence)
            assert resume_after == (start.epoch, start.last_sequence)
        elif gap.reason == position_pb2.GAP_REASON_LOG_LOST:
            assert resume_after == (start.epoch, held.sequence)
        else:
            assert begin == end == resume_after == (start.epoch, start.last_sequence)


def may_pass(signal: signal_pb2.Signal, pause: Pause) -> bool:
    """Whether some subscriber might get it: for a MODIFY that depends on the stop, which unit tests are about."""
    if pause is Pause.NONE or signal.kind in CLOSES or signal.kind == signal_pb2.SIGNAL_KIND_MODIFY:
        return True
    return pause is Pause.CLOSE_ONLY and signal.kind == signal_pb2.SIGNAL_KIND_PENDING_CANCEL


def may_withhold(signal: signal_pb2.Signal, pause: Pause) -> bool:
    if pause is Pause.NONE or signal.kind in CLOSES:
        return False
    return not (pause is Pause.CLOSE_ONLY and signal.kind == signal_pb2.SIGNAL_KIND_PENDING_CANCEL)


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
        grown, _ = self.intake.apply(batch)
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
    max_examples=150,
    stateful_step_count=40,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestFanoutCore = FanoutMachine.TestCase
