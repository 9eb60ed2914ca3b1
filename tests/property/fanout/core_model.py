"""What truly happened, the stores that hold it, and a reader that checks each event against it as it comes."""

from __future__ import annotations

from dataclasses import dataclass, field

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ingest.v1 import log_pb2
from services.fanout.domain.filter import Pause
from services.fanout.domain.intake import records_of_run
from services.fanout.domain.position import BEGINNING, Position
from services.fanout.domain.ring import Record, Segment
from services.fanout.domain.runs import runs_of
from services.fanout.domain.stream import Stream, StreamLimits

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
            read, _ = runs_of(log_pb2.LogBatch(runs=runs).SerializeToString())
            for run in read:
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
        self.full_syncs: dict[int, list[Position]] = {m: [] for m in held}
        """As of where each snapshot is that was given to the stream and not told yet."""
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
                self.take_snapshot(response.snapshot.snapshot)
            case "state_change":
                pass
            case other:
                raise AssertionError(other)

    def take_snapshot(self, snapshot: snapshot_pb2.Snapshot) -> None:
        """At the beginning, or that of a full sync: what followed it is told again."""
        as_of = Position(snapshot.as_of.epoch, snapshot.as_of.sequence)
        master = snapshot.master_id
        assert self.held[master] is None or self.full_syncs[master].pop(0) == as_of
        self.seen[master] = {place for place in self.seen[master] if place <= as_of}
        self.held[master] = as_of

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
