"""The subscriber's journal on a real disk, and what a new process makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecp_client.account import HoldingState
from ecp_client.books import Book
from ecp_client.clock import ServerClock
from ecp_client.copying import Action, CopySettings, Reason, Scaling, differences
from ecp_client.disk import FsyncPolicy
from ecp_client.errors import ClosedError, JournalError, JournalLockedError, SettingsError
from ecp_client.positions import Position
from ecp_client.subscriber import (
    Journal,
    JournalSettings,
    Resynced,
    Start,
    SubscriberEvent,
    SubscriberSettings,
    SyncState,
    read_journal,
)
from ecp_client.subscriber.hooks import Hooks
from ecp_client.subscriber.journal_format import Entry, EntryType, encode
from ecp_client.subscriber.processing import Processor
from ecp_client.subscriber.recovery import recover
from execution.common.v1 import position_pb2, snapshot_pb2
from execution.common.v1 import signal_pb2 as common_pb
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.unit.clients.made import lots, sequenced, signal

OPEN, CLOSE = common_pb.SIGNAL_KIND_OPEN, common_pb.SIGNAL_KIND_CLOSE
P = Position


def entry(sequence: int, entry_type: EntryType = EntryType.SIGNAL) -> Entry:
    return Entry(entry_type, 1, P(1, sequence), P(1, sequence - 1), 99, OPEN, Action.COPY, 0, 12, 7)


class TestFiles:
    @pytest.mark.parametrize("policy", list(FsyncPolicy))
    def test_entries_are_read_as_they_were_written(self, tmp_path: Path, policy: FsyncPolicy) -> None:
        written = [
            entry(1),
            Entry(EntryType.GAP, 1, P(2, 5), P(1, 4), 9, kind=3),
            Entry(EntryType.CHECKPOINT, 1, P(2, 5), P(2, 5), 9, body=b"anything"),
            Entry(EntryType.SIGNAL, 2**60, P(2**32 - 1, 2**53), P(1, 1), -1, 9, 3, 15, 2**32 - 1, 2**63),
            Entry(EntryType.SIGNAL, 1, P(2, 6), P(2, 5), 9, OPEN, ticket=7, body=b"what it says"),
        ]
        with Journal(tmp_path, JournalSettings(fsync=policy)) as journal:
            journal.append(b"".join(encode(one) for one in written))
        assert list(read_journal(tmp_path)) == written

    def test_a_torn_end_is_cut_off_and_writing_goes_on(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.append(encode(entry(1)))
            journal.append(encode(entry(2)) + encode(entry(3)))
        (path,) = tmp_path.glob("*.journal")
        path.write_bytes(path.read_bytes()[:-1])
        assert [one.position.sequence for one in read_journal(tmp_path)] == [1]
        with Journal(tmp_path) as journal:
            journal.append(encode(entry(4)))
        assert [one.position.sequence for one in read_journal(tmp_path)] == [1, 4]

    def test_a_file_that_was_only_begun_is_begun_again(self, tmp_path: Path) -> None:
        (tmp_path / "0000000001.journal").write_bytes(b"ECP")
        with Journal(tmp_path) as journal:
            journal.append(encode(entry(1)))
        assert len(list(read_journal(tmp_path))) == 1

    def test_old_files_are_removed(self, tmp_path: Path) -> None:
        with Journal(tmp_path, JournalSettings(file_bytes=4_096, files_max=2)) as journal:
            for sequence in range(1, 400):
                if journal.is_file_full:
                    journal.begin_file(encode(entry(sequence, EntryType.PROGRESS)))
                journal.append(encode(entry(sequence)))
        assert len(list(tmp_path.glob("*.journal"))) == 2
        assert next(iter(read_journal(tmp_path))).entry_type is EntryType.PROGRESS

    def test_damage_in_an_older_file_is_told(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.append(encode(entry(1)))
            journal.begin_file(encode(entry(2)))
        path = min(tmp_path.glob("*.journal"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(JournalError, match="damaged at byte 8"):
            list(read_journal(tmp_path))
        path.write_bytes(b"something else entirely")
        with pytest.raises(JournalError, match="not a journal"):
            list(read_journal(tmp_path))

    @pytest.mark.parametrize("content", [b"something else entirely", b"\x00" * 9 + b"\x01"])
    def test_a_file_that_is_no_journal_is_told_and_left_as_it_is(
        self, tmp_path: Path, content: bytes
    ) -> None:
        """Begun again, it would have everything that the master holds opened once more."""
        path = tmp_path / "0000000001.journal"
        path.write_bytes(content)
        for _ in range(2):
            with pytest.raises(JournalError, match="not a journal"):
                Journal(tmp_path)
        assert path.read_bytes() == content

    def test_a_file_of_which_a_power_cut_left_only_zeros_is_begun_again(self, tmp_path: Path) -> None:
        (tmp_path / "0000000001.journal").write_bytes(bytes(4_096))
        assert list(read_journal(tmp_path)) == []
        with Journal(tmp_path) as journal:
            journal.append(encode(entry(1)))
        assert len(list(read_journal(tmp_path))) == 1

    def test_damage_in_front_of_whole_blocks_is_told_and_not_cut_off(self, tmp_path: Path) -> None:
        """What lies behind it would be given to the application again."""
        with Journal(tmp_path) as journal:
            for sequence in (1, 2, 3):
                journal.append(encode(entry(sequence)))
        (path,) = tmp_path.glob("*.journal")
        data = bytearray(path.read_bytes())
        data[30] ^= 1
        path.write_bytes(data)
        for _ in range(2):
            with pytest.raises(JournalError, match=r"damaged at byte 8.*put back a copy"):
                Journal(tmp_path)
        assert path.read_bytes() == data

    def test_entries_of_a_later_version_are_told(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.append(b"\xfe" + encode(entry(1))[1:])
        with pytest.raises(JournalError, match="a later version"):
            recover(tmp_path)

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        with Journal(tmp_path), pytest.raises(JournalLockedError):
            Journal(tmp_path)
        Journal(tmp_path).close()

    def test_errors_are_clear(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalError, match="give a folder"):
            Journal(tmp_path / "file" / "journal")
        journal = Journal(tmp_path / "journal")
        journal.close()
        with pytest.raises(ClosedError):
            journal.append(b"")
        with pytest.raises(SettingsError):
            JournalSettings(file_bytes=1)


class Process:
    """One run of a subscriber without its network."""

    def __init__(
        self, folder: Path, start: Start = Start.BEGINNING, equity: int | None = None, **copy: object
    ) -> None:
        settings = SubscriberSettings(
            addresses=["127.0.0.1:1"],
            license_token="t",
            masters={1: CopySettings(**copy)},
            start=start,
        )
        self.events: list[SubscriberEvent] = []
        self.journal = Journal(folder)
        hooks = Hooks(on_event=self.events.append, equity=lambda: equity)
        self.processor = Processor(settings, hooks, self.journal, recover(folder), ServerClock(0, 0))
        self.asked = self.processor.session.request().masters[0]

    def signals(self, *signals: common_pb.Signal, first: int) -> list[int]:
        response = pb.SubscribeResponse()
        for sequence, one in enumerate(signals, first):
            response.signals.signals.append(sequenced(one, sequence))
        batch = self.processor.handle(response)
        return [] if batch is None else [one.sequence for one in batch.signals]

    def gap(self, first: int, last: int, reason: position_pb2.GapReason.ValueType) -> None:
        gap = pb.Gap(master_id=1, to=P(1, last).to_pb(), reason=reason, resume_after=P(1, last).to_pb())
        getattr(gap, "from").CopyFrom(P(1, first).to_pb())
        self.processor.handle(pb.SubscribeResponse(gap=gap))

    def snapshot(self, snapshot: snapshot_pb2.Snapshot) -> None:
        self.processor.handle(pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=snapshot)))

    def crash(self) -> None:
        self.journal.close()

    @property
    def following(self):
        return self.processor.following(1)


def opened(*tickets: int) -> list[common_pb.Signal]:
    return [signal(OPEN, ticket) for ticket in tickets]


Begin = Callable[..., Process]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts processes, all on the same journal; the one before must have ended."""
    processes: list[Process] = []

    def start(**copy: object) -> Process:
        processes.append(Process(tmp_path, **copy))
        return processes[-1]

    yield start
    for process in processes:
        process.crash()


