"""Rows of the schema `risk` as objects, and decisions as columns; it runs no SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from services.risk.domain.decisions import Decision
from services.risk.domain.ladder import Level, Standing
from services.risk.domain.model import Terms, UserSums
from services.risk.domain.outcomes import Reason


class Row(Protocol):
    """What asyncpg's records and dictionaries have in common."""

    def __getitem__(self, key: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class TrustRecord:
    """The latest decision on a user, in short."""

    user_id: UUID
    version: int
    score: float
    level: Level
    decided_at: datetime

    @classmethod
    def of(cls, row: Row) -> TrustRecord:
        """From a row of trust_state with the user's id."""
        return cls(row["user_id"], row["version"], row["score"], Level(row["level"]), row["decided_at"])


@dataclass(frozen=True, slots=True)
class Evidence:
    """One rejection behind a decision."""

    master_id: int
    epoch: int
    sequence: int
    reason: Reason
    peer_rate: float
    weight: float
    reported_at: datetime

    @classmethod
    def of(cls, row: Row) -> Evidence:
        """From a row of the query `evidence`."""
        return cls(
            row["master_id"],
            row["epoch"],
            row["sequence"],
            Reason(row["reason"]),
            float(row["peer_rate"]),
            float(row["weight"]),
            row["reported_at"],
        )

    def as_json(self) -> dict[str, Any]:
        """How it is kept in trust_decisions.evidence."""
        return {
            "master_id": self.master_id,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "reason": self.reason.name.lower(),
            "peer_rate": round(self.peer_rate, 6),
            "weight": round(self.weight, 6),
            "reported_at": self.reported_at.isoformat(),
        }


def evidence_of(stored: str) -> list[Evidence]:
    """Evidence as trust_decisions keeps it."""
    return [
        Evidence(
            one["master_id"],
            one["epoch"],
            one["sequence"],
            Reason[one["reason"].upper()],
            one["peer_rate"],
            one["weight"],
            datetime.fromisoformat(one["reported_at"]),
        )
        for one in json.loads(stored)
    ]


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """A decision as it was stored."""

    decision: Decision
    kind: str
    decided_at: datetime
    model_version: str
    fencing_token: int
    explanation: str
    evidence: list[Evidence]

    @property
    def trust(self) -> TrustRecord:
        """The decision in short."""
        made = self.decision
        return TrustRecord(made.user_id, made.version, made.score, made.level, self.decided_at)

    @classmethod
    def of(cls, row: Row) -> StoredDecision:
        """From a row of trust_decisions."""
        sums = UserSums(
            row["weight"], row["exposure"], row["excess"], row["violations"], row["signals"], row["rejected"]
        )
        terms = Terms(row["rejection"], row["selectivity"], row["integrity"], row["rejection_lower_bound"])
        decision = Decision(
            user_no=row["user_no"],
            user_id=row["user_id"],
            version=row["version"],
            score=row["score"],
            level=Level(row["level"]),
            before=Standing(row["previous_score"], Level(row["previous_level"])),
            is_fresh=row["is_fresh"],
            sums=sums,
            terms=terms,
        )
        return cls(
            decision,
            row["kind"],
            row["decided_at"],
            row["model_version"],
            row["fencing_token"],
            row["explanation"],
            evidence_of(row["evidence"]),
        )


def decision_columns(
    decisions: Sequence[Decision], words: Sequence[str], evidence: Mapping[int, Sequence[Evidence]]
) -> tuple[list[Any], ...]:
    """The columns of insert_decisions, in its order."""
    documents = [json.dumps([one.as_json() for one in evidence.get(d.user_no, ())]) for d in decisions]
    return (
        [d.user_no for d in decisions],
        [d.user_id for d in decisions],
        [d.version for d in decisions],
        [d.score for d in decisions],
        [d.level.value for d in decisions],
        [d.before.checked_score for d in decisions],
        [d.before.level.value for d in decisions],
        [d.is_fresh for d in decisions],
        [d.sums.weight for d in decisions],
        [d.sums.exposure for d in decisions],
        [d.sums.excess for d in decisions],
        [d.sums.violations for d in decisions],
        [d.sums.signals for d in decisions],
        [d.sums.rejected for d in decisions],
        [d.terms.rejection for d in decisions],
        [d.terms.selectivity for d in decisions],
        [d.terms.integrity for d in decisions],
        [d.terms.rejection_lower_bound for d in decisions],
        list(words),
        documents,
    )
