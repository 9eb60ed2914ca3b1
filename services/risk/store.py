"""Where outcomes, trust and overrides are kept; the only place that knows their SQL. It scores nobody."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from services.common import pg
from services.common.errors import FailedPreconditionError, UnavailableError
from services.risk.domain.decisions import Decision
from services.risk.domain.explanation import explain
from services.risk.domain.ladder import NEWCOMER, Level, Standing, level_of_override
from services.risk.domain.model import PARAMETERS, Terms, UserSums
from services.risk.domain.outcomes import Reason
from services.risk.intake import NewOutcomes
from services.risk.queries import QUERIES
from services.risk.records import Evidence, StoredDecision, TrustRecord, decision_columns, evidence_of

CHECK_LOCK: Final = 0x7269_736B_6368_6563
_REASON_NAMES: Final = [reason.name.lower() for reason in Reason if reason is not Reason.EXECUTED]


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch: indexes into it. `doubled` are second events on a signal that had one."""

    stored: int
    duplicates: int
    conflicts: int
    doubled: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OverrideOrder:
    """An operator's word."""

    user_id: UUID
    score: float
    operator_name: str
    reason: str


class RiskStore:
    """Outcomes, trust and overrides in the schema `risk`. Failures of the database are service errors."""

    def __init__(
        self,
        pool: pg.Pool,
        *,
        outcome_age_days_max: int,
        user_cache_entries_max: int,
        check_lock_timeout_seconds: float,
    ) -> None:
        self._pool = pool
        self._outcome_age_days_max = outcome_age_days_max
        self._check_lock_timeout_ms = int(check_lock_timeout_seconds * 1_000)
        self._user_cache_entries_max = user_cache_entries_max
        self._user_numbers: OrderedDict[UUID, int] = OrderedDict()

    async def user_number(self, user_id: UUID) -> int:
        """The number of a user, given on the first call for it."""
        number = self._user_numbers.get(user_id)
        if number is None:
            number = await self._number_from_database(user_id)
            self._user_numbers[user_id] = number
            if len(self._user_numbers) > self._user_cache_entries_max:
                self._user_numbers.popitem(last=False)
        else:
            self._user_numbers.move_to_end(user_id)
        return number

    async def store_outcomes(self, user_id: UUID, outcomes: NewOutcomes) -> Stored:
        """Stores a batch of one user, all in one transaction. Safe to repeat.

        An event that is there already is a duplicate or, with another body, a conflict; neither changes anything.
        """
        try:
            return await self._store(user_id, outcomes)
        except UnavailableError:
            # It may come back restored from an older copy, in which numbers stand for other users.
            self._user_numbers.clear()
            raise

    async def _store(self, user_id: UUID, outcomes: NewOutcomes) -> Stored:
        user_no = await self.user_number(user_id)
        days = self._days(outcomes.occurred_at)
        try:
            rows = await self._insert(user_no, user_id, outcomes, days)
        except FailedPreconditionError:
            # No chunk for one of the days: nobody led for a week, or the clock was set.
            await self.ensure_outcome_chunks(
                min(days[0], _today()), max(days[1], _today()) + timedelta(days=1)
            )
            rows = await self._insert(user_no, user_id, outcomes, days)
        if not rows:
            return Stored(len(outcomes), 0, 0, ())
        return await self._classify(user_no, outcomes, [row["event_key"] for row in rows], days)

    async def store_violations(self, user_id: UUID, *, conflicts: int, doubled: int, unmatched: int) -> None:
        """Counts reports that contradict others or name signals that never were."""
        user_no = await self.user_number(user_id)
        await self._pool.execute(QUERIES.store_violations, user_no, conflicts, doubled, unmatched)

    async def ensure_outcome_chunks(self, first: date, last: date) -> None:
        """Makes the chunks that outcomes of these days, reported today, go into."""
        async with self._pool.transaction() as connection:
            await connection.fetch(QUERIES.ensure_chunks, "risk.outcomes", first, last, 1)
            for relation in ("risk.protection_logs", "risk.integrity_violations"):
                await connection.fetch(
                    QUERIES.ensure_chunks, relation, _today(), _today() + timedelta(days=1), 1
                )

    async def get_trust(self, user_id: UUID) -> TrustRecord | None:
        """The latest decision on a user; None when there is none."""
        row = await self._pool.fetchrow(QUERIES.get_trust, user_id)
        return None if row is None else TrustRecord.of(row)

    async def get_decision(self, user_id: UUID) -> StoredDecision | None:
        """The latest decision with all that it was computed from."""
        row = await self._pool.fetchrow(QUERIES.get_decision, user_id)
        return None if row is None else StoredDecision.of(row)

    async def list_decisions(self, user_id: UUID, limit: int) -> list[StoredDecision]:
        """A user's decisions, newest first."""
        rows = await self._pool.fetch(QUERIES.list_decisions, user_id, limit)
        return [StoredDecision.of(row) for row in rows]

    async def list_at_risk(
        self, score_below: float, *, after: tuple[float, int], limit: int
    ) -> list[tuple[int, TrustRecord]]:
        """Users below a score, lowest first, behind (score, user number) `after`; with their numbers."""
        rows = await self._pool.fetch(QUERIES.list_at_risk, score_below, *after, limit)
        return [(row["user_no"], TrustRecord.of(row)) for row in rows]

    async def override(self, order: OverrideOrder) -> TrustRecord:
        """Sets a user's trust, forgets the user's outcomes up to now for scoring, and keeps who said so.

        Waits for a running check. Raises AbortedError when that takes longer than the lock's time-out.
        """
        user_no = await self.user_number(order.user_id)
        async with self._pool.transaction() as connection:
            await connection.execute(f"set local lock_timeout = {self._check_lock_timeout_ms}")
            await connection.execute(QUERIES.wait_for_check, CHECK_LOCK)
            fence = await connection.fetchval(QUERIES.hold_fence, None)
            await connection.execute(QUERIES.forget_outcomes, user_no)
            before = await connection.fetchrow(QUERIES.state_for_update, user_no)
            now = await connection.fetchval("select clock_timestamp()")
            decision = _overriding(order, user_no, before)
            await put_decisions(
                connection,
                [decision],
                kind="override",
                fence=fence,
                decided_at=now,
                evidence={},
                because=order,
            )
            await connection.execute(
                QUERIES.insert_override,
                user_no,
                decision.version,
                order.score,
                order.operator_name,
                order.reason,
                decision.before.checked_score,
                decision.before.level.value,
            )
        return TrustRecord(order.user_id, decision.version, decision.score, decision.level, now)

    async def _number_from_database(self, user_id: UUID) -> int:
        rows = await self._pool.fetch(QUERIES.user_numbers, [user_id])
        if not rows:
            await self._pool.execute(QUERIES.add_user, user_id)
            rows = await self._pool.fetch(QUERIES.user_numbers, [user_id])
        return int(rows[0]["user_no"])

    async def _insert(
        self, user_no: int, user_id: UUID, outcomes: NewOutcomes, days: tuple[date, date]
    ) -> list[asyncpg.Record]:
        return await self._pool.fetch(
            QUERIES.store_outcomes,
            user_no,
            user_id,
            outcomes.event_keys,
            outcomes.body_keys,
            outcomes.master_ids,
            outcomes.epochs,
            outcomes.sequences,
            outcomes.reasons,
            outcomes.prices_e8,
            outcomes.latencies_us,
            outcomes.occurred_at,
            outcomes.event_ids,
            *days,
            _REASON_NAMES,
        )

    async def _classify(
        self, user_no: int, outcomes: NewOutcomes, keys: Sequence[int], days: tuple[date, date]
    ) -> Stored:
        rows = await self._pool.fetch(QUERIES.stored_bodies, user_no, list(keys), *days)
        bodies = {row["event_key"]: row["body_key"] for row in rows}
        refused = set(keys)
        duplicates = conflicts = 0
        doubled: list[int] = []
        for index, (key, body) in enumerate(zip(outcomes.event_keys, outcomes.body_keys, strict=True)):
            if key not in refused:
                continue
            if key not in bodies:
                doubled.append(index)
            elif bodies[key] == body:
                duplicates += 1
            else:
                conflicts += 1
        return Stored(len(outcomes) - len(keys), duplicates, conflicts, tuple(doubled))

    def _days(self, occurred_at: Sequence[datetime]) -> tuple[date, date]:
        """First and last day whose chunks may hold an event of this batch: all that were open to reports lately."""
        age = timedelta(days=self._outcome_age_days_max)
        return min(occurred_at).date() - age, max(occurred_at).date() + age


