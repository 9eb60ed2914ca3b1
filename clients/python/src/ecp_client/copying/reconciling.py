"""The full sync: what brings an account in step with a master's snapshot, and where the two differ. Pure.

What the user closed by hand and what was refused stays closed; what the account has and the master has not is closed,
and left alone as long as nobody knows whether the master has it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ecp_client.account import Holding, HoldingState, OrderHolding
from ecp_client.books import Book, BookOrder, BookPosition
from ecp_client.copying import orders, positions
from ecp_client.copying.comparing import order_fields, wanted_order_fields
from ecp_client.copying.copier import Copier
from ecp_client.copying.decisions import Action, Decision, Reason
from ecp_client.copying.settings import side_for, stops_for
from ecp_client.copying.unconfirmed import Unconfirmed, is_unconfirmed
from execution.common.v1 import signal_pb2 as pb


class Step(enum.IntEnum):
    """What one planned action does. A plan lists them in this order: what frees margin comes first."""

    CLOSE = 1
    CANCEL = 2
    ADJUST = 3
    """Change volume, side or stops of an open position to what the decision states."""
    ADJUST_ORDER = 4
    OPEN = 5
    PLACE = 6


@dataclass(frozen=True, slots=True)
class PlannedAction:
    """One action of a plan. `ticket` is the master's position_id, or its order_id where the step is about an order."""

    step: Step
    ticket: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Plan:
    """What a full sync does to one account. `skipped` names what the account will not take, and why.

    `unconfirmed` names what the account has, and of which nobody knows whether the master still has it, as a pause
    withholds what would tell, or it is missing: it stays as it is, until a full sync shows it.
    """

    actions: tuple[PlannedAction, ...] = ()
    skipped: tuple[tuple[int, Reason], ...] = ()
    unconfirmed: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.actions)


def reconcile(
    copier: Copier,
    snapshot: Book,
    now_us: int,
    *,
    master_id: int = 0,
    held: Collection[int] | None = None,
    unconfirmed: Unconfirmed | None = None,
) -> Plan:
    """Makes `snapshot` the mirror, brings the account in step, and returns what must be done at the broker for that.

    `held` names the position_ids that the terminal has, if it can tell: what is missing there was closed by hand, what
    the account should not have is closed, and what it did not know of is taken over instead of being opened again.
    Openings pass the same filters, limits and protections as a live signal that is as old as the position.
    `unconfirmed`: signals behind the snapshot are withheld or missing, and this cannot be known because of that.
    """
    copier.mirror = snapshot
    skipped: list[tuple[int, Reason]] = []
    actions: list[PlannedAction] = []
    left: set[int] = set()
    if held is not None:
        actions.extend(
            _believe_terminal(copier, frozenset(held), skipped, None if unconfirmed is None else left)
        )
    actions += [*_close_gone(copier, unconfirmed, left), *_cancel_gone(copier, unconfirmed, left)]
    settled = {ticket for ticket, _ in skipped}
    open_questions = unconfirmed or Unconfirmed()
    degraded = open_questions.opens_nothing
    for position in snapshot.positions.values():
        ticket = position.position_id
        if ticket in open_questions.positions:
            left.update(_held_one(copier.account.holdings, ticket))
        elif ticket not in settled:
            actions.extend(_align_position(copier, position, master_id, now_us, skipped, degraded))
    for order in snapshot.orders.values():
        if order.order_id in open_questions.orders:
            left.update(_held_one(copier.account.orders, order.order_id))
        else:
            actions.extend(_align_order(copier, order, master_id, now_us, skipped, degraded))
    actions.sort(key=lambda action: action.step)
    return Plan(tuple(actions), tuple(skipped), tuple(sorted(left)))


def _held_one(entries: Mapping[int, Holding | OrderHolding], ticket: int) -> tuple[int, ...]:
    entry = entries.get(ticket)
    return (ticket,) if entry is not None and entry.state is HoldingState.HELD else ()


def _believe_terminal(
    copier: Copier, held: frozenset[int], skipped: list[tuple[int, Reason]], left: set[int] | None
) -> Iterator[PlannedAction]:
    """Brings the account in line with what the terminal has, and closes what is not to be there.

    A crash may have kept a decision from the broker, and with another journal nothing is known of what was opened.
    `left` takes what neither account nor mirror know, where it is not known whether the master has it.
    """
    account = copier.account
    for ticket in [entry.position_id for entry in account.held()]:
        if ticket not in held:
            account.closed_by_user(ticket)
    for ticket in sorted(held):
        holding, position = account.holdings.get(ticket), copier.mirror.positions.get(ticket)
        if position is None:
            if holding is None and left is not None:
                left.add(ticket)
            elif holding is None or holding.state is not HoldingState.HELD:
                yield PlannedAction(Step.CLOSE, ticket, Decision(Action.COPY))
        elif holding is None or (holding.state is HoldingState.REFUSED and holding.reason == Reason.DEGRADED):
            yield from _take_over(copier, position, skipped)
        elif holding.state is HoldingState.REFUSED:
            reason = Reason(holding.reason)
            skipped.append((ticket, reason))
            decision = Decision(Action.RESIZE, reason, holding.symbol, holding.side)
            yield PlannedAction(Step.CLOSE, ticket, decision)


