"""Sorts a reported batch: what may be stored, as columns, and what is refused and why; it stores nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Final

from execution.risk.v1 import risk_service_pb2 as pb
from services.common.clock import datetime_from_us
from services.risk.domain.outcomes import OutcomeLimits, problem_of, time_problem_of

_EXECUTED: Final = pb.OUTCOME_KIND_EXECUTED
_PROTECTED: Final = pb.OUTCOME_KIND_PROTECTED
_NAME_CHARACTERS_MAX: Final = 64


@dataclass(slots=True)
class NewOutcomes:
    """A batch of one user as columns of equal length, event keys unique."""

    event_keys: list[int] = field(default_factory=list)
    body_keys: list[int] = field(default_factory=list)
    master_ids: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    reasons: list[int] = field(default_factory=list)
    prices_e8: list[int] = field(default_factory=list)
    latencies_us: list[int] = field(default_factory=list)
    occurred_at: list[datetime] = field(default_factory=list)
    event_ids: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.event_keys)

    def remove(self, indexes: Sequence[int]) -> None:
        """Takes the outcomes at these indexes, in ascending order, out of every column."""
        for column in (
            self.event_keys,
            self.body_keys,
            self.master_ids,
            self.epochs,
            self.sequences,
            self.reasons,
            self.prices_e8,
            self.latencies_us,
            self.occurred_at,
            self.event_ids,
        ):
            for index in reversed(indexes):
                del column[index]


@dataclass(slots=True)
class Sorted:
    """A sorted batch. Repeats inside it are counted here; the store counts those of earlier batches."""

    outcomes: NewOutcomes = field(default_factory=NewOutcomes)
    refused: list[tuple[str, str]] = field(default_factory=list)
    duplicates: int = 0
    conflicts: int = 0


def digest(data: bytes) -> int:
    """The first 8 bytes of BLAKE2b as a signed number, as PostgreSQL's bigint takes it.

    Keys are compared within one user only, so whoever finds a collision deceives nobody else.
    """
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


def sort(
    reported: Iterable[pb.Outcome], *, masters: Collection[int], now_us: int, limits: OutcomeLimits
) -> Sorted:
    """Sorts a batch of a user who follows `masters`."""
    result = Sorted()
    bodies: dict[int, int] = {}
    for outcome in reported:
        problem = _problem(outcome, masters, now_us, limits)
        if problem is not None:
            result.refused.append((outcome.event_id[:_NAME_CHARACTERS_MAX], problem))
            continue
        event_key, body_key = (
            digest(outcome.event_id.encode()),
            digest(outcome.SerializeToString(deterministic=True)),
        )
        seen = bodies.get(event_key)
        if seen is None:
            bodies[event_key] = body_key
            _append(result.outcomes, outcome, event_key, body_key)
        elif seen == body_key:
            result.duplicates += 1
        else:
            result.conflicts += 1
    return result


def _problem(outcome: pb.Outcome, masters: Collection[int], now_us: int, limits: OutcomeLimits) -> str | None:
    kind = outcome.kind
    problem = problem_of(
        event_id=outcome.event_id,
        master_id=outcome.master_id,
        epoch=outcome.position.epoch,
        sequence=outcome.position.sequence,
        executed=kind == _EXECUTED,
        protected=kind == _PROTECTED,
        reason=outcome.reason,
        price_e8=outcome.price_e8,
        latency_us=outcome.latency_us,
    )
    if problem is not None:
        return problem
    if outcome.master_id not in masters:
        return f"master {outcome.master_id} is not followed"
    return time_problem_of(outcome.occurred_at_us, now_us, limits)


def _append(columns: NewOutcomes, outcome: pb.Outcome, event_key: int, body_key: int) -> None:
    position = outcome.position
    columns.event_keys.append(event_key)
    columns.body_keys.append(body_key)
    columns.master_ids.append(outcome.master_id)
    columns.epochs.append(position.epoch)
    columns.sequences.append(position.sequence)
    columns.reasons.append(outcome.reason)
    columns.prices_e8.append(outcome.price_e8)
    columns.latencies_us.append(outcome.latency_us)
    columns.occurred_at.append(datetime_from_us(outcome.occurred_at_us))
    columns.event_ids.append(outcome.event_id)
