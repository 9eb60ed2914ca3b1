"""A master, the front door and a log that fails in every way, against a model of what must be in the log.

The master is the simplest right one: it keeps what is not acknowledged and goes back to where a Reject says.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.values import AppendResult, Limits, LogHead, Run
from tests.unit.ingest.dialogue import Dialogue, parsed

FENCED, CONFLICT = pb.REJECT_CODE_FENCED, pb.REJECT_CODE_CONFLICT


@dataclass
class ModelLog:
    """What Redis does: takes runs that follow its head, all or none of one append."""

    entries: dict[int, int] = field(default_factory=dict)
    sequence: int = 0
    session_epoch: int = 0

    def append(self, runs: list[Run], session_epoch: int) -> tuple[AppendResult, int]:
        if session_epoch != self.session_epoch:
            return AppendResult.FENCED, self.sequence
        if runs[0].first == self.sequence + 1:
            for run in runs:
                self._store(run)
            return AppendResult.APPENDED, runs[-1].last
        if runs[-1].last <= self.sequence:
            return AppendResult.APPENDED, runs[-1].last
        return AppendResult.MOVED, self.sequence

    def _store(self, run: Run) -> None:
        one = parsed(run)
        assert one.first_sequence == self.sequence + 1, "the log must stay dense"
        for offset, signal in enumerate(one.batch.signals):
            self.entries[one.first_sequence + offset] = signal.position_id
        self.sequence = one.last_sequence


class FrontDoorMachine(RuleBasedStateMachine):
    """One master whose connections, log and sessions come and go."""

    @initialize()
    def begin(self) -> None:
        self.log = ModelLog()
        self.acknowledged = 0
        self.next_to_send = 1
        self.appends: list[list[Run]] = []
        self.log_is_up = True
        self.log_in()

    def log_in(self) -> None:
        self.dialogue = Dialogue(Limits(window=64))
        self.log.session_epoch += 1
        self.my_epoch = self.log.session_epoch
        self.dialogue.open(LogHead(1, self.log.sequence, self.my_epoch))
        assert self.log.sequence >= self.acknowledged
        self.acknowledged = self.log.sequence
        self.next_to_send = self.acknowledged + 1
        self.appends = []
        self.log_is_up = True

    def hear(self, frames: list[pb.ServerFrame]) -> None:
        for frame in frames:
            if frame.HasField("ack"):
                assert frame.ack.sequence <= self.log.sequence, "only what is in the log is acknowledged"
                assert frame.ack.sequence >= self.acknowledged, "acks never go back"
                self.acknowledged = frame.ack.sequence
            elif frame.HasField("reject") and frame.reject.code not in (FENCED, CONFLICT):
                assert frame.reject.expected_sequence >= 1
                self.next_to_send = frame.reject.expected_sequence
        if self.dialogue.is_closed:
            self.log_in()

    @rule(count=st.integers(1, 5), back=st.integers(0, 3), ahead=st.integers(0, 1))
    def send(self, count: int, back: int, ahead: int) -> None:
        first = max(1, self.next_to_send - back) + ahead
        frames = self.dialogue.send_signals(first, count, volume_lots_e8=1)
        if not frames:
            self.next_to_send = max(self.next_to_send, first + count)
        self.hear(frames)

    @rule()
    def hand_over(self) -> None:
        runs = self.dialogue.taken()
        if runs:
            self.appends.append(runs)

    @precondition(lambda self: self.appends)
    @rule()
    def log_answers(self) -> None:
        runs = self.appends.pop(0)
        result, sequence = self.log.append(runs, self.my_epoch)
        self.dialogue.session.appended(result, sequence)
        if result is not AppendResult.APPENDED:
            self.appends = []
        self.hear(self.dialogue.answers())

    @precondition(lambda self: self.log_is_up)
    @rule(reached=st.integers(0, 3))
    def log_is_lost(self, reached: int) -> None:
        """The connection breaks; some of what was on its way may have got through."""
        for runs in self.appends[:reached]:
            self.log.append(runs, self.my_epoch)
        self.appends = []
        self.log_is_up = False
        self.dialogue.session.log_failed()
        self.hear(self.dialogue.answers())

    @precondition(lambda self: not self.log_is_up)
    @rule(overtaken=st.booleans())
    def log_is_back(self, overtaken: bool) -> None:
        if overtaken:
            self.log.session_epoch += 1
        self.log_is_up = True
        self.dialogue.session.log_restored(LogHead(1, self.log.sequence, self.log.session_epoch))
        self.hear(self.dialogue.answers())

    @rule()
    def second_login(self) -> None:
        """The old session's late appends reach the log behind the new session."""
        late, old_epoch = [*self.appends, self.dialogue.taken()], self.my_epoch
        self.log_in()
        for runs in late:
            if runs:
                before = self.log.sequence
                assert self.log.append(runs, old_epoch)[0] is AppendResult.FENCED
                assert self.log.sequence == before

    @invariant()
    def acknowledged_is_in_the_log_once_and_in_order(self) -> None:
        if not hasattr(self, "log"):
            return
        assert self.acknowledged <= self.log.sequence
        assert sorted(self.log.entries) == list(range(1, self.log.sequence + 1))
        assert all(position_id == 1_000 + sequence for sequence, position_id in self.log.entries.items())


FrontDoorMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestFrontDoor = FrontDoorMachine.TestCase
