"""What one account should hold of one master, written as plainly as the README states it; it shares no code with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from execution.common.v1 import signal_pb2 as pb
from tests.property.clients.naive_account import STEP, Orders, Positions


@dataclass
class Rules:
    """The settings that the model knows."""

    multiplier: Fraction = Fraction(1)
    fixed_e8: int = 0
    volume_max_e8: int = 0
    reverse: bool = False
    sides: frozenset[int] = frozenset((1, 2))

    def share(self, master_volume_e8: int) -> Fraction:
        """By what a position that is opened now is scaled for its life."""
        return Fraction(self.fixed_e8, master_volume_e8) if self.fixed_e8 else self.multiplier

    def volume(self, master_volume_e8: int, share: Fraction) -> int:
        wanted = int(master_volume_e8 * share)
        if self.volume_max_e8:
            wanted = min(wanted, self.volume_max_e8)
        return wanted // STEP * STEP

    def side(self, side: int) -> int:
        return 3 - side if self.reverse else side

    def stops(self, stop: int, target: int) -> tuple[int, int]:
        return (target, stop) if self.reverse else (stop, target)


@dataclass
class Held:
    master_side: int
    volume_e8: int
    stop: int
    target: int
    share: Fraction
    price_e8: int = 0


@dataclass
class NaiveCopy:
    """`held` is what the account has; what is in `left` it has not, and takes only if the master opens it anew."""

    rules: Rules
    held: dict[int, Held] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    by_hand: set[int] = field(default_factory=set)
    orders: dict[int, Held] = field(default_factory=dict)
    orders_left: set[int] = field(default_factory=set)
    orders_by_hand: set[int] = field(default_factory=set)

    def take(self, one: pb.Signal, positions: Positions) -> None:
        """Does what a signal asks for; `positions` are the master's after it."""
        ticket = one.position_id
        if one.kind == pb.SIGNAL_KIND_OPEN:
            self.open(ticket, one.side, one.volume_lots_e8, one.stop_loss_e8, one.take_profit_e8)
        elif one.kind == pb.SIGNAL_KIND_PENDING_FILL:
            self._fill(one)
        elif one.kind == pb.SIGNAL_KIND_MODIFY and ticket in self.held:
            self.held[ticket].stop, self.held[ticket].target = one.stop_loss_e8, one.take_profit_e8
        elif one.kind in (pb.SIGNAL_KIND_CLOSE, pb.SIGNAL_KIND_PARTIAL_CLOSE, pb.SIGNAL_KIND_CLOSE_BY):
            for which in {ticket, one.opposite_position_id} - {0}:
                self._reduce(which, positions[which][1] if which in positions else 0)
        else:
            self._about_order(one)

    def open(
        self, ticket: int, side: int, master_e8: int, stop: int, target: int, share: Fraction | None = None
    ) -> None:
        if ticket in self.by_hand:
            return
        before = self.held.pop(ticket, None)
        share = before.share if before else share or self.rules.share(master_e8)
        volume_e8 = self.rules.volume(master_e8, share)
        if volume_e8 and side in self.rules.sides:
            self.held[ticket] = Held(side, volume_e8, stop, target, share)
            self.left.discard(ticket)
        else:
            self.left.add(ticket)

    def _reduce(self, ticket: int, master_e8: int) -> None:
        if not master_e8:
            self._forget(ticket)
        elif ticket in self.held:
            entry = self.held[ticket]
            entry.volume_e8 = min(entry.volume_e8, self.rules.volume(master_e8, entry.share))
            if not entry.volume_e8:
                del self.held[ticket]
                self.left.add(ticket)

    def _forget(self, ticket: int) -> None:
        self.held.pop(ticket, None)
        self.left.discard(ticket)
        self.by_hand.discard(ticket)

    def _fill(self, one: pb.Signal) -> None:
        own = self.orders.pop(one.order_id, None)
        if one.order_id in self.orders_by_hand:
            self.by_hand.add(one.position_id)
        else:
            share = own.share if own else None
            self.open(
                one.position_id, one.side, one.volume_lots_e8, one.stop_loss_e8, one.take_profit_e8, share
            )
        self._forget_order(one.order_id)

    def _about_order(self, one: pb.Signal) -> None:
        ticket = one.order_id
        if one.kind == pb.SIGNAL_KIND_PENDING_PLACE:
            self.place(
                ticket, one.side, one.volume_lots_e8, one.price_e8, one.stop_loss_e8, one.take_profit_e8
            )
        elif one.kind == pb.SIGNAL_KIND_PENDING_CANCEL:
            self._forget_order(ticket)
        elif ticket in self.orders:
            entry = self.orders[ticket]
            entry.price_e8, entry.stop, entry.target = one.price_e8, one.stop_loss_e8, one.take_profit_e8

    def place(self, ticket: int, side: int, master_e8: int, price_e8: int, stop: int, target: int) -> None:
        share = self.rules.share(master_e8)
        volume_e8 = self.rules.volume(master_e8, share)
        if volume_e8 and side in self.rules.sides:
            self.orders[ticket] = Held(side, volume_e8, stop, target, share, price_e8)
        else:
            self.orders_left.add(ticket)

    def _forget_order(self, ticket: int) -> None:
        self.orders.pop(ticket, None)
        self.orders_left.discard(ticket)
        self.orders_by_hand.discard(ticket)

    def full_sync(self, positions: Positions, orders: Orders) -> None:
        """What the account is to hold, whatever it did not hear of; what it left, it leaves."""
        for ticket in (self.held.keys() | self.left | self.by_hand) - positions.keys():
            self._forget(ticket)
        for ticket in (self.orders.keys() | self.orders_left | self.orders_by_hand) - orders.keys():
            self._forget_order(ticket)
        for ticket, (side, volume_e8, stop, target) in positions.items():
            if ticket not in self.left:
                self.open(ticket, side, volume_e8, stop, target)
        for ticket, (side, volume_e8, price_e8, stop, target) in orders.items():
            if ticket in self.orders:
                entry = self.orders[ticket]
                entry.price_e8, entry.stop, entry.target = price_e8, stop, target
            elif ticket not in self.orders_left | self.orders_by_hand:
                self.place(ticket, side, volume_e8, price_e8, stop, target)

    def close_by_hand(self, ticket: int) -> None:
        del self.held[ticket]
        self.by_hand.add(ticket)

    def cancel_by_hand(self, ticket: int) -> None:
        del self.orders[ticket]
        self.orders_by_hand.add(ticket)
