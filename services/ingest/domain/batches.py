"""How far a batch of signals can be taken: form, fields, age and rate; sequences and sessions are not its affair."""

from __future__ import annotations

from typing import Final, NamedTuple

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.rate import TokenBucket
from services.ingest.domain.rules import CLOSES, SEQUENCE_MAX, TIME_US_MAX, is_printable, problem_of

TRACEPARENT_BYTES_MAX: Final = 64


class Refusal(NamedTuple):
    """Why a batch is not taken whole."""

    code: pb.RejectCode.ValueType
    message: str
    field: str = ""
    retry_after_ms: int = 0


class BatchRules:
    """The rules of one session for the signals in a batch."""

    __slots__ = ("_age_us_max", "_bucket")

    def __init__(self, signal_age_ms_max: int, bucket: TokenBucket) -> None:
        self._age_us_max = signal_age_ms_max * 1_000
        self._bucket = bucket

    def check(self, batch: pb.SignalBatch, now_us: int, now_seconds: float) -> tuple[int, Refusal | None]:
        """How many signals can be taken, counted from the first, and what is wrong with the one behind them."""
        oldest_us = now_us - self._age_us_max
        taken, limited = len(batch.signals), 0
        refusal = None
        for index, signal in enumerate(batch.signals):
            problem = problem_of(signal)
            if problem is not None:
                message = f"{problem.field} {problem.message}"
                taken, refusal = index, Refusal(pb.REJECT_CODE_INVALID_SIGNAL, message, problem.field)
                break
            if signal.kind not in CLOSES:
                if signal.occurred_at_us < oldest_us:
                    taken, refusal = index, self._stale(now_us - signal.occurred_at_us)
                    break
                limited += 1
        allowed = self._bucket.take(limited, now_seconds)
        if allowed < limited:
            taken = _index_of_limited(batch, allowed)
            refusal = self._rate_limited()
        return taken, refusal

    def _stale(self, age_us: int) -> Refusal:
        age_ms, age_ms_max = age_us // 1_000, self._age_us_max // 1_000
        message = f"the signal is {age_ms} ms old, at most {age_ms_max} ms are taken"
        return Refusal(pb.REJECT_CODE_STALE, message)

    def _rate_limited(self) -> Refusal:
        wait_ms = int(self._bucket.seconds_until_next() * 1_000) + 1
        return Refusal(pb.REJECT_CODE_RATE_LIMITED, "too many signals a second", "", wait_ms)


def fault_of(batch: pb.SignalBatch, signals_max: int) -> str | None:
    """What is wrong with the form of a batch, or None."""
    count, first = len(batch.signals), batch.first_sequence
    if not 0 < count <= signals_max:
        return f"a batch has 1 to {signals_max} signals, not {count}"
    if not first or first + count - 1 > SEQUENCE_MAX:
        return "first_sequence must be 1 to 2^53 - 1"
    if not 0 < batch.sent_at_us <= TIME_US_MAX:
        return "sent_at_us is required, in microseconds since 1970"
    if not is_printable(batch.traceparent, TRACEPARENT_BYTES_MAX):
        return f"traceparent must be at most {TRACEPARENT_BYTES_MAX} printable characters"
    return None


def head_of(batch: pb.SignalBatch, count: int) -> pb.SignalBatch:
    """The batch without what comes behind its first `count` signals."""
    head = pb.SignalBatch()
    head.CopyFrom(batch)
    del head.signals[count:]
    return head


def tail_of(batch: pb.SignalBatch, skip: int) -> pb.SignalBatch:
    """The batch without its first `skip` signals."""
    tail = pb.SignalBatch()
    tail.CopyFrom(batch)
    del tail.signals[:skip]
    tail.first_sequence += skip
    return tail


def _index_of_limited(batch: pb.SignalBatch, allowed: int) -> int:
    """Index of the first signal that the rate limit refuses when `allowed` of the limited ones pass."""
    seen = 0
    for index, signal in enumerate(batch.signals):
        if signal.kind not in CLOSES:
            if seen == allowed:
                return index
            seen += 1
    return len(batch.signals)
