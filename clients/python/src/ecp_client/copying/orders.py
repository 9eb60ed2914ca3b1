"""The rules of copying for pending orders, one for each kind of signal; each brings the account up to date. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecp_client.account import Holding, HoldingState, OrderHolding
from ecp_client.copying.decisions import Action, Decision, Reason
from ecp_client.copying.positions import not_held, open_, restate
from ecp_client.copying.settings import stops_for
from execution.common.v1 import signal_pb2 as pb

if TYPE_CHECKING:
    from ecp_client.copying.copier import Copier


def place(
    copier: Copier, sequenced: pb.SequencedSignal, signal: pb.Signal, now_us: int, degraded: bool
) -> Decision:
    """PENDING_PLACE: as an opening, with the order's type turned round when the account trades in reverse."""
    decision = copier.wanted(signal)
    decision.order_type = copier.settings.order_type_for(signal.order_type)
    reason = _refusal(copier, sequenced, decision, now_us, degraded)
    if reason:
        decision.action, decision.reason, decision.volume_lots_e8 = Action.SKIP, reason, 0
    copier.account.orders[signal.order_id] = OrderHolding(
        signal.order_id,
        decision.symbol,
        decision.side,
        decision.order_type,
        decision.volume_lots_e8,
        signal.price_e8,
        signal.stop_limit_price_e8,
        decision.stop_loss_e8,
        decision.take_profit_e8,
        signal.expires_at_us,
        HoldingState.REFUSED if reason else HoldingState.HELD,
        reason,
        decision.scale,
        copier.settings.reverse,
    )
    return decision


def _refusal(
    copier: Copier, sequenced: pb.SequencedSignal, decision: Decision, now_us: int, degraded: bool
) -> Reason:
    if decision.action is Action.SKIP:
        return decision.reason
    if decision.order_type == pb.ORDER_TYPE_UNSPECIFIED:
        return Reason.NOT_REPRESENTABLE
    if not copier.settings.copy_pending and not copier.replays:
        return Reason.KIND_FILTER
    return copier.refusal(sequenced, decision, now_us, degraded=degraded)


def modify(
    copier: Copier, _sequenced: pb.SequencedSignal, signal: pb.Signal, _now_us: int, degraded: bool
) -> Decision:
    """PENDING_MODIFY: not while degraded, for it may make the order fill."""
    order = copier.account.orders.get(signal.order_id)
    if order is None or order.state is not HoldingState.HELD:
        return not_held(order)
    if degraded:
        return Decision(Action.SKIP, Reason.DEGRADED, order.symbol, order.side, order.volume_lots_e8)
    order.price_e8, order.stop_limit_price_e8 = signal.price_e8, signal.stop_limit_price_e8
    stops = stops_for(signal.stop_loss_e8, signal.take_profit_e8, order.reversed)
    order.stop_loss_e8, order.take_profit_e8 = stops
    order.expires_at_us = signal.expires_at_us
    return Decision(
        Action.COPY,
        Reason.NONE,
        order.symbol,
        order.side,
        order.volume_lots_e8,
        order.price_e8,
        *stops,
        order_type=order.order_type,
    )


def cancel(
    copier: Copier, _sequenced: pb.SequencedSignal, signal: pb.Signal, _now_us: int, _degraded: bool
) -> Decision:
    """PENDING_CANCEL: always copied."""
    order = copier.account.orders.pop(signal.order_id, None)
    if order is None or order.state is not HoldingState.HELD:
        return not_held(order)
    return Decision(Action.COPY, Reason.NONE, order.symbol, order.side, 0, order_type=order.order_type)


def fill(
    copier: Copier, sequenced: pb.SequencedSignal, signal: pb.Signal, now_us: int, degraded: bool
) -> Decision:
    """PENDING_FILL: the account's own order fills as well; without one it is copied as a market order.

    A SKIP of a fill means: cancel the order if it is still there, and close what it opened.
    """
    account = copier.account
    order = account.orders.pop(signal.order_id, None)
    if order is not None and order.state is HoldingState.CLOSED_BY_USER:
        return _not_filled(copier, order, sequenced, now_us, degraded)
    own = order if order is not None and order.state is HoldingState.HELD else None
    return open_(copier, sequenced, signal, now_us, degraded, order=own)


def _not_filled(
    copier: Copier, order: OrderHolding, sequenced: pb.SequencedSignal, now_us: int, degraded: bool
) -> Decision:
    """The user cancelled the order: it opens nothing, and enlarges nothing that is held."""
    holdings, position_id = copier.account.holdings, sequenced.signal.position_id
    held = holdings.get(position_id)
    if held is not None and held.state is HoldingState.HELD:
        return restate(copier, held, sequenced, now_us, degraded, refused=Reason.CLOSED_BY_USER)
    if held is None:
        state = HoldingState.CLOSED_BY_USER
        holdings[position_id] = Holding(position_id, order.symbol, order.side, 0, 0, 0, state)
    return Decision(Action.SKIP, Reason.CLOSED_BY_USER, order.symbol, order.side)
