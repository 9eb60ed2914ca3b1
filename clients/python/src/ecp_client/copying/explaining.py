"""Says in one English sentence why a signal was copied, resized or skipped. Pure; it decides nothing."""

from __future__ import annotations

from ecp_client.copying.decisions import Action, Decision, Reason
from ecp_client.copying.settings import CopySettings
from ecp_client.signals import from_e8
from execution.common.v1 import signal_pb2 as pb


def explain(signal: pb.Signal, decision: Decision, settings: CopySettings) -> str:
    """One sentence for the subscriber: what was done with the signal, and because of which setting."""
    what = _what(signal)
    ticket = signal.order_id if "pending" in what and not signal.position_id else signal.position_id
    subject = f"{what} of {signal.symbol} #{ticket}"
    if decision.action is Action.SKIP:
        return f"Skipped {subject}: {_why(signal, decision, settings)}."
    # Of two positions that were closed by one another, at most one is left.
    volume = f"{from_e8(decision.volume_lots_e8 + decision.opposite_volume_lots_e8):f} lots"
    if decision.action is Action.RESIZE:
        master = f"{from_e8(signal.volume_lots_e8):f}"
        return f"Resized {subject} to {volume} (the master: {master}): {_why(signal, decision, settings)}."
    return f"Copied {subject}: {volume} of {decision.symbol} held."


def _what(signal: pb.Signal) -> str:
    named = pb.SignalKind.DESCRIPTOR.values_by_number.get(signal.kind)
    if named is None:
        return f"signal of kind {signal.kind}"
    return named.name.removeprefix("SIGNAL_KIND_").replace("_", " ").lower()


def _why(signal: pb.Signal, decision: Decision, settings: CopySettings) -> str:
    limits = settings.limits(decision.symbol or settings.symbol_for(signal.symbol))
    match decision.reason:
        case Reason.MULTIPLIER:
            step = f"{from_e8(limits.volume_step_e8):f}"
            return f"volume × {settings.volume_multiplier_e4 / 10_000:g}, rounded down to {step} lots"
        case Reason.FIXED_VOLUME:
            return f"every position is of {from_e8(settings.volume_fixed_e8):f} lots"
        case Reason.EQUITY:
            return f"in proportion to equity{_times(settings)}"
        case Reason.RISK:
            return f"so that the stop loss costs {settings.risk_bps / 100:g} % of equity"
        case Reason.VOLUME_MAX if limits.volume_max_e8:
            return f"no position may exceed {from_e8(limits.volume_max_e8):f} lots"
        case Reason.VOLUME_MIN:
            least_e8 = max(limits.volume_min_e8, limits.volume_step_e8)
            return f"less than {from_e8(least_e8):f} lots would remain"
        case Reason.SYMBOL_FILTER:
            return f"{signal.symbol} is not among the symbols to copy"
        case Reason.LATENCY if settings.max_signal_age_ms:
            return f"older than {settings.max_signal_age_ms} ms"
        case Reason.SLIPPAGE if limits.max_slippage_e8:
            return f"the price is worse than the master's by more than {from_e8(limits.max_slippage_e8):f}"
        case _:
            return _PLAIN[decision.reason]


def _times(settings: CopySettings) -> str:
    factor = settings.volume_multiplier_e4 / 10_000
    return "" if factor == 1 else f", times {factor:g}"


_PLAIN: dict[Reason, str] = {
    Reason.NONE: "no reason was given",
    Reason.VOLUME_MAX: "the volume is too large",
    Reason.LATENCY: "it came too late",
    Reason.PROTECTION_FAILED: "the application's own protection failed",
    Reason.SIDE_FILTER: "this side is not copied",
    Reason.TIME_FILTER: "outside the hours in which positions are opened",
    Reason.NO_EQUITY: "the volume depends on equity, or on the symbol's value, and one of them is not known",
    Reason.NO_STOP: "the volume depends on the stop loss, and there is none on the right side of the price",
    Reason.NO_PRICE: "the volume depends on what the price is now, and there is no quote",
    Reason.KIND_FILTER: "this kind of signal is not copied",
    Reason.SLIPPAGE: "the price has moved too far",
    Reason.SPREAD: "the spread is too wide",
    Reason.PRICE: "the price is outside the allowed range",
    Reason.MARGIN: "not enough margin",
    Reason.NOT_HELD: "the account does not hold it",
    Reason.CLOSED_BY_USER: "the user closed it by hand",
    Reason.NOT_REPRESENTABLE: "a stop-limit order has no reverse",
    Reason.DEGRADED: "signals are missing, and until the full sync only what reduces risk is safe",
}