def _take_over(
    copier: Copier, position: BookPosition, skipped: list[tuple[int, Reason]]
) -> Iterator[PlannedAction]:
    """Holds what the terminal has, at the volume that the settings give; where that cannot be told, closes it."""
    ticket = position.position_id
    decision = copier.wanted(_as_opening(position, 0).signal, late=True)
    holding = Holding(
        ticket,
        decision.symbol,
        decision.side,
        decision.volume_lots_e8,
        decision.stop_loss_e8,
        decision.take_profit_e8,
        scale=decision.scale,
        reversed=copier.settings.reverse,
    )
    copier.account.holdings[ticket] = holding
    if decision.action is Action.SKIP:
        holding.state, holding.reason = HoldingState.REFUSED, decision.reason
        decision.action = Action.RESIZE
        skipped.append((ticket, decision.reason))
        yield PlannedAction(Step.CLOSE, ticket, decision)
    else:
        yield PlannedAction(Step.ADJUST, ticket, decision)


def _close_gone(copier: Copier, unconfirmed: Unconfirmed | None, left: set[int]) -> Iterator[PlannedAction]:
    holdings = copier.account.holdings
    for ticket in [ticket for ticket in holdings if ticket not in copier.mirror.positions]:
        if is_unconfirmed(holdings[ticket], unconfirmed):
            left.add(ticket)
            continue
        holding = holdings.pop(ticket)
        if holding.state is HoldingState.HELD:
            yield PlannedAction(
                Step.CLOSE, ticket, Decision(Action.COPY, Reason.NONE, holding.symbol, holding.side)
            )


def _cancel_gone(copier: Copier, unconfirmed: Unconfirmed | None, left: set[int]) -> Iterator[PlannedAction]:
    entries = copier.account.orders
    for ticket in [ticket for ticket in entries if ticket not in copier.mirror.orders]:
        if is_unconfirmed(entries[ticket], unconfirmed):
            left.add(ticket)
            continue
        entry = entries.pop(ticket)
        if entry.state is HoldingState.HELD:
            yield PlannedAction(
                Step.CANCEL, ticket, Decision(Action.COPY, Reason.NONE, entry.symbol, entry.side)
            )


def _align_position(
    copier: Copier,
    position: BookPosition,
    master_id: int,
    now_us: int,
    skipped: list[tuple[int, Reason]],
    degraded: bool,
) -> Iterator[PlannedAction]:
    ticket = position.position_id
    holding = copier.account.holdings.get(ticket)
    if holding is not None and holding.state is not HoldingState.HELD:
        if holding.reason != Reason.DEGRADED:
            closed = holding.state is HoldingState.CLOSED_BY_USER
            skipped.append((ticket, Reason.CLOSED_BY_USER if closed else Reason(holding.reason)))
            return
        holding = None
    before = None
    if holding is not None and holding.side == pb.SIDE_UNSPECIFIED:
        decision = _fill_in(copier, holding, position)
        step = Step.ADJUST if holding.state is HoldingState.HELD else Step.CLOSE
        yield PlannedAction(step, ticket, decision)
        return
    if holding is not None:
        before = (holding.side, holding.volume_lots_e8, holding.stop_loss_e8, holding.take_profit_e8)
        if holding.short and holding.reason != Reason.DEGRADED and _would_grow(copier, holding, position):
            yield from _align_stops(copier, holding, position)
            return
    sequenced = _as_opening(position, master_id)
    decision = positions.open_(copier, sequenced, sequenced.signal, now_us, degraded, late=True)
    after = copier.account.holdings[ticket]
    if before is None:
        if decision.action is Action.SKIP:
            skipped.append((ticket, decision.reason))
        else:
            yield PlannedAction(Step.OPEN, ticket, decision)
    elif after.state is not HoldingState.HELD:
        yield PlannedAction(Step.CLOSE, ticket, decision)
    elif before != (after.side, after.volume_lots_e8, after.stop_loss_e8, after.take_profit_e8):
        yield PlannedAction(Step.ADJUST, ticket, decision)


