"""The mirror of a master's account: what each kind of signal does to it."""

from __future__ import annotations

import pytest

from ecp_client.books import Book, average_price_e8
from execution.common.v1 import signal_pb2 as pb
from execution.common.v1 import snapshot_pb2
from tests.unit.clients.made import lots, price, signal


def opened(*tickets: int, mode: pb.AccountMode.ValueType = pb.ACCOUNT_MODE_HEDGING) -> Book:
    book = Book(mode)
    for sequence, ticket in enumerate(tickets, 1):
        assert book.apply(signal(pb.SIGNAL_KIND_OPEN, ticket), sequence)
    return book


def test_open_states_everything_about_the_position() -> None:
    book = Book()
    book.apply(signal(pb.SIGNAL_KIND_OPEN, 7, stop_loss_e8=1, take_profit_e8=2, occurred_at_us=3), 9)
    position = book.positions[7]
    assert (position.symbol, position.side, position.volume_lots_e8) == ("EURUSD", pb.SIDE_BUY, lots("0.10"))
    assert (position.open_price_e8, position.stop_loss_e8, position.take_profit_e8) == (price("1.1"), 1, 2)
    assert (position.opened_at_us, position.opened_by_sequence) == (3, 9)


def test_netting_enlargement_states_the_total_and_averages_the_price() -> None:
    book = opened(7, mode=pb.ACCOUNT_MODE_NETTING)
    enlarged = signal(pb.SIGNAL_KIND_OPEN, 7, volume_lots_e8=lots("0.30"), price_e8=price("1.4"))
    book.apply(enlarged)
    assert book.positions[7].volume_lots_e8 == lots("0.30")
    assert book.positions[7].open_price_e8 == price("1.3")


def test_netting_reversal_opens_at_the_deal() -> None:
    book = opened(7, mode=pb.ACCOUNT_MODE_NETTING)
    turned = signal(
        pb.SIGNAL_KIND_OPEN, 7, side=pb.SIDE_SELL, volume_lots_e8=lots("0.05"), price_e8=price("1.2")
    )
    book.apply(turned)
    position = book.positions[7]
    assert (position.side, position.volume_lots_e8) == (pb.SIDE_SELL, lots("0.05"))
    assert position.open_price_e8 == price("1.2")


def test_a_netting_reduction_keeps_the_price() -> None:
    book = opened(7, mode=pb.ACCOUNT_MODE_NETTING)
    book.apply(signal(pb.SIGNAL_KIND_OPEN, 7, volume_lots_e8=lots("0.04"), price_e8=price("9")))
    assert book.positions[7].open_price_e8 == price("1.1")


def test_modify_states_both_stops() -> None:
    book = opened(7)
    book.apply(signal(pb.SIGNAL_KIND_MODIFY, 7, stop_loss_e8=5, take_profit_e8=0))
    assert (book.positions[7].stop_loss_e8, book.positions[7].take_profit_e8) == (5, 0)


def test_close_and_partial_close() -> None:
    book = opened(7, 8)
    book.apply(signal(pb.SIGNAL_KIND_PARTIAL_CLOSE, 7, volume_lots_e8=lots("0.03")))
    book.apply(signal(pb.SIGNAL_KIND_CLOSE, 8))
    assert {ticket: one.volume_lots_e8 for ticket, one in book.positions.items()} == {7: lots("0.03")}
    book.apply(signal(pb.SIGNAL_KIND_PARTIAL_CLOSE, 7, volume_lots_e8=0))
    assert not book.positions


@pytest.mark.parametrize(("volume", "opposite", "left"), [("0.30", "0.10", 7), ("0.10", "0.30", 8)])
def test_close_by_leaves_the_larger_with_the_rest(volume: str, opposite: str, left: int) -> None:
    book = Book()
    book.apply(signal(pb.SIGNAL_KIND_OPEN, 7, volume_lots_e8=lots(volume)))
    book.apply(signal(pb.SIGNAL_KIND_OPEN, 8, side=pb.SIDE_SELL, volume_lots_e8=lots(opposite)))
    book.apply(signal(pb.SIGNAL_KIND_CLOSE_BY, 7, opposite_position_id=8, volume_lots_e8=lots("0.20")))
    assert {ticket: one.volume_lots_e8 for ticket, one in book.positions.items()} == {left: lots("0.20")}


def test_close_by_of_equals_leaves_nothing() -> None:
    book = opened(7, 8)
    book.apply(signal(pb.SIGNAL_KIND_CLOSE_BY, 7, opposite_position_id=8, volume_lots_e8=0))
    assert not book.positions


