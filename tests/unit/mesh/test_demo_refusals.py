"""What the reconciliation takes for a refusal, against what the client library really decides and writes down."""

from __future__ import annotations

import pytest

from ecp_client.copying import Copier, CopySettings, Decision, Reason
from ecp_client.subscriber.journal_format import Entry, EntryType, Position
from execution.common.v1 import signal_pb2
from mesh.demo.account import BUY, NETTING, Account
from mesh.demo.evidence import is_refusal

LOT_E8 = 100_000_000


class Book:
    """A subscriber's copier that refuses the named sequences, and what its journal says of each."""

    def __init__(self, refuse: set[int], **settings: int) -> None:
        self._refuse = refuse
        self._copier = Copier(CopySettings(**settings), protection=self._protection)
        self._sequence = 0

    def _protection(self, sequenced: signal_pb2.SequencedSignal, _: Decision) -> Reason:
        return Reason.SLIPPAGE if sequenced.sequence in self._refuse else Reason.NONE

    def take(self, signal: signal_pb2.Signal) -> Entry:
        self._sequence += 1
        sequenced = signal_pb2.SequencedSignal(
            master_id=1, epoch=1, sequence=self._sequence, previous_epoch=1, signal=signal
        )
        decision = self._copier.take(sequenced, signal.occurred_at_us)
        here = Position(1, self._sequence)
        return Entry(
            EntryType.SIGNAL,
            1,
            here,
            here,
            0,
            kind=signal.kind,
            action=decision.action,
            reason=decision.reason,
        )


@pytest.fixture
def account() -> Account:
    return Account(NETTING, now_us=1_000_000)


def enlarged(account: Account) -> list[signal_pb2.Signal]:
    opened = account.open(BUY, LOT_E8, LOT_E8, stop_loss_e8=LOT_E8 // 2)
    return [opened, account.enlarge(opened.position_id, 2 * LOT_E8, LOT_E8)]


@pytest.mark.parametrize("percent", [50, 100, 200])
def test_an_opening_and_an_enlargement_that_were_refused_are_refusals(account: Account, percent: int) -> None:
    signals = enlarged(account)
    for refused in (1, 2):
        book = Book({refused}, volume_multiplier_e4=percent * 100)
        assert [is_refusal(book.take(signal)) for signal in signals] == [refused == 1, refused == 2]


def test_what_was_copied_at_another_volume_is_no_refusal(account: Account) -> None:
    book = Book(set(), volume_multiplier_e4=5_000)
    assert [is_refusal(book.take(signal)) for signal in enlarged(account)] == [False, False]


def test_what_is_too_small_to_copy_is_a_refusal(account: Account) -> None:
    book = Book(set(), volume_multiplier_e4=1)
    assert is_refusal(book.take(account.open(BUY, LOT_E8 // 100, LOT_E8)))


def test_a_close_is_never_one(account: Account) -> None:
    opened = account.open(BUY, LOT_E8, LOT_E8)
    book = Book({2})
    book.take(opened)
    assert not is_refusal(book.take(account.close(opened.position_id, LOT_E8)))