def _fill_in(copier: Copier, holding: Holding, position: BookPosition) -> Decision:
    """The rest of a holding of which only the ticket is known: it was opened, so no limit applies any more."""
    holding.symbol, holding.reversed = copier.settings.symbol_for(position.symbol), copier.settings.reverse
    decision = copier.wanted(_as_opening(position, 0).signal, holding)
    holding.symbol, holding.side = decision.symbol, decision.side
    holding.volume_lots_e8 = decision.volume_lots_e8
    holding.stop_loss_e8, holding.take_profit_e8 = decision.stop_loss_e8, decision.take_profit_e8
    if position.side not in copier.settings.sides:
        # It was opened on the other side, and closed when the master turned it.
        decision.reason, decision.volume_lots_e8 = Reason.SIDE_FILTER, 0
    if decision.volume_lots_e8 == 0:
        decision.action = Action.RESIZE
        holding.state, holding.reason, holding.volume_lots_e8 = HoldingState.REFUSED, decision.reason, 0
    return decision


def _would_grow(copier: Copier, holding: Holding, position: BookPosition) -> bool:
    """Whether bringing a holding in step would repeat an enlargement that was refused."""
    settings = copier.settings
    same_side = holding.side == side_for(position.side, holding.reversed)
    wanted_e8 = settings.volume_for(holding.symbol, position.volume_lots_e8, holding.scale)
    return same_side and wanted_e8 > holding.volume_lots_e8


def _align_stops(copier: Copier, holding: Holding, position: BookPosition) -> Iterator[PlannedAction]:
    stops = stops_for(position.stop_loss_e8, position.take_profit_e8, holding.reversed)
    if stops != (holding.stop_loss_e8, holding.take_profit_e8):
        holding.stop_loss_e8, holding.take_profit_e8 = stops
        decision = Decision(
            Action.COPY, Reason.NONE, holding.symbol, holding.side, holding.volume_lots_e8, 0, *stops
        )
        yield PlannedAction(Step.ADJUST, holding.position_id, decision)


def _align_order(
    copier: Copier,
    order: BookOrder,
    master_id: int,
    now_us: int,
    skipped: list[tuple[int, Reason]],
    degraded: bool,
) -> Iterator[PlannedAction]:
    ticket = order.order_id
    entry = copier.account.orders.get(ticket)
    sequenced = _as_placing(order, master_id, now_us)
    if entry is not None and entry.state is not HoldingState.HELD:
        if entry.reason != Reason.DEGRADED:
            closed = entry.state is HoldingState.CLOSED_BY_USER
            skipped.append((ticket, Reason.CLOSED_BY_USER if closed else Reason(entry.reason)))
            return
        entry = None
    if entry is None:
        decision = orders.place(copier, sequenced, sequenced.signal, now_us, degraded)
        if decision.action is Action.SKIP:
            skipped.append((ticket, decision.reason))
        else:
            yield PlannedAction(Step.PLACE, ticket, decision)
        return
    if entry.side == pb.SIDE_UNSPECIFIED:
        # Only the ticket is known: it was placed with what the settings give.
        entry.symbol, entry.reversed = copier.settings.symbol_for(order.symbol), copier.settings.reverse
        decision = copier.wanted(sequenced.signal, entry)
        entry.symbol, entry.side, entry.volume_lots_e8 = (
            decision.symbol,
            decision.side,
            decision.volume_lots_e8,
        )
        entry.order_type = copier.settings.order_type_for(order.order_type)
    if order_fields(entry) != wanted_order_fields(entry, order):
        decision = orders.modify(copier, sequenced, sequenced.signal, now_us, False)
        yield PlannedAction(Step.ADJUST_ORDER, ticket, decision)


def _as_opening(position: BookPosition, master_id: int) -> pb.SequencedSignal:
    signal = pb.Signal(
        kind=pb.SIGNAL_KIND_OPEN,
        position_id=position.position_id,
        symbol=position.symbol,
        side=position.side,
        volume_lots_e8=position.volume_lots_e8,
        price_e8=position.open_price_e8,
        stop_loss_e8=position.stop_loss_e8,
        take_profit_e8=position.take_profit_e8,
        occurred_at_us=position.opened_at_us,
    )
    return pb.SequencedSignal(
        master_id=master_id,
        sequence=position.opened_by_sequence,
        signal=signal,
        sent_at_us=position.opened_at_us,
    )


def _as_placing(order: BookOrder, master_id: int, now_us: int) -> pb.SequencedSignal:
    """When an order was placed is not known, and does not matter: it still waits for its price."""
    signal = pb.Signal(
        kind=pb.SIGNAL_KIND_PENDING_PLACE,
        order_id=order.order_id,
        symbol=order.symbol,
        side=order.side,
        order_type=order.order_type,
        volume_lots_e8=order.volume_lots_e8,
        price_e8=order.price_e8,
        stop_limit_price_e8=order.stop_limit_price_e8,
        stop_loss_e8=order.stop_loss_e8,
        take_profit_e8=order.take_profit_e8,
        expires_at_us=order.expires_at_us,
        occurred_at_us=now_us,
    )
    return pb.SequencedSignal(
        master_id=master_id, sequence=order.placed_by_sequence, signal=signal, sent_at_us=now_us
    )
