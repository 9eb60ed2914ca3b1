"""The rules of copying for positions, one for each kind of signal; each brings the account up to date. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecp_client.account import Holding, HoldingState, OrderHolding
from ecp_client.copying.decisions import Action, Decision, Reason
from ecp_client.copying.settings import stops_for
from execution.common.v1 import signal_pb2 as pb

if TYPE_CHECKING:
    from ecp_client.copying.copier import Copier


def open_(
    copier: Copier,
    sequenced: pb.SequencedSignal,
    signal: pb.Signal,
    now_us: int,
    degraded: bool,
    *,
    order: OrderHolding | None = None,
    late: bool = False,
) -> Decision:
    """OPEN, and PENDING_FILL once its order is settled. A position that is there is restated: side and total volume.

    `order` is the account's own that filled. `late`: a full sync opens it, at a price that is not the signal's.
    """
    holdings = copier.account.holdings
    position_id = signal.position_id
    held = holdings.get(position_id)
    if held is not None and held.state is not HoldingState.REFUSED:
        return restate(copier, held, sequenced, now_us, degraded, committed=order is not None)
    decision = copier.wanted(signal, order, late=late)
    if decision.action is not Action.SKIP:
        reason = copier.refusal(sequenced, decision, now_us, degraded=degraded, committed=order is not None)
        if reason:
            decision.action, decision.reason = Action.SKIP, reason
    state = HoldingState.HELD
    if decision.action is Action.SKIP:
        state, decision.volume_lots_e8 = HoldingState.REFUSED, 0
    holdings[position_id] = Holding(
        position_id,
        decision.symbol,
        decision.side,
        decision.volume_lots_e8,
        decision.stop_loss_e8,
        decision.take_profit_e8,
        state,
        decision.reason if state is HoldingState.REFUSED else 0,
        scale=decision.scale,
        reversed=copier.settings.reverse if order is None else order.reversed,
    )
    return decision


def restate(
    copier: Copier,
    held: Holding,
    sequenced: pb.SequencedSignal,
    now_us: int,
    degraded: bool,
    *,
    committed: bool = False,
    refused: Reason = Reason.NONE,
) -> Decision:
    """The master enlarged, reduced or reversed a position that was copied before (netting).

    `refused`: why the account takes no part in what is more, whatever its settings say.
    """
    decision = copier.wanted(sequenced.signal, held)
    if held.state is HoldingState.CLOSED_BY_USER:
        decision.action, decision.reason, decision.volume_lots_e8 = Action.SKIP, Reason.CLOSED_BY_USER, 0
        return decision
    turned = decision.side != held.side
    if not turned and decision.volume_lots_e8 <= held.volume_lots_e8:
        return _settle(held, decision)
    reason = decision.reason
    if decision.volume_lots_e8:
        reason = refused or copier.refusal(
            sequenced, decision, now_us, degraded=degraded, committed=committed
        )
    if reason and not turned:
        return _stay_short(held, decision, reason, degraded=degraded)
    if turned and (reason or not decision.volume_lots_e8):
        # The master left the old side: so does the account, whatever it thinks of the new one.
        decision.action, decision.reason, decision.volume_lots_e8 = Action.RESIZE, reason, 0
        held.state, held.reason, held.volume_lots_e8 = HoldingState.REFUSED, reason, 0
        return decision
    held.side = decision.side
    return _settle(held, decision)


def _stay_short(held: Holding, decision: Decision, reason: Reason, *, degraded: bool) -> Decision:
    """An enlargement was refused: what is held stays, with the stops that the master restated along with it."""
    held.short, held.reason = True, reason
    stops = (decision.stop_loss_e8, decision.take_profit_e8)
    moves = stops != (held.stop_loss_e8, held.take_profit_e8)
    if moves and (not degraded or tightens(held.side, held.stop_loss_e8, decision.stop_loss_e8)):
        held.stop_loss_e8, held.take_profit_e8 = stops
        decision.action = Action.RESIZE
    else:
        decision.action = Action.SKIP
    decision.reason, decision.volume_lots_e8 = reason, held.volume_lots_e8
    return decision


def _settle(held: Holding, decision: Decision) -> Decision:
    """Makes the holding what the decision says; below the least volume it is closed."""
    held.short, held.reason = False, Reason.NONE
    held.volume_lots_e8 = decision.volume_lots_e8
    held.stop_loss_e8, held.take_profit_e8 = decision.stop_loss_e8, decision.take_profit_e8
    if decision.volume_lots_e8 == 0:
        decision.action = Action.RESIZE
        held.state, held.reason = HoldingState.REFUSED, Reason.VOLUME_MIN
    return decision


def modify(
    copier: Copier, _sequenced: pb.SequencedSignal, signal: pb.Signal, _now_us: int, degraded: bool
) -> Decision:
    """MODIFY: the new stops; while degraded only if they risk no more than the old ones."""
    held = copier.account.holdings.get(signal.position_id)
    if held is None or held.state is not HoldingState.HELD:
        return not_held(held)
    stop_loss_e8, take_profit_e8 = stops_for(signal.stop_loss_e8, signal.take_profit_e8, held.reversed)
    if degraded and not tightens(held.side, held.stop_loss_e8, stop_loss_e8):
        return Decision(Action.SKIP, Reason.DEGRADED, held.symbol, held.side, held.volume_lots_e8)
    held.stop_loss_e8, held.take_profit_e8 = stop_loss_e8, take_profit_e8
    return Decision(
        Action.COPY, Reason.NONE, held.symbol, held.side, held.volume_lots_e8, 0, stop_loss_e8, take_profit_e8
    )


def tightens(side: int, old_stop_e8: int, new_stop_e8: int) -> bool:
    """Whether the new stop loss risks no more than the old one; 0 is no stop."""
    if new_stop_e8 == 0:
        return old_stop_e8 == 0
    if old_stop_e8 == 0:
        return True
    return new_stop_e8 >= old_stop_e8 if side == pb.SIDE_BUY else new_stop_e8 <= old_stop_e8


def not_held(held: Holding | OrderHolding | None) -> Decision:
    """The decision for a signal about something that the account does not have."""
    closed = held is not None and held.state is HoldingState.CLOSED_BY_USER
    return Decision(Action.SKIP, Reason.CLOSED_BY_USER if closed else Reason.NOT_HELD)


def close(
    copier: Copier, _sequenced: pb.SequencedSignal, signal: pb.Signal, _now_us: int, _degraded: bool
) -> Decision:
    """CLOSE: always copied."""
    held = copier.account.holdings.pop(signal.position_id, None)
    if held is None or held.state is not HoldingState.HELD:
        return not_held(held)
    return Decision(Action.COPY, Reason.NONE, held.symbol, held.side, 0, signal.price_e8)


def partial_close(
    copier: Copier, _sequenced: pb.SequencedSignal, signal: pb.Signal, _now_us: int, _degraded: bool
) -> Decision:
    """PARTIAL_CLOSE: always copied; the account never grows by it."""
    before = copier.account.holdings.get(signal.position_id)
    was_held = before is not None and before.state is HoldingState.HELD
    volume_e8 = _reduce(copier, signal.position_id, signal.volume_lots_e8)
    if before is None or not was_held:
        return not_held(before)
    same = volume_e8 == signal.volume_lots_e8
    return Decision(
        Action.COPY if same else Action.RESIZE,
        Reason.NONE if same else _reduced_because(copier, before, signal.volume_lots_e8),
        before.symbol,
        before.side,
        volume_e8,
        signal.price_e8,
    )


def close_by(
    copier: Copier, _sequenced: pb.SequencedSignal, signal: pb.Signal, _now_us: int, _degraded: bool
) -> Decision:
    """CLOSE_BY: each of the two comes down to what the mirror says is left; the account may hold only one of them."""
    holdings, positions = copier.account.holdings, copier.mirror.positions
    tickets = (signal.position_id, signal.opposite_position_id)
    entries = [holdings.get(ticket) for ticket in tickets]
    held = [entry for entry in entries if entry is not None and entry.state is HoldingState.HELD]
    volumes = []
    for ticket in tickets:
        left = positions.get(ticket)
        volumes.append(_reduce(copier, ticket, left.volume_lots_e8 if left is not None else 0))
    if not held:
        return not_held(next((entry for entry in entries if entry is not None and _by_hand(entry)), None))
    survivor = next(
        (entry for entry in entries if entry is not None and entry.position_id in positions), None
    )
    same = sum(volumes) == signal.volume_lots_e8
    return Decision(
        Action.COPY if same else Action.RESIZE,
        Reason.NONE if same else _reduced_because(copier, survivor, signal.volume_lots_e8),
        held[0].symbol,
        held[0].side,
        volumes[0],
        signal.price_e8,
        opposite_volume_lots_e8=volumes[1],
    )


def _by_hand(entry: Holding) -> bool:
    return entry.state is HoldingState.CLOSED_BY_USER


def _reduced_because(copier: Copier, held: Holding | None, remaining_e8: int) -> Reason:
    """Why the account has another volume than the master after a reduction, which has been brought to `held`."""
    if held is None:
        return Reason.NOT_HELD
    if _by_hand(held):
        return Reason.CLOSED_BY_USER
    if held.state is HoldingState.REFUSED or held.short:
        return Reason(held.reason)
    return copier.settings.resized_because(held.symbol, remaining_e8, held.scale)


def _reduce(copier: Copier, position_id: int, remaining_e8: int) -> int:
    """Brings a holding down to what the settings make of the master's remaining volume; returns what is held then."""
    holdings = copier.account.holdings
    held = holdings.get(position_id)
    if held is None:
        return 0
    if remaining_e8 <= 0:
        del holdings[position_id]
        return 0
    if held.state is not HoldingState.HELD:
        return 0
    volume_e8 = copier.settings.volume_for(held.symbol, remaining_e8, held.scale)
    if volume_e8 <= held.volume_lots_e8:
        held.volume_lots_e8, held.short, held.reason = volume_e8, False, Reason.NONE
    if held.volume_lots_e8 == 0:
        # Less than the least volume would remain: closed here, while the master goes on.
        held.state, held.reason = HoldingState.REFUSED, Reason.VOLUME_MIN
    return held.volume_lots_e8
