"""A subscriber through cuts, crashes, gaps, pauses, epochs and trimmed logs: each signal once, in step in the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ecp_client.books import Book
from ecp_client.clock import ServerClock
from ecp_client.copying import CopySettings, differences
from ecp_client.copying.reconciling import Step
from ecp_client.disk import FsyncPolicy
from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber import (
    Batch,
    GapSeen,
    Journal,
    JournalSettings,
    Resynced,
    Start,
    SubscriberEvent,
    SubscriberSettings,
    read_journal,
)
from ecp_client.subscriber.hooks import Hooks
from ecp_client.subscriber.journal_format import EntryType
from ecp_client.subscriber.processing import Processor
from ecp_client.subscriber.recovery import recover
from execution.common.v1 import signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.property.clients.naive_account import NaiveAccount, Wish, wishes
from tests.property.clients.simulated_fanout import MASTER, SYNCED, OutOfRangeError, SimulatedFanout

JOURNAL = JournalSettings(fsync=FsyncPolicy.NEVER, file_bytes=4_096, files_max=3)
ROUNDS_MAX = 400
ORDER_ENDS = (signal_pb2.SIGNAL_KIND_PENDING_CANCEL, signal_pb2.SIGNAL_KIND_PENDING_FILL)


class SubscriberFollowing(RuleBasedStateMachine):
    @initialize(
        start=st.sampled_from(list(Start)),
        multiplier=st.sampled_from([10_000, 5_000]),
        history=st.lists(wishes, min_size=5, max_size=10),
        with_snapshot=st.booleans(),
    )
    def begin(self, start: Start, multiplier: int, history: list[Wish], with_snapshot: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.settings = SubscriberSettings(
            addresses=["127.0.0.1:1"],
            license_token="t",
            masters={MASTER: CopySettings(volume_multiplier_e4=multiplier)},
            start=start,
        )
        self.master = NaiveAccount(hedging=True)
        self.fanout = SimulatedFanout()
        self.trade(history)
        if with_snapshot:
            self.fanout.take_snapshot()
        self.delivered: list[Position] = []
        self.told_gaps: list[GapSeen] = []
        self.delivered_closes: set[int] = set()
        self.delivered_ends_of_orders: set[int] = set()
        self.wrongly_closed: set[int] = set()
        self.wrongly_opened: set[int] = set()
        self.stream: Iterator[pb.SubscribeResponse] | None = None
        self.processes = 0
        self.start_process()

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.folder)

    # The client's process

    def start_process(self) -> None:
        self.processes += 1
        self.journal = Journal(self.folder, JOURNAL)
        hooks = Hooks(on_event=self.on_event)
        self.processor = Processor(
            self.settings, hooks, self.journal, recover(self.folder), ServerClock(0, 0)
        )

    @rule(how=st.sampled_from(["closed", "crashed", "crashed"]), torn=st.integers(0, 30))
    def another_process(self, how: str, torn: int) -> None:
        if how == "closed":
            self.close_and_start_again()
        else:
            self.crash_and_start_again(torn)

    def close_and_start_again(self) -> None:
        self.hang_up()
        self.processor.checkpoint()
        self.journal.close()
        self.start_process()

    def crash_and_start_again(self, torn: int) -> None:
        """What was being written is torn; what was written whole before is there."""
        self.hang_up()
        self.journal.close()
        path = max(self.folder.glob("*.journal"))
        with path.open("ab") as file:
            file.write(b"\x01" * torn)
        self.start_process()

    @rule()
    def checkpoint(self) -> None:
        self.processor.checkpoint()

    def on_event(self, event: SubscriberEvent) -> None:
        if isinstance(event, GapSeen):
            self.told_gaps.append(event)
        elif isinstance(event, Resynced):
            self.resynced(event)

    def resynced(self, event: Resynced) -> None:
        opened = {action.ticket for action in event.plan.actions if action.step is Step.OPEN}
        placed = {action.ticket for action in event.plan.actions if action.step is Step.PLACE}
        self.wrongly_opened |= (opened & self.delivered_closes) | (placed & self.delivered_ends_of_orders)
        closed = {action.ticket for action in event.plan.actions if action.step is Step.CLOSE}
        if self.settings.masters[MASTER].volume_multiplier_e4 < 10_000:
            # Of what the master reduced, too little may be left to hold.
            return
        # A callback's error would not end the test.
        self.wrongly_closed |= closed & self.fanout.truth.positions.keys()

    # The master and the log

    def trade(self, history: list[Wish]) -> None:
        for wish in history:
            signal = self.master.wish(wish)
            if signal is not None:
                self.fanout.add_signal(signal)

    @rule(history=st.lists(wishes, min_size=4, max_size=12))
    def master_trades(self, history: list[Wish]) -> None:
        self.trade(history)

    @rule(
        what=st.sampled_from(["refused", "epoch", "trimmed", "log"]),
        history=st.lists(wishes, min_size=1, max_size=3),
        count=st.integers(0, 10),
    )
    def something_is_lost(self, what: str, history: list[Wish], count: int) -> None:
        if what == "refused":
            self.front_door_refuses(history)
        elif what == "epoch":
            self.fanout.begin_epoch(count // 2)
        elif what == "trimmed":
            self.fanout.trim(count)
        else:
            self.log_comes_back_with_less(count)

    def log_comes_back_with_less(self, count: int) -> None:
        """Its process dies with it, and the stream of it."""
        self.hang_up()
        self.fanout.lose_log(len(self.fanout.records) - count)

    def front_door_refuses(self, history: list[Wish]) -> None:
        signals = [signal for wish in history if (signal := self.master.wish(wish)) is not None]
        if signals:
            self.fanout.add_hidden(signals)

    @rule()
    def master_sends_a_snapshot(self) -> None:
        self.fanout.take_snapshot()

    @rule()
    def pause_or_resume(self) -> None:
        self.fanout.is_paused = not self.fanout.is_paused
        if self.stream is not None:
            self.give(self.fanout.state())

    # The stream

    @rule(count=st.integers(1, 20), joined=st.booleans())
    def follow(self, count: int, joined: bool) -> None:
        """As a client does: reconnects at once, and takes what comes."""
        for _ in range(3):
            if self.stream is None:
                self.connect()
        if self.stream is not None:
            self.receive(count, joined)

    @rule(count=st.integers(1, 20))
    def follow_some_more(self, count: int) -> None:
        self.follow(count, True)

    def connect(self) -> None:
        (start,) = self.processor.session.request().masters
        try:
            self.stream = self.fanout.open(start)
        except OutOfRangeError as error:
            self.processor.stream_ended(self.processor.session.stream_ended(error.unavailable))
            return
        if self.fanout.is_paused:
            self.give(self.fanout.state())

    def receive(self, count: int, joined: bool) -> None:
        """Some responses; signals that follow one another may come in one message."""
        message = pb.SubscribeResponse()
        for _ in range(count):
            response = next(self.stream, None) if self.stream is not None else None
            if response is None:
                self.hang_up()
                return
            if joined and response.HasField("signals"):
                message.signals.signals.extend(response.signals.signals)
                continue
            if message.HasField("signals"):
                self.give(message)
                message = pb.SubscribeResponse()
            self.give(response)
        if message.HasField("signals"):
            self.give(message)

    @precondition(lambda self: self.stream is not None)
    @rule()
    def a_signal_gets_lost_on_the_way(self) -> None:
        """As no server should do it: the next signal shows it, by its previous position."""
        assert self.stream is not None
        for responses in zip(self.stream, self.stream, strict=False):
            lost = [response.HasField("signals") for response in responses]
            for response in responses[all(lost) :]:
                self.give(response)
            return

    @precondition(lambda self: self.stream is not None)
    @rule(paused=st.booleans())
    def operator_asks_for_a_full_sync(self, paused: bool) -> None:
        """The server begins with the stored snapshot again, in the middle of the stream."""
        if self.fanout.is_paused is not paused:
            self.pause_or_resume()
        if self.stream is not None:
            self.stream = self.fanout.full_sync()
            self.receive(20, joined=True)

    @precondition(lambda self: self.stream is not None)
    @rule()
    def hang_up(self) -> None:
        if self.stream is not None:
            self.stream = None
            self.processor.stream_ended(self.processor.session.stream_ended())

    @precondition(lambda self: self.stream is not None)
    @rule(count=st.integers(1, 3), stands_after=st.integers(0, 8))
    def server_is_killed_before_it_recorded_what_it_told(self, count: int, stands_after: int) -> None:
        """The next stream hears of the ledger how the subscription stood before that, sooner or later."""
        self.fanout.lose_last_records(count)
        self.fanout.stands_after = stands_after
        self.hang_up()

    @rule(defers=st.booleans())
    def full_syncs_are_deferred(self, defers: bool) -> None:
        self.processor.session.defers_full_syncs = defers

    @rule()
    def ask_for_full_sync(self) -> None:
        if self.processor.session.ask_for_full_sync():
            self.hang_up()

    def give(self, response: pb.SubscribeResponse) -> None:
        if self.stream is None:
            return
        batch = self.processor.handle(response)
        if batch is not None:
            self.take_batch(batch)
        if self.processor.session.wants_new_stream:
            self.hang_up()

    def take_batch(self, batch: Batch) -> None:
        assert len(batch.signals) == len(batch.decisions)
        for sequenced in batch.signals:
            position = Position(sequenced.epoch, sequenced.sequence)
            assert not self.delivered or position > self.delivered[-1]
            self.delivered.append(position)
            if sequenced.signal.kind == signal_pb2.SIGNAL_KIND_CLOSE:
                self.delivered_closes.add(sequenced.signal.position_id)
            elif sequenced.signal.kind in ORDER_ENDS:
                self.delivered_ends_of_orders.add(sequenced.signal.order_id)

    # What must hold

    @property
    def held(self) -> Position:
        return self.processor.session.tracks[MASTER].held or BEGINNING

    @invariant()
    def the_journal_says_what_was_delivered(self) -> None:
        if not hasattr(self, "journal"):
            return
        entries = [entry for entry in read_journal(self.folder) if entry.entry_type is EntryType.SIGNAL]
        journalled = [entry.position for entry in entries]
        # Old files are removed; what is left is the end of what was delivered.
        assert journalled == self.delivered[len(self.delivered) - len(journalled) :]
        self.nothing_is_said_to_be_missing_that_came()
        # However old a snapshot is, whatever a pause withholds, and whatever the log has lost.
        assert self.wrongly_closed == set()
        assert self.wrongly_opened == set()

    def nothing_is_said_to_be_missing_that_came(self) -> None:
        """A sequence means one signal for ever, also across epochs."""
        for entry in read_journal(self.folder):
            first, last = entry.previous.sequence + 1, entry.position.sequence
            both = [one for one in self.delivered if first <= one.sequence <= last]
            if entry.entry_type is EntryType.GAP and first == last:
                # So does an epoch begin behind which nothing is missing.
                both = [one for one in both if one.epoch == entry.position.epoch]
            if entry.entry_type in (EntryType.GAP, EntryType.SNAPSHOT):
                assert both == [], f"delivered, and {entry.entry_type.name} from {entry.previous}"

    @rule()
    def everything_is_in_step_in_the_end(self) -> None:
        """With a server that can be reached and a fresh snapshot, whatever happened before."""
        if self.fanout.is_paused:
            self.pause_or_resume()
        self.fanout.take_snapshot()
        self.fanout.stands_after = 0
        for _ in range(ROUNDS_MAX):
            track = self.processor.session.tracks[MASTER]
            if self.stream is None:
                self.connect()
            self.receive(5, joined=True)
            is_there = self.stream is not None and self.held >= self.fanout.head
            if is_there and not track.degraded and not track.withheld and self.fanout.is_settled:
                break
            self.ask_for_full_sync()
        assert self.held == max(self.fanout.head, Position(1, 0))
        assert self.fanout.recorded[-1] == SYNCED, "the operators see what the client sees"
        copier = self.processor.followings[MASTER].copier
        if self.processor.stats.full_syncs or self.settings.start is Start.BEGINNING:
            assert list(copier.mirror.differences(self.fanout.truth)) == []
        assert list(differences(copier, copier.mirror)) == []
        assert isinstance(copier.mirror, Book)
        self.nothing_was_passed_over_in_silence()

    def nothing_was_passed_over_in_silence(self) -> None:
        """Each signal behind the first delivered one came, or was told as a gap, or is in a snapshot."""
        if not self.delivered or self.journal_was_rotated():
            return
        covered = {one.sequence for one in self.delivered}
        telling = (EntryType.GAP, EntryType.SNAPSHOT, EntryType.PROGRESS)
        entries = [entry for entry in read_journal(self.folder) if entry.entry_type in telling]
        spans = [(entry.previous.sequence, entry.position.sequence) for entry in entries]
        for record in (*self.fanout.records, *self.fanout.lost):
            if record.signal is None or not self.delivered[0] < record.position <= self.held:
                continue
            sequence = record.position.sequence
            inside = any(before < sequence <= upto for before, upto in spans)
            assert sequence in covered or inside, record.position

    def journal_was_rotated(self) -> bool:
        return not (self.folder / "0000000001.journal").exists()


TestSubscriberFollowing = SubscriberFollowing.TestCase
TestSubscriberFollowing.settings = hypothesis_settings(max_examples=120, stateful_step_count=40)