def _today() -> date:
    return datetime.now(UTC).date()


def _overriding(order: OverrideOrder, user_no: int, before: asyncpg.Record | None) -> Decision:
    standing = NEWCOMER if before is None else Standing(before["checked_score"], Level(before["level"]))
    return Decision(
        user_no=user_no,
        user_id=order.user_id,
        version=1 if before is None else before["version"] + 1,
        score=order.score,
        level=level_of_override(order.score),
        before=standing,
        is_fresh=True,
        sums=UserSums(),
        terms=Terms(0.0, 0.0, 0.0, 0.0),
    )


async def put_decisions(
    connection: pg.Connection,
    decisions: Sequence[Decision],
    *,
    kind: str,
    fence: int,
    decided_at: datetime,
    evidence: dict[int, list[Evidence]],
    because: OverrideOrder | None = None,
) -> None:
    """Stores decisions and makes them the users' standing, in the caller's transaction."""
    words = [_words(decision, because) for decision in decisions]
    columns = decision_columns(decisions, words, evidence)
    await connection.execute(QUERIES.insert_decisions, decided_at, kind, PARAMETERS.version, fence, *columns)
    await connection.execute(QUERIES.put_states, decided_at, *_state_columns(decisions))


def _words(decision: Decision, because: OverrideOrder | None) -> str:
    if because is None:
        return explain(decision.score, decision.level, decision.sums, decision.terms)
    return f"Trust {because.score:.1f}: set by {because.operator_name}: {because.reason}"


def _state_columns(decisions: Iterable[Decision]) -> tuple[list[int], list[int], list[float], list[str]]:
    listed = list(decisions)
    return (
        [d.user_no for d in listed],
        [d.version for d in listed],
        [d.score for d in listed],
        [d.level.value for d in listed],
    )


__all__ = ["CHECK_LOCK", "Evidence", "OverrideOrder", "RiskStore", "Stored", "evidence_of", "put_decisions"]
