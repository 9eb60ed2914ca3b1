"""A master's account, written as plainly as the contract states it, that makes a valid signal out of any wish."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from execution.common.v1 import signal_pb2 as pb
from tests.unit.clients.made import signal

STEP = 1_000_000

Wish = tuple[str, int, int, int]

wishes = st.tuples(
    st.sampled_from([
        "open", "open", "enlarge", "turn", "modify", "close", "reduce", "close_by", "place", "change", "cancel", "fill",
    ]),
    st.integers(0, 1_000),
    st.integers(1, 300),
    st.integers(1, 10**9),
)  # fmt: skip

# ticket -> side, volume, stop loss, take profit
Positions = dict[int, tuple[int, int, int, int]]
# ticket -> side, volume, price, stop loss, take profit
Orders = dict[int, tuple[int, int, int, int, int]]


@dataclass
class NaiveAccount:
    hedging: bool
    positions: Positions = field(default_factory=dict)
    orders: Orders = field(default_factory=dict)
    ticket: int = 0

    def wish(self, wish: Wish) -> pb.Signal | None:
        """Does what is wished if the account allows it, and returns the signal that tells of it."""
        what, pick, units, price_e8 = wish
        side = pb.SIDE_BUY if pick % 2 else pb.SIDE_SELL
        if what == "open" and (self.hedging or not self.positions):
            self.ticket += 1
            return self._open(pb.SIGNAL_KIND_OPEN, self.ticket, side, units * STEP, price_e8, pick)
        if what == "place":
            self.ticket += 1
            self.orders[self.ticket] = (side, units * STEP, price_e8, pick, 0)
            return signal(
                pb.SIGNAL_KIND_PENDING_PLACE, 0, order_id=self.ticket, order_type=pb.ORDER_TYPE_LIMIT, side=side,
                volume_lots_e8=units * STEP, price_e8=price_e8, stop_loss_e8=pick,
            )  # fmt: skip
        if what in ("change", "cancel", "fill"):
            return self._about_order(what, pick, price_e8)
        return self._about_position(what, pick, units * STEP, price_e8) if self.positions else None

    def _open(
        self, kind: int, ticket: int, side: int, volume_e8: int, price_e8: int, stop: int, **more: int
    ) -> pb.Signal:
        self.positions[ticket] = (side, volume_e8, stop, 0)
        return signal(
            kind, ticket, side=side, volume_lots_e8=volume_e8, price_e8=price_e8, stop_loss_e8=stop, **more
        )  # fmt: skip

    def _about_order(self, what: str, pick: int, price_e8: int) -> pb.Signal | None:
        if not self.orders:
            return None
        order_id = sorted(self.orders)[pick % len(self.orders)]
        side, volume_e8, _, stop, _ = self.orders[order_id]
        if what == "change":
            self.orders[order_id] = (side, volume_e8, price_e8, pick, 3)
            return signal(
                pb.SIGNAL_KIND_PENDING_MODIFY, 0, order_id=order_id, price_e8=price_e8, stop_loss_e8=pick,
                take_profit_e8=3,
            )  # fmt: skip
        if what == "cancel":
            del self.orders[order_id]
            return signal(pb.SIGNAL_KIND_PENDING_CANCEL, 0, order_id=order_id)
        if not self.hedging and self.positions:
            return None
        del self.orders[order_id]
        self.ticket += 1
        return self._open(
            pb.SIGNAL_KIND_PENDING_FILL, self.ticket, side, volume_e8, price_e8, stop, order_id=order_id
        )

    def _about_position(self, what: str, pick: int, volume_e8: int, price_e8: int) -> pb.Signal | None:
        ticket = sorted(self.positions)[pick % len(self.positions)]
        side, held_e8, stop, target = self.positions[ticket]
        if what == "modify":
            self.positions[ticket] = (side, held_e8, price_e8, pick)
            return signal(pb.SIGNAL_KIND_MODIFY, ticket, stop_loss_e8=price_e8, take_profit_e8=pick)
        if what == "close":
            del self.positions[ticket]
            return signal(pb.SIGNAL_KIND_CLOSE, ticket)
        if what == "reduce" and volume_e8 < held_e8:
            self.positions[ticket] = (side, volume_e8, stop, target)
            return signal(pb.SIGNAL_KIND_PARTIAL_CLOSE, ticket, volume_lots_e8=volume_e8)
        if what == "enlarge" and not self.hedging and volume_e8 > held_e8:
            return self._open(pb.SIGNAL_KIND_OPEN, ticket, side, volume_e8, price_e8, pick)
        if what == "turn" and not self.hedging:
            other = pb.SIDE_SELL if side == pb.SIDE_BUY else pb.SIDE_BUY
            return self._open(pb.SIGNAL_KIND_OPEN, ticket, other, volume_e8, price_e8, pick)
        return self._close_by(ticket, pick) if what == "close_by" and self.hedging else None

    def _close_by(self, ticket: int, pick: int) -> pb.Signal | None:
        side, volume_e8, _, _ = self.positions[ticket]
        others = [other for other, entry in sorted(self.positions.items()) if entry[0] != side]
        if not others:
            return None
        opposite = others[pick % len(others)]
        left_e8 = abs(volume_e8 - self.positions[opposite][1])
        larger = max((ticket, opposite), key=lambda one: self.positions[one][1])
        keeper = self.positions[larger]
        del self.positions[ticket], self.positions[opposite]
        if left_e8:
            self.positions[larger] = (keeper[0], left_e8, keeper[2], keeper[3])
        return signal(pb.SIGNAL_KIND_CLOSE_BY, ticket, opposite_position_id=opposite, volume_lots_e8=left_e8)
