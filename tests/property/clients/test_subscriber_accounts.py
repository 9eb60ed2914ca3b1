"""What an account holds after any sequence of signals, hand closes, gaps, full syncs and crashes, against a model."""

from __future__ import annotations

import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ecp_client.account import Account
from ecp_client.clock import ServerClock
from ecp_client.copying import CopySettings, Scaling
from ecp_client.disk import FsyncPolicy
from ecp_client.positions import Position
from ecp_client.subscriber import (
    Journal,
    JournalSettings,
    Resynced,
    Start,
    SubscriberEvent,
    SubscriberSettings,
)
from ecp_client.subscriber.hooks import Hooks
from ecp_client.subscriber.processing import Processor
from ecp_client.subscriber.recovery import recover
from execution.common.v1 import signal_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.property.clients.naive_account import STEP, NaiveAccount, Wish, wishes
from tests.property.clients.naive_copy import NaiveCopy, Rules
from tests.unit.clients.made import sequenced

MASTER = 1
JOURNAL = JournalSettings(fsync=FsyncPolicy.NEVER, file_bytes=4_096, files_max=3)

rules = st.builds(
    Rules,
    multiplier=st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(3, 100)]),
    fixed_e8=st.sampled_from([0, 0, 3 * STEP]),
    volume_max_e8=st.sampled_from([0, 50 * STEP]),
    reverse=st.booleans(),
    sides=st.sampled_from([frozenset((1, 2)), frozenset((1,))]),
)


def copying(given: Rules) -> CopySettings:
    return CopySettings(
        scaling=Scaling.FIXED if given.fixed_e8 else Scaling.MULTIPLIER,
        volume_fixed_e8=given.fixed_e8,
        volume_multiplier_e4=int(given.multiplier * 10_000),
        volume_max_e8=given.volume_max_e8,
        reverse=given.reverse,
        sides=given.sides,
    )


