"""Follows one master for one account: takes each signal in and decides what the account does. Pure."""

from __future__ import annotations

from collections.abc import Callable

from ecp_client.account import Account, Holding, OrderHolding
from ecp_client.books import Book
from ecp_client.copying import orders, positions
from ecp_client.copying.decisions import TAKEN, Action, Decision, Reason
from ecp_client.copying.scaling import (
    EquitySource,
    PointValueSource,
    Scaling,
    by_equity,
    by_risk,
    stop_distance_e8,
)
from ecp_client.copying.settings import CopySettings, side_for, stops_for
from ecp_client.scale import Scale, ratio
from execution.common.v1 import signal_pb2 as pb

# bid and ask in 1e-8 of the account's symbol now, or None when there is no fresh quote.
QuoteSource = Callable[[str], "tuple[int, int] | None"]
# Asked for each opening that the settings allow: Reason.NONE lets it through, any other refuses it.
Protection = Callable[[pb.SequencedSignal, Decision], Reason]


class Copier:
    """Mirror, account and settings of one followed master, and the decisions that follow from them."""

    __slots__ = (
        "_equity",
        "_point_value",
        "_protection",
        "_quotes",
        "_replayed",
        "_replayed_scale",
        "account",
        "mirror",
        "settings",
    )

    def __init__(
        self,
        settings: CopySettings,
        mirror: Book | None = None,
        account: Account | None = None,
        *,
        protection: Protection | None = None,
        quotes: QuoteSource | None = None,
        equity: EquitySource | None = None,
        point_value: PointValueSource | None = None,
    ) -> None:
        self.settings = settings
        self.mirror = mirror if mirror is not None else Book()
        self.account = account if account is not None else Account()
        self._protection = protection
        self._quotes = quotes
        self._equity = equity
        self._point_value = point_value
        self._replayed: Reason | None = None
        self._replayed_scale: Scale | None = None

    def take(self, sequenced: pb.SequencedSignal, now_us: int, *, degraded: bool = False) -> Decision:
        """Brings mirror and account up to date with a signal and returns what the account does.

        `now_us` is the server's time. While `degraded`, only what reduces risk is copied.
        """
        signal = sequenced.signal
        self.mirror.apply(signal, sequenced.sequence)
        rule = _RULES.get(signal.kind)
        if rule is None:
            return Decision(Action.SKIP, Reason.KIND_FILTER)
        return rule(self, sequenced, signal, now_us, degraded)

    @property
    def replays(self) -> bool:
        """Whether a decision that was made before is being replayed."""
        return self._replayed is not None

    def replay(
        self, sequenced: pb.SequencedSignal, action: Action, reason: Reason, scale: Scale | None = None
    ) -> None:
        """Brings mirror and account up to date with a signal that was decided before: that decision stands."""
        was_refused = action is Action.SKIP or reason not in TAKEN
        self._replayed, self._replayed_scale = reason if was_refused else Reason.NONE, scale
        try:
            self.take(sequenced, 0, degraded=reason is Reason.DEGRADED)
        finally:
            self._replayed = self._replayed_scale = None

    def refusal(
        self,
        sequenced: pb.SequencedSignal,
        decision: Decision,
        now_us: int,
        *,
        degraded: bool,
        committed: bool = False,
    ) -> Reason:
        """Why the account must not take on the risk that `decision` opens, or NONE.

        `committed`: a pending order of the account's own filled, so that neither age nor price is asked for.
        """
        signal, settings = sequenced.signal, self.settings
        if self._replayed is not None:
            return self._replayed
        reason = settings.filtered(signal.symbol, signal.side)
        if not reason and not committed:
            reason = self._too_late(sequenced, decision, now_us, degraded)
        if reason or self._protection is None:
            return reason
        return self._protection(sequenced, decision)

    def wanted(
        self, signal: pb.Signal, there: Holding | OrderHolding | None = None, *, late: bool = False
    ) -> Decision:
        """What the settings alone give for a signal that opens: COPY or RESIZE, or SKIP below the least volume.

        `there`: the position that it is about, or the order that filled, which keeps its symbol, scale and reversal.
        `late`: the signal's price says nothing of what the price is now.
        """
        settings = self.settings
        master_volume_e8 = signal.volume_lots_e8
        symbol, reverse, scale = settings.symbol_for(signal.symbol), settings.reverse, self._replayed_scale
        if there is not None:
            symbol, reverse, scale = there.symbol, there.reversed, there.scale
        stop_loss_e8, take_profit_e8 = stops_for(signal.stop_loss_e8, signal.take_profit_e8, reverse)
        lacks = Reason.NONE
        if there is None and not self.replays and settings.scaling is not Scaling.MULTIPLIER:
            chosen = self._choose_scale(signal, symbol, stop_loss_e8, late)
            scale, lacks = (None, chosen) if isinstance(chosen, Reason) else (chosen, Reason.NONE)
        volume_e8 = 0 if lacks else settings.volume_for(symbol, master_volume_e8, scale)
        if lacks or volume_e8 == 0:
            action, reason = Action.SKIP, lacks or Reason.VOLUME_MIN
        elif volume_e8 == master_volume_e8:
            action, reason = Action.COPY, Reason.NONE
        else:
            action, reason = Action.RESIZE, settings.resized_because(symbol, master_volume_e8, scale)
        return Decision(
            action,
            reason,
            symbol,
            side_for(signal.side, reverse),
            volume_e8,
            signal.price_e8,
            stop_loss_e8,
            take_profit_e8,
            scale=scale,
        )

    def _choose_scale(self, signal: pb.Signal, symbol: str, stop_loss_e8: int, late: bool) -> Scale | Reason:
        """The scale of a new position or order where that is not the multiplier, or why there is none."""
        settings = self.settings
        if settings.scaling is Scaling.FIXED:
            return ratio(settings.volume_fixed_e8, max(1, signal.volume_lots_e8))
        equity_e8 = self._equity() if self._equity is not None else None
        if settings.scaling is Scaling.EQUITY:
            return by_equity(equity_e8, self.mirror.equity_e8, settings.volume_multiplier_e4)
        side = side_for(signal.side, settings.reverse)
        price_e8 = self._entry_price(signal, symbol, side)
        if price_e8 is None:
            if late:
                return Reason.NO_PRICE
            price_e8 = signal.price_e8
        value_e8 = self._point_value(symbol) if self._point_value is not None else None
        distance_e8 = stop_distance_e8(side, price_e8, stop_loss_e8)
        return by_risk(equity_e8, value_e8, settings.risk_bps, signal.volume_lots_e8, distance_e8)

    def _entry_price(self, signal: pb.Signal, symbol: str, side: int) -> int | None:
        """The price at which the account would come in, or None where only a quote could tell and there is none."""
        if signal.kind == pb.SIGNAL_KIND_PENDING_PLACE:
            return signal.stop_limit_price_e8 or signal.price_e8
        quote = self._quotes(symbol) if self._quotes is not None else None
        if quote is None:
            return None
        bid_e8, ask_e8 = quote
        return ask_e8 if side == pb.SIDE_BUY else bid_e8

    def _too_late(
        self, sequenced: pb.SequencedSignal, decision: Decision, now_us: int, degraded: bool
    ) -> Reason:
        settings = self.settings
        if degraded:
            return Reason.DEGRADED
        born_us = sequenced.signal.occurred_at_us or sequenced.sent_at_us
        if not settings.opens_at(born_us):
            return Reason.TIME_FILTER
        if settings.max_signal_age_ms and now_us - born_us > settings.max_signal_age_ms * 1_000:
            return Reason.LATENCY
        slippage_max_e8 = settings.limits(decision.symbol).max_slippage_e8
        if slippage_max_e8 and self._slipped(decision, slippage_max_e8):
            return Reason.SLIPPAGE
        return Reason.NONE

    def _slipped(self, decision: Decision, slippage_max_e8: int) -> bool:
        quote = self._quotes(decision.symbol) if self._quotes is not None else None
        if quote is None or decision.order_type:
            return False
        bid_e8, ask_e8 = quote
        if decision.side == pb.SIDE_BUY:
            return ask_e8 - decision.price_e8 > slippage_max_e8
        return decision.price_e8 - bid_e8 > slippage_max_e8


_Rule = Callable[[Copier, pb.SequencedSignal, pb.Signal, int, bool], Decision]

_RULES: dict[int, _Rule] = {
    pb.SIGNAL_KIND_OPEN: positions.open_,
    pb.SIGNAL_KIND_MODIFY: positions.modify,
    pb.SIGNAL_KIND_CLOSE: positions.close,
    pb.SIGNAL_KIND_PARTIAL_CLOSE: positions.partial_close,
    pb.SIGNAL_KIND_CLOSE_BY: positions.close_by,
    pb.SIGNAL_KIND_PENDING_PLACE: orders.place,
    pb.SIGNAL_KIND_PENDING_MODIFY: orders.modify,
    pb.SIGNAL_KIND_PENDING_CANCEL: orders.cancel,
    pb.SIGNAL_KIND_PENDING_FILL: orders.fill,
}
