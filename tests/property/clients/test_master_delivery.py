"""Outbox and session of a master against the front door's real session: nothing lost, nothing doubled, order kept.

The network cuts connections anywhere, the log fails, forgets and answers late, and the client's process restarts.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ecp_client.books import Book
from ecp_client.clock import ServerClock
from ecp_client.disk import FsyncPolicy
from ecp_client.master import Acknowledged, MasterSettings, Outbox, OutboxSettings, SignalRefused, events
from ecp_client.master.delivery import Delivery
from ecp_client.master.endings import PROTOCOL, Outlook
from ecp_client.master.handshake import Identity
from ecp_client.master.session import MasterSession
from ecp_client.master.snapshots import Snapshots
from execution.common.v1 import signal_pb2
from services.ingest.domain.values import Limits
from tests.property.clients.simulated_front_door import REJECTED, SECRET, MemoryLog, SimulatedFrontDoor

MASTER = 3
START_US = 1_800_000_000_000_000
DAY_US = 86_400_000_000
ROUNDS_MAX = 2_000

LIMITS = Limits(
    window=40,
    batch_signals_max=6,
    heartbeat_ms=1_000_000_000,
    signal_age_ms_max=60_000_000,
    signals_per_second_max=400,
)
OUTBOX = OutboxSettings(fsync=FsyncPolicy.NEVER, memory_signals_max=15)


class MasterDelivery(RuleBasedStateMachine):
    @initialize(existing=st.sampled_from([0, 0, 30]))
    def begin(self, existing: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log = MemoryLog()
        if existing:
            # The log has history that this outbox knows nothing about.
            self.log.epoch, self.log.sequence = 1, existing
        self.existing = existing
        self.door = SimulatedFrontDoor(LIMITS, self.log, START_US)
        self.put: dict[int, signal_pb2.Signal] = {}
        self.bad: set[int] = set()
        self.refused: set[int] = set()
        self.acknowledged = (0, 0)
        self.forgotten = False
        self.moved = 0
        self.counter = 0
        self.session: MasterSession | None = None
        self.start_process()

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.outbox.close()
            self.folder.cleanup()

    # The client's process

    def start_process(self) -> None:
        self.outbox = Outbox(Path(self.folder.name), MASTER, OUTBOX)
        assert self.outbox.damage == []
        self.clock = ServerClock(self.now_us, self.door.now_us)
        mutex = threading.Lock()
        settings = MasterSettings(
            addresses=["127.0.0.1:1"], master_id=MASTER, key_id="k", secret=SECRET, license_token="t",
            outbox_folder=Path(self.folder.name), snapshot_every_signals=7, snapshot_seconds_min=0,
        )  # fmt: skip
        snapshots = Snapshots(settings, self.outbox, mutex, lambda: self.door.now_us, None, Book())
        self.delivery = Delivery(self.outbox, snapshots, self.clock, mutex)

    @property
    def now_us(self) -> int:
        return self.door.now_us - START_US

    @rule()
    def restart_process(self) -> None:
        self.session = None
        self.outbox.close()
        self.start_process()

    @rule(count=st.integers(1, 12), bad=st.sampled_from(["", "", "", "symbol", "age"]))
    def put_signals(self, count: int, bad: str) -> None:
        signals = []
        for _ in range(count):
            self.counter += 1
            signal = signal_pb2.Signal(
                kind=signal_pb2.SIGNAL_KIND_OPEN, position_id=self.counter, symbol="EURUSD",
                side=signal_pb2.SIDE_BUY, volume_lots_e8=1, price_e8=1, occurred_at_us=self.door.now_us,
            )  # fmt: skip
            signals.append(signal)
        if bad == "symbol":
            signals[0].symbol = ""
        elif bad == "age":
            signals[0].occurred_at_us -= DAY_US
        first = self.outbox.put_many([signal.SerializeToString() for signal in signals])
        self.put.update(enumerate(signals, first))
        if bad:
            self.bad.add(first)
        self.feed()

    # The network

    @precondition(lambda self: self.session is None)
    @rule()
    def connect(self) -> None:
        self.door.connect()
        identity = Identity(MASTER, "k", SECRET, "t", "")
        nonce = b"%016d" % self.door.connections
        resume = self.delivery.resume()
        self.session = MasterSession(identity, resume, self.clock, self.now_us, nonce)
        self.to_server = b""
        self.to_client = b""
        self.collect()

    @precondition(lambda self: self.session is None)
    @rule()
    def connect_and_log_in(self) -> None:
        self.connect()
        for _ in range(2):
            if self.session is not None:
                self.carry_to_server(1.0)
                self.carry_to_client(1.0)

    @precondition(lambda self: self.session is not None)
    @rule(share=st.floats(0.01, 1))
    def carry_to_server(self, share: float) -> None:
        cut = max(1, int(len(self.to_server) * share))
        data, self.to_server = self.to_server[:cut], self.to_server[cut:]
        self.to_client += self.door.receive(data)

    @precondition(lambda self: self.session is not None)
    @rule(share=st.floats(0.01, 1))
    def carry_to_client(self, share: float) -> None:
        assert self.session is not None
        cut = max(1, int(len(self.to_client) * share))
        data, self.to_client = self.to_client[:cut], self.to_client[cut:]
        if data:
            self.session.receive_data(data, self.now_us)
            self.collect()

    @precondition(lambda self: self.session is not None)
    @rule()
    def cut_the_connection(self) -> None:
        assert self.session is not None
        self.session.connection_lost("cut")
        self.collect()

    # The server

    @precondition(lambda self: self.session is not None)
    @rule()
    def everything_is_carried(self) -> None:
        self.carry_to_server(1.0)
        self.log_answers()
        self.carry_to_client(1.0)

    @precondition(lambda self: self.session is not None)
    @rule()
    def log_answers(self) -> None:
        self.to_client += self.door.flush()

    @precondition(lambda self: self.session is not None)
    @rule(appended=st.integers(0, 3))
    def log_fails(self, appended: int) -> None:
        self.to_client += self.door.flush(fails=True, appended=appended)

    @precondition(lambda self: self.session is not None)
    @rule()
    def log_is_restored(self) -> None:
        self.to_client += self.door.restore()

    @precondition(lambda self: self.session is None)
    @rule(count=st.integers(1, 9))
    def log_forgets(self, count: int) -> None:
        if self.log.sequence - count > self.existing and not self.forgotten:
            self.log.forget(count)
            self.forgotten = True

    @precondition(lambda self: self.session is not None)
    @rule()
    def server_drains(self) -> None:
        self.to_client += self.door.drain()

    @precondition(lambda self: self.session is not None)
    @rule()
    def server_wants_a_snapshot(self) -> None:
        self.to_client += self.door.request_snapshot()

    @rule(milliseconds=st.integers(1, 3_000))
    def time_passes(self, milliseconds: int) -> None:
        self.door.now_us += milliseconds * 1_000
        self.feed()

    # Inside

    def feed(self) -> None:
        if self.session is not None:
            self.delivery.feed(self.session, self.now_us)
            self.to_server += self.session.data_to_send()

    def collect(self) -> None:
        """What the client does after each input."""
        assert self.session is not None
        for event in self.delivery.take_events(self.session):
            self.take_event(event)
        if self.session.end is None:
            self.feed()
        else:
            assert self.session.end.outlook in (Outlook.RETRY, Outlook.AGAIN), self.session.end
            assert self.session.end.code != PROTOCOL, self.session.end
            self.session = None

    def take_event(self, event: events.MasterEvent) -> None:
        if isinstance(event, SignalRefused):
            assert event.sequence in self.bad, event
            self.refused.add(event.sequence)
        elif isinstance(event, Acknowledged):
            position = (event.epoch, event.sequence)
            assert position > self.acknowledged
            self.acknowledged = position
        elif isinstance(event, events.SessionOpened):
            self.acknowledged = max(self.acknowledged, (event.epoch, event.sequence))
        elif isinstance(event, events.SequencesMoved):
            moved = {number + event.by: signal for number, signal in self.put.items() if number > event.after}
            kept = {number: signal for number, signal in self.put.items() if number <= event.after}
            assert len(kept) + len(moved) == len(self.put)
            self.put = kept | moved
            self.bad = {number + event.by if number > event.after else number for number in self.bad}
            self.moved += 1
        elif isinstance(event, events.SignalsLost):
            raise AssertionError(f"{event} although the disk is fine")

    @invariant()
    def the_log_holds_what_was_put_in(self) -> None:
        if not hasattr(self, "log"):
            return
        for sequence, entry in self.log.entries.items():
            if entry == REJECTED:
                assert sequence in self.bad
            else:
                assert self.put[sequence].SerializeToString() == entry

    @invariant()
    def what_is_acknowledged_is_in_the_log(self) -> None:
        if not hasattr(self, "log") or self.forgotten:
            return
        for sequence in self.put:
            if sequence <= self.outbox.acknowledged:
                assert sequence in self.log.entries

    @rule()
    def everything_arrives_in_the_end(self) -> None:
        """With a network and a log that work, whatever happened before."""
        for _ in range(ROUNDS_MAX):
            if self.outbox.pending == 0 and self.session is not None and self.session.next_sequence:
                break
            if self.session is None:
                self.connect()
            self.door.now_us += 50_000
            self.log_is_restored()
            if self.session is not None:
                self.carry_to_server(1.0)
                self.to_client += self.door.flush()
                self.carry_to_client(1.0)
            self.feed()
        assert self.outbox.pending == 0
        missing = {number for number in self.put if number not in self.log.entries}
        assert missing <= self.log.lost
        assert not missing or self.forgotten
        assert self.refused >= {number for number in self.bad if self.log.entries.get(number) == REJECTED}
        assert self.moved <= 1
        # What an outbox that knew nothing may have missed is told to everybody.
        assert self.log.epoch > 1 or not self.existing


TestMasterDelivery = MasterDelivery.TestCase
TestMasterDelivery.settings = hypothesis_settings(max_examples=100, stateful_step_count=60)
