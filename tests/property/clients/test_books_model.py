"""Mirrors and accounts against a master's account that was written apart from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecp_client.account import Account
from ecp_client.books import Book
from ecp_client.copying import Action, Copier, CopySettings, Reason, Scaling, differences, reconcile
from execution.common.v1 import signal_pb2 as pb
from execution.common.v1 import snapshot_pb2
from tests.property.clients.naive_account import NaiveAccount, Orders, Positions, Wish, wishes
from tests.unit.clients.made import sequenced

histories = st.lists(wishes, min_size=15, max_size=60)

_common = {
    "volume_max_e8": st.sampled_from([0, 50_000_000]),
    "reverse": st.booleans(),
    "copy_pending": st.booleans(),
    "sides": st.sampled_from([frozenset({1, 2}), frozenset({1})]),
    "symbol_map": st.sampled_from([{}, {"EURUSD": "EURUSD.x"}]),
}
copy_settings = st.builds(
    CopySettings, volume_multiplier_e4=st.sampled_from([10_000, 5_000, 3_333, 25_000, 50]), **_common
) | st.builds(
    CopySettings,
    scaling=st.just(Scaling.FIXED),
    volume_fixed_e8=st.sampled_from([30_000_000, 1_000_000, 777_777_777]),
    **_common,
)


def positions_of(book: Book) -> Positions:
    return {
        ticket: (one.side, one.volume_lots_e8, one.stop_loss_e8, one.take_profit_e8)
        for ticket, one in book.positions.items()
    }


def orders_of(book: Book) -> Orders:
    return {
        ticket: (one.side, one.volume_lots_e8, one.price_e8, one.stop_loss_e8, one.take_profit_e8)
        for ticket, one in book.orders.items()
    }


@given(history=histories, hedging=st.booleans())
def test_a_mirror_shows_the_masters_account_and_its_snapshot_says_the_same(
    history: list[Wish], hedging: bool
) -> None:
    account = NaiveAccount(hedging)
    book = Book(pb.ACCOUNT_MODE_HEDGING if hedging else pb.ACCOUNT_MODE_NETTING)
    for sequence, wish in enumerate(history, 1):
        signal = account.wish(wish)
        if signal is not None:
            assert book.apply(signal, sequence)
        assert positions_of(book) == account.positions
        assert orders_of(book) == account.orders
    assert book.unknown == 0
    snapshot = book.to_snapshot(1, len(history), 1)
    again = Book.from_snapshot(snapshot_pb2.Snapshot.FromString(snapshot.SerializeToString()))
    assert list(again.differences(book)) == []


@given(
    history=histories,
    hedging=st.booleans(),
    settings=copy_settings,
    refused=st.sets(st.integers(1, 60)),
)
def test_an_account_is_what_its_settings_make_of_the_master_minus_what_was_refused(
    history: list[Wish], hedging: bool, settings: CopySettings, refused: set[int]
) -> None:
    master = NaiveAccount(hedging)
    copier = Copier(
        settings,
        protection=lambda one, _decision: Reason.SPREAD if one.sequence in refused else Reason.NONE,
    )
    for sequence, wish in enumerate(history, 1):
        signal = master.wish(wish)
        if signal is None:
            continue
        decision = copier.take(sequenced(signal, sequence), 0)
        assert decision.action is not Action.SKIP or decision.reason is not Reason.NONE
        assert list(differences(copier, copier.mirror)) == []
        for holding in copier.account.held():
            assert holding.volume_lots_e8 > 0
            assert holding.volume_lots_e8 <= settings.volume_for(holding.symbol, 10**12)
        restored = Account.from_json(copier.account.to_json())
        assert restored == copier.account


@given(history=histories, hedging=st.booleans(), settings=copy_settings, share=st.floats(0, 1))
def test_a_full_sync_heals_any_gap_and_a_second_one_finds_nothing_to_do(
    history: list[Wish], hedging: bool, settings: CopySettings, share: float
) -> None:
    master = NaiveAccount(hedging)
    mode = pb.ACCOUNT_MODE_HEDGING if hedging else pb.ACCOUNT_MODE_NETTING
    truth = Book(mode)
    copier = Copier(settings, Book(mode))
    for sequence, wish in enumerate(history, 1):
        signal = master.wish(wish)
        if signal is None:
            continue
        truth.apply(signal, sequence)
        if sequence <= share * len(history):
            copier.take(sequenced(signal, sequence), 0)
    snapshot = truth.to_snapshot(1, len(history), 0)
    reconcile(copier, Book.from_snapshot(snapshot), 0)
    assert list(differences(copier, truth)) == []
    assert not reconcile(copier, Book.from_snapshot(snapshot), 0).actions


@given(history=histories, closed=st.sets(st.integers(1, 30)), settings=copy_settings)
def test_what_the_user_closed_by_hand_is_never_opened_again(
    history: list[Wish], closed: set[int], settings: CopySettings
) -> None:
    master = NaiveAccount(hedging=True)
    truth, copier = Book(), Copier(settings)
    by_hand: set[int] = set()
    for sequence, wish in enumerate(history, 1):
        signal = master.wish(wish)
        if signal is None:
            continue
        truth.apply(signal, sequence)
        copier.take(sequenced(signal, sequence), 0)
        if sequence in closed:
            held = [one.position_id for one in copier.account.held()]
            for ticket in held[:1]:
                assert copier.account.closed_by_user(ticket)
                by_hand.add(ticket)
        assert by_hand.isdisjoint(one.position_id for one in copier.account.held())
    plan = reconcile(copier, Book.from_snapshot(truth.to_snapshot(1, 1, 0)), 0)
    assert by_hand.isdisjoint(action.ticket for action in plan.actions)