class TestAnotherProcess:
    def test_resumes_at_the_checkpoint_and_replays_what_was_decided(self, begin: Begin) -> None:
        one = begin()
        assert one.signals(*opened(1, 2), first=1) == [1, 2]
        one.processor.checkpoint()
        one.signals(*opened(3, 4), first=3)
        one.crash()
        other = begin()
        assert (other.asked.after.epoch, other.asked.after.sequence) == (1, 2)
        assert other.signals(*opened(3, 4, 5), first=3) == [5]
        assert sorted(other.following.copier.account.holdings) == [1, 2, 3, 4, 5]
        assert list(differences(other.following.copier, other.following.copier.mirror)) == []

    def test_a_decision_stands_although_it_would_be_another_today(self, begin: Begin) -> None:
        one = begin()
        one.signals(*opened(1, 2), first=1)
        one.crash()
        other = begin(max_signal_age_ms=1)
        other.signals(*opened(1, 2), first=1)
        assert {holding.state for holding in other.following.copier.account.holdings.values()} == {
            HoldingState.HELD
        }

    @pytest.mark.parametrize("replayed", [True, False])
    def test_a_volume_that_depended_on_equity_stays_what_it_was(self, begin: Begin, replayed: bool) -> None:
        """Whether the signal comes again or a snapshot stands for it."""
        book = Book()
        book.equity_e8 = 20_000
        one = begin(scaling=Scaling.EQUITY, equity=5_000)
        one.snapshot(book.to_snapshot(1, 1, 0, epoch=1))
        opening = signal(OPEN, 7, volume_lots_e8=lots("1"))
        one.signals(opening, first=2)
        (held,) = one.following.copier.account.held()
        assert held.volume_lots_e8 == lots("0.25")
        one.crash()
        other = begin(scaling=Scaling.EQUITY, equity=50_000)
        if replayed:
            assert other.asked.after.sequence == 1
            other.signals(opening, first=2)
        else:
            book.apply(opening, 2)
            other.snapshot(book.to_snapshot(1, 2, 0, epoch=1))
        assert list(other.following.copier.account.held()) == [held]

    def test_a_scale_that_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.append(encode(Entry(EntryType.SCALE, 1, P(1, 1), P(1, 1), 0, body=b"1/0")))
        with pytest.raises(JournalError, match="scale of master 1"):
            recover(tmp_path)

    def test_knows_what_was_opened_when_it_can_only_begin_with_a_snapshot(self, begin: Begin) -> None:
        one = begin(symbols=frozenset({"EURUSD"}))
        gold = signal(OPEN, 3, symbol="XAUUSD")
        one.signals(*opened(1, 2), gold, signal(CLOSE, 1), *opened(4), first=1)
        mirror = one.following.copier.mirror
        mirror.apply(signal(CLOSE, 2))
        snapshot = mirror.to_snapshot(1, 9, 1, epoch=1)
        one.crash()
        other = begin()
        other.snapshot(snapshot)
        (resynced,) = [event for event in other.events if isinstance(event, Resynced)]
        # 2 was closed meanwhile; 3 was refused, whatever today's filter says; 4 is held and stays.
        assert [(action.step.name, action.ticket) for action in resynced.plan.actions] == [("CLOSE", 2)]
        assert resynced.plan.skipped == ((3, Reason.SYMBOL_FILTER),)
        assert [holding.position_id for holding in other.following.copier.account.held()] == [4]
        assert list(differences(other.following.copier, other.following.copier.mirror)) == []

    @pytest.mark.parametrize("with_checkpoint", [True, False])
    def test_remembers_that_a_pause_withheld_signals(self, begin: Begin, with_checkpoint: bool) -> None:
        one = begin()
        one.signals(*opened(1), first=1)
        one.gap(2, 4, position_pb2.GAP_REASON_WITHHELD)
        if with_checkpoint:
            one.processor.checkpoint()
        one.crash()
        other = begin()
        assert other.processor.session.tracks[1].withheld
        # The new stream says nothing of a pause: it is over.
        other.signals(*opened(9), first=5)
        assert other.processor.session.request().masters[0].WhichOneof("start") == "from_snapshot"

    @pytest.mark.parametrize("with_checkpoint", [True, False])
    def test_remembers_that_a_full_sync_is_due(self, begin: Begin, with_checkpoint: bool) -> None:
        one = begin()
        one.signals(*opened(1), first=1)
        one.gap(2, 4, position_pb2.GAP_REASON_REJECTED)
        if with_checkpoint:
            one.processor.checkpoint()
        one.crash()
        other = begin()
        assert other.processor.session.tracks[1].degraded_at == P(1, 4)
        mirror = other.following.copier.mirror
        other.snapshot(mirror.to_snapshot(1, 4, 1, epoch=1))
        assert other.processor.session.tracks[1].state is SyncState.SYNCED
        other.crash()
        assert not begin().processor.session.tracks[1].degraded

    def test_remembers_what_the_user_closed(self, begin: Begin, tmp_path: Path) -> None:
        one = begin()
        one.signals(*opened(1, 2), first=1)
        assert one.processor.closed_by_user(1, 1, is_order=False)
        assert not one.processor.closed_by_user(1, 1, is_order=False)
        one.crash()
        kinds = [entry.entry_type for entry in read_journal(tmp_path)]
        assert EntryType.CLOSED_BY_USER in kinds
        other = begin()
        assert other.following.copier.account.holdings[1].state is HoldingState.CLOSED_BY_USER

    @pytest.mark.parametrize("with_snapshot", [False, True])
    def test_remembers_what_the_user_closed_and_the_broker_refused_during_a_replay(
        self, begin: Begin, with_snapshot: bool
    ) -> None:
        """No checkpoint can be written then."""
        one = begin()
        one.signals(*opened(1, 2, 3), signal(CLOSE, 3), *opened(3), first=1)
        one.crash()
        two = begin()
        replayed = [*opened(1, 2, 3), signal(CLOSE, 3)]
        two.signals(*replayed[:3], first=1)
        assert two.processor.closed_by_user(1, 1, is_order=False)
        assert two.processor.refused_by_broker(sequenced(opened(2)[0], 2), Reason.MARGIN)
        assert two.processor.closed_by_user(1, 3, is_order=False)
        mirror = two.following.copier.mirror
        two.crash()
        three = begin()
        if with_snapshot:
            three.snapshot(mirror.to_snapshot(1, 5, 1, epoch=1))
        else:
            three.signals(*replayed, *opened(3), first=1)
        holdings = three.following.copier.account.holdings
        assert holdings[1].state is HoldingState.CLOSED_BY_USER
        assert (holdings[2].state, holdings[2].reason) == (HoldingState.REFUSED, Reason.MARGIN)
        # The one that the user closed was closed by the master, too; what it opened later is another one.
        assert holdings[3].state is HoldingState.HELD
        three.processor.checkpoint()
        three.crash()
        assert begin().following.copier.account.holdings[1].state is HoldingState.CLOSED_BY_USER

    def test_knows_what_only_the_server_said_to_be_missing(self, begin: Begin) -> None:
        one = begin()
        one.signals(*opened(1, 2), first=1)
        change = pb.StateChange(master_id=1, state=pb.SUBSCRIPTION_STATE_DEGRADED_GAP)
        one.processor.handle(pb.SubscribeResponse(state_change=change))
        one.crash()
        other = begin()
        assert other.processor.session.tracks[1].held == P(1, 2)
        assert other.processor.session.misses_something

    def test_goes_on_from_the_newest_file(self, begin: Begin, tmp_path: Path) -> None:
        one = begin()
        one.signals(*opened(1, 2), first=1)
        one.journal._size = 1 << 40  # as if the file were full
        one.processor.checkpoint()
        one.signals(*opened(3), first=3)
        one.crash()
        assert len(list(tmp_path.glob("*.journal"))) == 2
        min(tmp_path.glob("*.journal")).unlink()
        other = begin()
        other.signals(*opened(3), first=3)
        assert sorted(other.following.copier.account.holdings) == [1, 2, 3]

    def test_a_checkpoint_that_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            body = (1).to_bytes(4, "little") + b"\xffnot json"
            journal.append(encode(Entry(EntryType.CHECKPOINT, 1, P(1, 1), P(1, 1), 0, body=body)))
        with pytest.raises(JournalError, match="checkpoint of master 1"):
            recover(tmp_path)
