"""What an application is asked while signals are decided, with its faults kept away from them; it decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TypeVar

from ecp_client.copying import Decision, EquitySource, PointValueSource, Protection, QuoteSource, Reason
from ecp_client.subscriber.events import SubscriberEvent
from execution.common.v1.signal_pb2 import SequencedSignal

logger = logging.getLogger("ecp_client.subscriber")

HeldPositions = Callable[[int], "Collection[int] | None"]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the application gave: see Subscriber."""

    on_event: Callable[[SubscriberEvent], None] | None = None
    protection: Protection | None = None
    quotes: QuoteSource | None = None
    equity: EquitySource | None = None
    point_value: PointValueSource | None = None
    held_positions: HeldPositions | None = None


def guarded(hooks: Hooks, on_fault: Callable[[], None]) -> Hooks:
    """The same hooks, none of which raises: a fault is logged, told to `on_fault`, and counts as not knowing.

    A protection that does not know refuses. `on_event` is left as it is: Teller guards it.
    """
    return replace(
        hooks,
        protection=None if hooks.protection is None else _protection(hooks.protection, on_fault),
        quotes=None if hooks.quotes is None else _quotes(hooks.quotes, on_fault),
        equity=None if hooks.equity is None else _equity(hooks.equity, on_fault),
        point_value=None if hooks.point_value is None else _point_value(hooks.point_value, on_fault),
        held_positions=None if hooks.held_positions is None else _held(hooks.held_positions, on_fault),
    )


def _asked(name: str, ask: Callable[[], Answer], otherwise: Answer, on_fault: Callable[[], None]) -> Answer:
    try:
        return ask()
    except Exception:
        # The application's own code: its faults must stop neither signals nor streams.
        on_fault()
        logger.exception("%s failed", name)
        return otherwise


def _protection(protection: Protection, on_fault: Callable[[], None]) -> Protection:
    def answer(sequenced: SequencedSignal, decision: Decision) -> Reason:
        def ask() -> Reason:
            answer: int = protection(sequenced, decision)
            if isinstance(answer, bool):
                raise TypeError(f"{answer} is not a Reason: Reason.NONE lets it through")
            return Reason(answer)

        return _asked("protection", ask, Reason.PROTECTION_FAILED, on_fault)

    return answer


def _quotes(quotes: QuoteSource, on_fault: Callable[[], None]) -> QuoteSource:
    def ask(symbol: str) -> tuple[int, int] | None:
        quote = quotes(symbol)
        if quote is None:
            return None
        bid_e8, ask_e8 = quote
        return _whole(bid_e8), _whole(ask_e8)

    return lambda symbol: _asked("quotes", lambda: ask(symbol), None, on_fault)


def _equity(equity: EquitySource, on_fault: Callable[[], None]) -> EquitySource:
    return lambda: _asked("equity", lambda: _whole_or_none(equity()), None, on_fault)


def _point_value(point_value: PointValueSource, on_fault: Callable[[], None]) -> PointValueSource:
    return lambda symbol: _asked("point_value", lambda: _whole_or_none(point_value(symbol)), None, on_fault)


def _held(held_positions: HeldPositions, on_fault: Callable[[], None]) -> HeldPositions:
    def ask(master_id: int) -> Collection[int] | None:
        answer = held_positions(master_id)
        if answer is None:
            return None
        if not isinstance(answer, Collection):
            raise TypeError(f"{answer!r} is not a collection of tickets")
        return frozenset(_ticket(one) for one in answer)

    return lambda master_id: _asked("held_positions", lambda: ask(master_id), None, on_fault)


def _ticket(value: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a position_id of the master")
    return value


def _whole_or_none(value: int | None) -> int | None:
    return None if value is None else _whole(value)


def _whole(value: int) -> int:
    """Money and prices are integers of 1e-8: a float, which may be NaN as well, was not converted."""
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer of 1e-8")
    return value
