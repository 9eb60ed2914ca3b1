"""Outcomes waiting for the risk service: what was done with each signal that opens risk. Pure; it sends nothing."""

from __future__ import annotations

import enum
from collections import deque

from ecp_client.copying import TAKEN, Action, Decision, Reason
from ecp_client.signals import OPENS_RISK
from execution.common.v1.signal_pb2 import SequencedSignal
from execution.risk.v1 import risk_service_pb2 as pb

OUTCOMES_IN_REQUEST_MAX = 1_000


class Report(enum.Enum):
    """Who reports outcomes."""

    DECISIONS = "decisions"
    """The client: what was decided to be copied counts as executed, at the decision's price."""
    MANUAL = "manual"
    """The application, with `Subscriber.report`, when the broker answered; the client still reports refusals."""
    NONE = "none"


_REASONS: dict[Reason, pb.ProtectionReason.ValueType] = {
    Reason.LATENCY: pb.PROTECTION_REASON_LATENCY,
    Reason.SLIPPAGE: pb.PROTECTION_REASON_SLIPPAGE,
    Reason.SPREAD: pb.PROTECTION_REASON_SPREAD,
    Reason.PRICE: pb.PROTECTION_REASON_PRICE,
    Reason.MARGIN: pb.PROTECTION_REASON_MARGIN,
}


def event_id(sequenced: SequencedSignal) -> str:
    """The same for the same signal, also after a restart: a repeat is no second outcome."""
    return f"{sequenced.master_id}-{sequenced.epoch}-{sequenced.sequence}"


def outcome(
    sequenced: SequencedSignal, executed: bool, reason: Reason, price_e8: int, latency_us: int, now_us: int
) -> pb.Outcome:
    """The report of one signal; what is no protection counts as the subscriber's own filter."""
    report = pb.Outcome(
        event_id=event_id(sequenced),
        master_id=sequenced.master_id,
        kind=pb.OUTCOME_KIND_EXECUTED if executed else pb.OUTCOME_KIND_PROTECTED,
        price_e8=price_e8,
        latency_us=latency_us,
        occurred_at_us=now_us,
    )
    report.position.epoch = sequenced.epoch
    report.position.sequence = sequenced.sequence
    if not executed:
        report.reason = _REASONS.get(reason, pb.PROTECTION_REASON_FILTER)
    return report


class Outcomes:
    """A bounded queue, oldest first. What does not fit pushes the oldest out, which is counted."""

    def __init__(self, outcomes_max: int, report: Report) -> None:
        self.dropped = 0
        self.queued = 0
        self._max = outcomes_max
        self._report = report
        self._queue: deque[pb.Outcome] = deque()
        self._under_way = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add_decision(
        self, sequenced: SequencedSignal, decision: Decision, latency_us: int, now_us: int
    ) -> None:
        """Queues the report of a decision, if one is due."""
        if sequenced.signal.kind not in OPENS_RISK or self._report is Report.NONE:
            return
        # A refused enlargement that moves the stops is a refusal all the same.
        executed = decision.action is not Action.SKIP and decision.reason in TAKEN
        if executed and self._report is Report.MANUAL:
            return
        price_e8 = decision.price_e8 or sequenced.signal.price_e8
        self.add(outcome(sequenced, executed, decision.reason, price_e8, latency_us, now_us))

    def add(self, report: pb.Outcome) -> None:
        """Queues a report."""
        self._queue.append(report)
        self.queued += 1
        if len(self._queue) > self._max:
            self._queue.popleft()
            self.dropped += 1
            self._under_way = max(0, self._under_way - 1)

    def next_request(self) -> pb.ReportOutcomesRequest | None:
        """The oldest reports; the same ones again until `sent`."""
        if not self._queue:
            return None
        self._under_way = min(len(self._queue), OUTCOMES_IN_REQUEST_MAX)
        return pb.ReportOutcomesRequest(outcomes=[self._queue[index] for index in range(self._under_way)])

    def sent(self) -> None:
        """The last request was taken."""
        for _ in range(self._under_way):
            self._queue.popleft()
        self._under_way = 0