class SubscriberAccounts(RuleBasedStateMachine):
    @initialize(given=rules, hedging=st.booleans(), tells=st.booleans())
    def begin(self, given: Rules, hedging: bool, tells: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.settings = SubscriberSettings(
            addresses=["127.0.0.1:1"],
            license_token="t",
            masters={MASTER: copying(given)},
            start=Start.BEGINNING,
        )
        self.master = NaiveAccount(hedging)
        self.model = NaiveCopy(given)
        self.terminal_tells = tells
        self.log: list[signal_pb2.Signal] = []
        self.start_process()

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.folder)

    def start_process(self) -> None:
        self.journal = Journal(self.folder, JOURNAL)
        held = (lambda _master: set(self.model.held)) if self.terminal_tells else None
        hooks = Hooks(on_event=self.on_event, held_positions=held)
        self.processor = Processor(
            self.settings, hooks, self.journal, recover(self.folder), ServerClock(0, 0)
        )

    def on_event(self, event: SubscriberEvent) -> None:
        if isinstance(event, Resynced):
            self.planned = {action.ticket for action in event.plan.actions}

    @property
    def account(self) -> Account:
        return self.processor.following(MASTER).copier.account

    # What happens

    @rule(history=st.lists(wishes, min_size=1, max_size=8))
    def master_trades(self, history: list[Wish]) -> None:
        first = len(self.log) + 1
        for wish in history:
            one = self.master.wish(wish)
            if one is not None:
                self.log.append(one)
                self.model.take(one, self.master.positions)
        self.deliver(first)
        self.holds_what_it_should()

    def deliver(self, first: int, end: int | None = None) -> None:
        response = pb.SubscribeResponse()
        for sequence, one in enumerate(self.log[first - 1 : None if end is None else end - 1], first):
            response.signals.signals.append(sequenced(one, sequence))
        if response.HasField("signals"):
            self.processor.handle(response)

    @precondition(lambda self: self.model.held)
    @rule(pick=st.integers(0, 99))
    def user_closes(self, pick: int) -> None:
        ticket = sorted(self.model.held)[pick % len(self.model.held)]
        self.model.close_by_hand(ticket)
        assert self.processor.closed_by_user(MASTER, ticket, is_order=False)

    @precondition(lambda self: self.model.orders)
    @rule(pick=st.integers(0, 99))
    def user_cancels(self, pick: int) -> None:
        ticket = sorted(self.model.orders)[pick % len(self.model.orders)]
        self.model.cancel_by_hand(ticket)
        assert self.processor.closed_by_user(MASTER, ticket, is_order=True)

    @precondition(lambda self: self.model.held and self.terminal_tells)
    @rule(pick=st.integers(0, 99))
    def user_closes_and_only_the_terminal_knows(self, pick: int) -> None:
        ticket = sorted(self.model.held)[pick % len(self.model.held)]
        self.model.close_by_hand(ticket)
        self.full_sync([])

    @rule(missed=st.lists(wishes, max_size=6))
    def full_sync(self, missed: list[Wish]) -> None:
        """A snapshot stands for what the account did not hear of."""
        for wish in missed:
            one = self.master.wish(wish)
            if one is not None:
                self.log.append(one)
        before = self.held_by_model()
        terminal = dict(self.model.held)
        self.model.full_sync(self.master.positions, self.master.orders)
        self.model.held, after = terminal, self.model.held
        self.processor.handle(pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=self.snapshot())))
        self.model.held = after
        self.holds_what_it_should()
        now = self.held_by_model()
        changed = {ticket for ticket in before.keys() | now.keys() if before.get(ticket) != now.get(ticket)}
        assert changed <= self.planned, "what the broker must be told is in the plan"

    def snapshot(self) -> snapshot_pb2.Snapshot:
        made = snapshot_pb2.Snapshot(master_id=MASTER, account_mode=1)
        made.as_of.CopyFrom(Position(1, len(self.log)).to_pb())
        for ticket, (side, volume_e8, stop, target) in self.master.positions.items():
            made.positions.add(
                position_id=ticket, symbol="EURUSD", side=side, volume_lots_e8=volume_e8, open_price_e8=1,
                stop_loss_e8=stop, take_profit_e8=target,
            )  # fmt: skip
        for ticket, (side, volume_e8, price_e8, stop, target) in self.master.orders.items():
            made.orders.add(
                order_id=ticket, symbol="EURUSD", side=side, volume_lots_e8=volume_e8, price_e8=price_e8,
                order_type=signal_pb2.ORDER_TYPE_LIMIT, stop_loss_e8=stop, take_profit_e8=target,
            )  # fmt: skip
        return made

    @precondition(lambda self: self.processor.session.tracks[MASTER].held is not None)
    @rule(missed=st.lists(wishes, max_size=3))
    def server_says_that_something_is_missing(self, missed: list[Wish]) -> None:
        """Though no gap was seen: the account comes in step by the full sync that the client asks for."""
        session = self.processor.session
        change = pb.StateChange(master_id=MASTER, state=pb.SUBSCRIPTION_STATE_DEGRADED_GAP)
        self.processor.handle(pb.SubscribeResponse(state_change=change))
        assert session.wants_new_stream
        self.processor.stream_ended(session.stream_ended())
        (start,) = session.request().masters
        assert start.HasField("from_snapshot")
        self.full_sync(missed)
        assert not session.misses_something

    @rule()
    def checkpoint(self) -> None:
        self.processor.checkpoint()

    @rule(by_snapshot=st.booleans(), hand=st.booleans(), pick=st.integers(0, 99))
    def crash(self, by_snapshot: bool, hand: bool, pick: int) -> None:
        """The next process hears it all again, or begins with a snapshot; meanwhile the user may close something."""
        self.journal.close()
        self.start_process()
        (start,) = self.processor.session.request().masters
        first = start.after.sequence + 1
        if hand and self.model.held:
            middle = first + pick % (len(self.log) - first + 2)
            self.deliver(first, middle)
            first = middle
            ticket = sorted(self.model.held)[pick % len(self.model.held)]
            if self.processor.closed_by_user(MASTER, ticket, is_order=False):
                self.model.close_by_hand(ticket)
        if by_snapshot:
            self.full_sync([])
        else:
            self.deliver(first)
        self.holds_what_it_should()

    # What must hold

    def held_by_model(self) -> dict[int, tuple[int, int, int, int]]:
        given = self.model.rules
        return {
            ticket: (given.side(entry.master_side), entry.volume_e8, *given.stops(entry.stop, entry.target))
            for ticket, entry in self.model.held.items()
        }

    def holds_what_it_should(self) -> None:
        given = self.model.rules
        held = {
            entry.position_id: (entry.side, entry.volume_lots_e8, entry.stop_loss_e8, entry.take_profit_e8)
            for entry in self.account.held()
        }
        assert held == self.held_by_model()
        orders = {
            entry.order_id: (
                entry.side,
                entry.volume_lots_e8,
                entry.price_e8,
                entry.stop_loss_e8,
                entry.take_profit_e8,
            )
            for entry in self.account.held_orders()
        }
        assert orders == {
            ticket: (
                given.side(entry.master_side),
                entry.volume_e8,
                entry.price_e8,
                *given.stops(entry.stop, entry.target),
            )
            for ticket, entry in self.model.orders.items()
        }


TestSubscriberAccounts = SubscriberAccounts.TestCase
TestSubscriberAccounts.settings = hypothesis_settings(max_examples=120, stateful_step_count=30)