def test_close_by_with_one_unknown_closes_the_other() -> None:
    book = opened(7)
    book.apply(signal(pb.SIGNAL_KIND_CLOSE_BY, 7, opposite_position_id=8, volume_lots_e8=lots("0.02")))
    assert not book.positions


def test_the_life_of_a_pending_order() -> None:
    book = Book()
    placed = signal(pb.SIGNAL_KIND_PENDING_PLACE, 0, order_id=3, order_type=pb.ORDER_TYPE_LIMIT)
    book.apply(placed, 1)
    moved = signal(pb.SIGNAL_KIND_PENDING_MODIFY, 0, order_id=3, price_e8=price("1.05"), expires_at_us=9)
    book.apply(moved, 2)
    assert (book.orders[3].price_e8, book.orders[3].expires_at_us) == (price("1.05"), 9)
    assert book.orders[3].placed_by_sequence == 1
    book.apply(signal(pb.SIGNAL_KIND_PENDING_FILL, 12, order_id=3, price_e8=price("1.04")), 3)
    assert not book.orders
    assert book.positions[12].open_price_e8 == price("1.04")


def test_a_cancelled_order_is_gone() -> None:
    book = Book()
    book.apply(signal(pb.SIGNAL_KIND_PENDING_PLACE, 0, order_id=3, order_type=pb.ORDER_TYPE_STOP))
    book.apply(signal(pb.SIGNAL_KIND_PENDING_CANCEL, 0, order_id=3))
    assert not book.orders


@pytest.mark.parametrize(
    "kind",
    [
        pb.SIGNAL_KIND_MODIFY,
        pb.SIGNAL_KIND_CLOSE,
        pb.SIGNAL_KIND_PARTIAL_CLOSE,
        pb.SIGNAL_KIND_CLOSE_BY,
        pb.SIGNAL_KIND_PENDING_MODIFY,
        pb.SIGNAL_KIND_PENDING_CANCEL,
        pb.SIGNAL_KIND_UNSPECIFIED,
    ],
)
def test_what_is_not_known_changes_nothing_and_is_counted(kind: pb.SignalKind.ValueType) -> None:
    book = opened(7)
    assert not book.apply(signal(kind, 99, order_id=98, opposite_position_id=97))
    assert book.unknown == 1
    assert list(book.differences(opened(7))) == []


def test_a_book_is_bounded() -> None:
    book = Book(entries_max=2)
    for ticket in range(1, 5):
        book.apply(signal(pb.SIGNAL_KIND_OPEN, ticket))
        book.apply(signal(pb.SIGNAL_KIND_PENDING_PLACE, 0, order_id=ticket, order_type=pb.ORDER_TYPE_LIMIT))
    assert len(book) == 4
    assert book.overflowed == 4


def test_a_snapshot_is_in_order_of_ticket_and_says_the_same() -> None:
    book = opened(9, 3, 5)
    book.apply(signal(pb.SIGNAL_KIND_PENDING_PLACE, 0, order_id=2, order_type=pb.ORDER_TYPE_STOP))
    snapshot = book.to_snapshot(1, 77, 123, epoch=4)
    assert [position.position_id for position in snapshot.positions] == [3, 5, 9]
    assert (snapshot.master_id, snapshot.as_of.epoch, snapshot.as_of.sequence) == (1, 4, 77)
    again = Book.from_snapshot(snapshot_pb2.Snapshot.FromString(snapshot.SerializeToString()))
    assert again.mode == book.mode
    assert list(again.differences(book)) == []
    assert again.positions == book.positions
    assert again.orders == book.orders


def test_a_snapshot_has_its_limit() -> None:
    with pytest.raises(ValueError, match="1,000"):
        opened(*range(1, 1_002)).to_snapshot(1, 1, 1)


def test_differences_name_entry_and_field() -> None:
    book, other = opened(7, 8), opened(7)
    other.apply(signal(pb.SIGNAL_KIND_MODIFY, 7, stop_loss_e8=5))
    assert [str(one) for one in book.differences(other)] == [
        "position 7: stop_loss_e8 is 0, not 5",
        "position 8: presence is True, not False",
    ]


@pytest.mark.parametrize(
    ("held", "at", "added", "at_price", "average"), [(1, 1, 1, 2, 2), (2, 1, 1, 2, 1), (1, 10, 3, 20, 18)]
)
def test_averages_round_half_up(held: int, at: int, added: int, at_price: int, average: int) -> None:
    assert average_price_e8(held, at, added, at_price) == average
