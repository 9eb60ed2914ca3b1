"""Limits, requests, the log's index, rests, the archive's records, metrics."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2, signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ingest.v1 import log_pb2
from execution.ledger.v1 import archive_service_pb2 as archive_pb
from services.common.errors import InvalidInputError
from services.fanout.domain.codec import varint
from services.fanout.domain.filter import Pause
from services.fanout.domain.index import EntryKey, LogIndex
from services.fanout.domain.intake import records_of_archive
from services.fanout.domain.lag import Lag, LagLimits, Verdict, judge
from services.fanout.domain.pacing import Pacing
from services.fanout.domain.position import ZERO, Position
from services.fanout.domain.request import Begin, page_of, positions_of, starts_of
from services.fanout.domain.ring import EpochRecord, GapRecord, SignalRecord
from services.fanout.domain.runs import Run, runs_of
from services.fanout.entitlements import pause_of
from services.fanout.metrics import TallyHistogram
from tests.unit.fanout.runs import epoch_run, gap_run, signals_run, sound

LIMITS = LagLimits(
    signals_max=100,
    bytes_max=1_000,
    seconds_max=10,
    catch_up_seconds_max=50,
    unacknowledged_seconds_max=20,
)


@pytest.mark.parametrize(
    ("lag", "verdict", "limit"),
    [
        (Lag(), Verdict.FINE, ""),
        (Lag(signals=49), Verdict.FINE, ""),
        (Lag(signals=50), Verdict.WARN, "signals"),
        (Lag(signals=100), Verdict.WARN, "signals"),
        (Lag(signals=101), Verdict.END, "signals"),
        (Lag(bytes=1_001), Verdict.END, "bytes"),
        (Lag(seconds=10.1), Verdict.END, "seconds"),
        (Lag(unacknowledged_seconds=21), Verdict.END, "unacknowledged_seconds"),
        (Lag(signals=10_000, bytes=10_000, seconds=20, is_catching_up=True), Verdict.FINE, ""),
        (Lag(seconds=51, is_catching_up=True), Verdict.END, "catch_up_seconds"),
    ],
)
def test_a_reader_is_warned_first_and_then_ended(lag: Lag, verdict: Verdict, limit: str) -> None:
    assert judge(lag, LIMITS) == (verdict, limit)


def test_rests_are_in_proportion_and_bounded() -> None:
    pacing = Pacing(load_max=0.5, delay_seconds_max=0.004)
    assert pacing.rest_seconds(0.001) == pytest.approx(0.001)
    assert pacing.rest_seconds(1) == 0.004
    assert pacing.rest_seconds(-1) == 0
    assert Pacing(load_max=1, delay_seconds_max=1).rest_seconds(1) == 0


def start(master: int, sequence: int = 0, epoch: int = 0) -> pb.MasterStart:
    return pb.MasterStart(master_id=master, after=position_pb2.StreamPosition(epoch=epoch, sequence=sequence))


def test_starts_are_read_as_they_are_meant() -> None:
    request = pb.SubscribeRequest(
        masters=[
            start(1, 5, 2),
            pb.MasterStart(master_id=2, from_snapshot=pb.FromSnapshot()),
            pb.MasterStart(master_id=3, from_now=pb.FromNow()),
            pb.MasterStart(master_id=4),
        ]
    )
    starts = starts_of(request)
    assert [one.begin for one in starts] == [Begin.AFTER, Begin.SNAPSHOT, Begin.NOW, Begin.NOW]
    assert starts[0].after == (2, 5)
    assert starts_of(pb.SubscribeRequest()) == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SubscribeRequest(client="x" * 65), "client"),
        (pb.SubscribeRequest(masters=[start(n) for n in range(1, 102)]), "masters"),
        (pb.SubscribeRequest(masters=[start(0)]), "masters[0].master_id"),
        (pb.SubscribeRequest(masters=[start(2**63)]), "masters[0].master_id"),
        (pb.SubscribeRequest(masters=[start(1), start(1)]), "masters[1].master_id"),
        (pb.SubscribeRequest(masters=[start(1, 5)]), "masters[0].after"),
        (pb.SubscribeRequest(masters=[start(1, 2**53, 1)]), "masters[0].after"),
    ],
)
def test_a_wrong_subscribe_names_its_field(request_: pb.SubscribeRequest, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        starts_of(request_)
    assert [one.field for one in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("positions", "field"),
    [([], "positions"), ([0], "positions[0].master_id"), ([3, 3], "positions[1].master_id")],
)
def test_a_wrong_acknowledge_names_its_field(positions: list[int], field: str) -> None:
    request = pb.AcknowledgeRequest(
        positions=[position_pb2.MasterPosition(master_id=one) for one in positions]
    )
    with pytest.raises(InvalidInputError) as caught:
        positions_of(request)
    assert [one.field for one in caught.value.violations] == [field]


def test_an_acknowledge_without_position_is_the_zero_position() -> None:
    request = pb.AcknowledgeRequest(positions=[position_pb2.MasterPosition(master_id=3)])
    assert positions_of(request) == [(3, ZERO)]


def test_pages_have_bounds_and_tokens() -> None:
    assert page_of(pb.ListStreamsRequest()) == (0, 100)
    assert page_of(pb.ListStreamsRequest(page_size=7, page_token="12")) == (12, 7)
    for wrong in (
        pb.ListStreamsRequest(page_size=1_001),
        pb.ListStreamsRequest(page_token="x"),
        pb.ListStreamsRequest(page_token="²"),
        pb.ListStreamsRequest(page_token="1" * 19),
    ):
        with pytest.raises(InvalidInputError):
            page_of(wrong)


@pytest.mark.parametrize(
    ("value", "data"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")]
)
def test_varints_are_as_protobuf_has_them(value: int, data: bytes) -> None:
    assert varint(value) == data


def batch(first: int, count: int = 1, master: int = 1) -> list[Run]:
    return sound(signals_run(first, count, master=master))


def key(number: int) -> EntryKey:
    return EntryKey(number, 0)


def test_the_index_finds_the_block_that_holds_what_follows() -> None:
    index = LogIndex(marks_max=10, block_entries=2)
    for number in range(10):
        index.note(key(number), batch(1 + number * 10, 10))
    block = index.locate(1, Position(1, 45))
    assert block is not None
    assert block.first == key(4)
    assert index.locate(1, Position(1, 60)) is not None
    assert index.locate(1, Position(1, 60)).first == key(6)
    assert index.locate(1, Position(1, 100)) is None
    assert index.locate(2, Position(1, 5)) is None


def test_the_index_forgets_its_oldest_blocks() -> None:
    index = LogIndex(marks_max=3, block_entries=1)
    for number in range(10):
        index.note(key(number), batch(1 + number))
    assert len(index) == 3
    assert index.oldest == key(7)
    assert index.locate(1, Position(1, 3)) is None
    assert not index.has_room


def test_the_index_grows_backwards() -> None:
    index = LogIndex(marks_max=10, block_entries=2)
    index.note(key(5), batch(6))
    assert index.locate(1, Position(1, 2)) is None
    index.note_older([(key(number), batch(1 + number)) for number in range(5)])
    block = index.locate(1, Position(1, 2))
    assert block is not None
    assert block.first == key(2)
    assert index.oldest == key(0)


def test_at_the_beginning_of_the_log_the_first_block_is_the_answer() -> None:
    """It is behind a hole, then, which the one who reads it sees."""
    index = LogIndex(marks_max=10, block_entries=2)
    index.note(key(5), batch(6))
    index.forget_before(key(5))
    assert index.locate(1, Position(1, 2)) is not None


def test_what_was_trimmed_is_forgotten() -> None:
    index = LogIndex(marks_max=10, block_entries=1)
    for number in range(5):
        index.note(key(number), batch(1 + number))
    index.forget_before(key(3))
    assert index.oldest == key(3)
    assert index.reaches_beginning
    index.clear()
    assert len(index) == 0


def test_an_entry_that_was_noted_before_changes_nothing() -> None:
    index = LogIndex(marks_max=10, block_entries=1)
    index.note(key(1), batch(1))
    index.note(key(1), batch(1))
    assert len(index) == 1


def unsound(**fields: int) -> log_pb2.LogRun:
    run = signals_run(5, 2)
    for name, value in fields.items():
        setattr(run, name, value)
    return run


@pytest.mark.parametrize(
    "run",
    [
        unsound(master_id=0),
        unsound(epoch=0),
        unsound(first_sequence=0, last_sequence=1),
        unsound(last_sequence=7),
        unsound(last_sequence=4),
        unsound(first_sequence=2**60, last_sequence=2**60 + 1),
        log_pb2.LogRun(master_id=1, epoch=1, first_sequence=3, last_sequence=2, gap=log_pb2.GapMarker()),
        log_pb2.LogRun(master_id=1, epoch=1, first_sequence=3, last_sequence=3),
    ],
)
def test_a_run_that_cannot_be_is_passed_over_alone(run: log_pb2.LogRun) -> None:
    whole = log_pb2.LogBatch(runs=[signals_run(1, 2), run, signals_run(3, 1)])
    kept, count = runs_of(whole.SerializeToString())
    assert count == 1
    assert [(one.before, one.last) for one in kept] == [((1, 0), (1, 2)), ((1, 2), (1, 3))]


def test_sound_runs_are_kept_as_they_are() -> None:
    marker = log_pb2.LogRun(master_id=1, epoch=1, snapshot=log_pb2.SnapshotMarker())
    whole = log_pb2.LogBatch(runs=[signals_run(1, 2), gap_run(3, 5), epoch_run(2, 5, (1, 5)), marker])
    kept, count = runs_of(whole.SerializeToString())
    assert count == 0
    assert [one.message for one in kept] == list(whole.runs)
    assert [one.kind for one in kept] == ["batch", "gap", "epoch_start", "snapshot"]
    assert [one.before for one in kept] == [(1, 0), (1, 2), (1, 5), (1, -1)]
    assert [one.last for one in kept] == [(1, 2), (1, 5), (2, 5), (1, 0)]


def test_a_pause_of_a_later_version_withholds_all() -> None:
    assert pause_of(1) is Pause.CLOSE_ONLY
    assert pause_of(99) is Pause.ALL


def position(epoch: int, sequence: int) -> position_pb2.StreamPosition:
    return position_pb2.StreamPosition(epoch=epoch, sequence=sequence)


def archived_gap(
    first: tuple[int, int], last: tuple[int, int], resume: tuple[int, int]
) -> archive_pb.ArchivedRecord:
    gap = archive_pb.ArchivedGap(
        master_id=1,
        to=position(*last),
        reason=position_pb2.GAP_REASON_LOG_LOST,
        resume_after=position(*resume),
    )
    getattr(gap, "from").CopyFrom(position(*first))
    return archive_pb.ArchivedRecord(gap=gap)


def test_archived_records_are_what_the_log_would_give() -> None:
    signal = signal_pb2.SequencedSignal(
        master_id=1, epoch=1, sequence=1, signal=signal_pb2.Signal(kind=signal_pb2.SIGNAL_KIND_CLOSE)
    )
    records = list(
        records_of_archive(
            [
                archive_pb.ArchivedRecord(signal=signal),
                archived_gap((1, 2), (1, 4), (1, 4)),
                archived_gap((1, 5), (1, 9), (2, 9)),
                archived_gap((2, 10), (2, 9), (3, 9)),
            ],
            after=Position(1, 0),
        )
    )
    first, gap, epoch, empty = records
    assert isinstance(first, SignalRecord)
    assert isinstance(gap, GapRecord)
    assert isinstance(epoch, EpochRecord)
    assert isinstance(empty, EpochRecord)
    assert (gap.first_sequence, gap.position) == (2, (1, 4))
    assert (epoch.before, epoch.position) == ((1, 4), (2, 9))
    assert (empty.before, empty.position) == ((2, 9), (3, 9))
    held = Position(1, 0)
    for record in records:
        assert record.follows(held)
        held = record.position
    assert (
        len(list(records_of_archive([archive_pb.ArchivedRecord(signal=signal)], after=Position(1, 1)))) == 0
    )


def test_the_tally_is_a_prometheus_histogram() -> None:
    tally = TallyHistogram("a_test_ms", "A test.", (1, 10))
    for value in (0.5, 1, 5, 100):
        tally.observe(value)
    (family,) = tally.collect()
    values = {sample.name + sample.labels.get("le", ""): sample.value for sample in family.samples}
    assert values == {
        "a_test_ms_bucket1.0": 2,
        "a_test_ms_bucket10.0": 3,
        "a_test_ms_bucket+Inf": 4,
        "a_test_ms_count": 4,
        "a_test_ms_sum": 106.5,
    }
    assert tally.count == 4
