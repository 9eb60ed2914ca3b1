"""What the detector reads and writes: sums, decisions, chunks; only this knows their SQL. It decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from services.common import pg
from services.common.errors import AbortedError
from services.risk.domain.decisions import Candidate, Decision, Kept
from services.risk.domain.ladder import Level
from services.risk.domain.model import PARAMETERS, Parameters, UserSums
from services.risk.queries import QUERIES
from services.risk.records import Evidence
from services.risk.store import CHECK_LOCK, put_decisions

_FOLD_BATCHES_MAX: Final = 20_000
_NEWEST_OF_ALL: Final = 2**63 - 1
_IDLE_MARGIN_MS: Final = 30_000
# Today's chunk has no statistics yet and grows a hundredfold while a cached plan lives: what was right for an empty
# table would read all of it for each signal. Compiling takes longer than running.
_PLANNING: Final = ("set plan_cache_mode = force_custom_plan", "set jit = off")
_FOLD_PLANNING: Final = (
    "set local enable_seqscan = off",
    "set local enable_hashjoin = off",
    "set local enable_mergejoin = off",
)
_CHUNK_DAYS: Final = {
    "risk.outcomes": 1,
    "risk.protection_logs": 1,
    "risk.integrity_violations": 1,
    "risk.trust_decisions": 7,
}
_CHUNKS_AHEAD_DAYS: Final = 7


class FencedError(AbortedError):
    """Another process leads now; nothing was written."""

    default_reason = "FENCED"


@dataclass(frozen=True, slots=True)
class DetectorState:
    """Where the detector stands, by the database's clock."""

    reference_at: datetime
    rebuilt_at: datetime
    last_check_at: datetime | None
    last_check_duration_ms: int
    fencing_token: int
    now: datetime


@dataclass(frozen=True, slots=True)
class Unapplied:
    """A decision that ledger has not taken yet."""

    user_no: int
    user_id: UUID
    version: int
    score: float
    level: Level
    explanation: str


class DetectorStore:
    """The detector's side of the schema `risk`. Failures of the database are service errors."""

    def __init__(self, pool: pg.Pool, *, parameters: Parameters = PARAMETERS) -> None:
        self._pool = pool
        self._parameters = parameters

    @asynccontextmanager
    async def check(self) -> AsyncIterator[Check]:
        """The right to check, which one process has at a time.

        If this process hangs, PostgreSQL ends the session and with it the lock.

        Raises:
            AbortedError: a check is running.
        """
        async with self._pool.connection() as connection:
            await connection.execute(f"set idle_session_timeout = {_IDLE_MARGIN_MS}")
            await connection.execute(f"set idle_in_transaction_session_timeout = {_IDLE_MARGIN_MS}")
            for setting in _PLANNING:
                await connection.execute(setting)
            if not await connection.fetchval(QUERIES.lock_check, CHECK_LOCK):
                raise AbortedError("a check is running", reason="CHECK_RUNNING")
            # The pool's reset of a connection that comes back releases the lock and the settings.
            yield Check(connection, self._parameters)

    async def state(self) -> DetectorState:
        """Where the detector stands."""
        row = await self._pool.fetchrow(QUERIES.detector_state)
        assert row is not None, "the migrations insert the row"
        return _state(row)

    async def unapplied(self, limit: int) -> list[Unapplied]:
        """Decisions that ledger has not taken yet, pauses first."""
        rows = await self._pool.fetch(QUERIES.unapplied, limit)
        return [
            Unapplied(
                row["user_no"],
                row["user_id"],
                row["version"],
                row["score"],
                Level(row["level"]),
                row["explanation"],
            )
            for row in rows
        ]

    async def set_applied(self, versions: Mapping[int, int]) -> None:
        """Ledger has taken these versions, by user number."""
        numbers = sorted(versions)
        await self._pool.execute(QUERIES.set_applied, numbers, [versions[number] for number in numbers])

    async def repair_version(self, user_no: int, version: int, above: int) -> None:
        """Stores the decision `version` again as version `above` + 1, unless a newer decision has come."""
        await self._pool.execute(QUERIES.repair_version, user_no, version, above + 1)

    async def users_by_level(self) -> dict[str, int]:
        """How many users stand on each step."""
        return {row["level"]: row["users"] for row in await self._pool.fetch(QUERIES.users_by_level)}

    async def users_by_score(self, bounds: Sequence[float]) -> dict[float, int]:
        """How many users have at most each score."""
        rows = await self._pool.fetch(QUERIES.users_by_score, list(bounds))
        return {row["bound"]: row["users"] for row in rows}

    async def keep_chunks(self, *, report_age_days: int, retention_days: Mapping[str, int]) -> list[str]:
        """Makes the chunks of the coming days and drops those past retention; the names of the dropped ones.

        Raises AbortedError when a running statement holds a table for long; try again later.
        """
        today = datetime.now(UTC).date()
        dropped: list[str] = []
        for relation, days in _CHUNK_DAYS.items():
            first = today - timedelta(days=report_age_days + 1) if relation == "risk.outcomes" else today
            async with self._pool.transaction() as connection:
                # Longer than this and everybody who reports would queue behind us.
                await connection.execute("set local lock_timeout = '2s'")
                last = today + timedelta(days=max(_CHUNKS_AHEAD_DAYS, 2 * days))
                await connection.fetch(QUERIES.ensure_chunks, relation, first, last, days)
                age = timedelta(days=retention_days[relation])
                rows = await connection.fetch(QUERIES.drop_chunks, relation, age)
                dropped += [row[0] for row in rows]
        return dropped


class Check:
    """One check's statements, on the connection that holds the right to check. Each method is one transaction."""

    def __init__(self, connection: pg.Connection, parameters: Parameters) -> None:
        self._connection = connection
        self._parameters = parameters

    async def state(self) -> DetectorState:
        """Where the detector stands."""
        row = await self._connection.fetchrow(QUERIES.detector_state)
        assert row is not None, "the migrations insert the row"
        return _state(row)

    async def pending_batches(self) -> tuple[int, int]:
        """How many batches wait to be folded, and the number of the newest."""
        row = await self._connection.fetchrow(QUERIES.pending_batches)
        assert row is not None, "it aggregates"
        return row["batches"], row["newest"]

    async def fold(
        self, fence: int | None, reference_at: datetime, outcomes_max: int, newest: int = _NEWEST_OF_ALL
    ) -> int:
        """Folds the oldest waiting batches up to the number `newest` into the sums; how many. 0: none waits.

        Raises:
            FencedError: another process leads now.
        """
        async with self._fenced(fence, isolation="repeatable_read"):
            for setting in _FOLD_PLANNING:
                await self._connection.execute(setting)
            rows = await self._connection.fetch(QUERIES.next_batches, outcomes_max, _FOLD_BATCHES_MAX, newest)
            batches = [row["batch_id"] for row in rows]
            if not batches:
                return 0
            p = self._parameters
            await self._connection.execute(
                QUERIES.fold_outcomes,
                batches,
                reference_at,
                p.half_life_seconds,
                p.prior_rejection_rate,
                p.peer_pseudo_signals,
                list(p.reason_weights),
            )
            await self._connection.execute(
                QUERIES.fold_violations, batches, reference_at, p.half_life_seconds
            )
            await self._connection.execute(QUERIES.drop_folded, batches)
        return len(batches)

    async def rebuild(self, fence: int | None, reference_at: datetime, timeout_seconds: float) -> None:
        """Computes all sums from nothing, which also drops what is past retention.

        Raises:
            FencedError: another process leads now.
        """
        p = self._parameters
        async with self._fenced(fence, isolation="repeatable_read"):
            await self._connection.execute("set local work_mem = '256MB'")
            await self._connection.execute(QUERIES.clear_sums)
            await self._connection.execute(QUERIES.clear_pending)
            await self._connection.execute(
                QUERIES.rebuild_outcomes,
                reference_at,
                p.half_life_seconds,
                p.prior_rejection_rate,
                p.peer_pseudo_signals,
                list(p.reason_weights),
                timeout=timeout_seconds,
            )
            await self._connection.execute(QUERIES.rebuild_violations, reference_at, p.half_life_seconds)
            await self._connection.execute(QUERIES.set_rebuilt, reference_at)

    @asynccontextmanager
    async def scoring(self, fence: int | None) -> AsyncIterator[Scoring]:
        """A transaction that scores users and stores what was decided, whole or not at all.

        Raises:
            FencedError: another process leads now.
        """
        async with self._fenced(fence) as held:
            state = await self.state()
            yield Scoring(self._connection, self._parameters, state, held)
            await self._connection.execute(QUERIES.set_scored)

    async def set_checked(self, duration_ms: int) -> None:
        """The check is done."""
        await self._connection.execute(QUERIES.set_checked, duration_ms)

    @asynccontextmanager
    async def _fenced(
        self, fence: int | None, *, isolation: pg.Isolation | None = None
    ) -> AsyncIterator[int]:
        async with self._connection.transaction(isolation=isolation):
            held = await self._connection.fetchval(QUERIES.hold_fence, fence)
            if held is None:
                raise FencedError("another process leads now")
            yield int(held)


class Scoring:
    """Reads and writes of one scoring transaction."""

    def __init__(
        self, connection: pg.Connection, parameters: Parameters, state: DetectorState, fence: int
    ) -> None:
        self._connection = connection
        self._parameters = parameters
        self._fence = fence
        self.state = state

    async def candidates(self, heartbeat_before: datetime, page_size: int) -> AsyncIterator[list[Candidate]]:
        """Users whose decision may have changed, a page at a time, their sums decayed to now."""
        age_seconds = (self.state.now - self.state.reference_at).total_seconds()
        factor = 2.0 ** (-age_seconds / self._parameters.half_life_seconds)
        after = -1
        while True:
            rows = await self._connection.fetch(QUERIES.candidates, heartbeat_before, after, page_size)
            if not rows:
                return
            yield [_candidate(row, factor) for row in rows]
            after = rows[-1]["user_no"]

    async def evidence(self, user_no: int, signals_max: int, candidates_max: int) -> list[Evidence]:
        """The user's heaviest rejections as of now."""
        p = self._parameters
        rows = await self._connection.fetch(
            QUERIES.evidence,
            user_no,
            signals_max,
            candidates_max,
            self.state.now,
            p.half_life_seconds,
            p.prior_rejection_rate,
            p.peer_pseudo_signals,
            list(p.reason_weights),
        )
        return [Evidence.of(row) for row in rows]

    async def totals(self) -> tuple[int, int]:
        """Users with sums, and the outcomes behind them."""
        row = await self._connection.fetchrow(QUERIES.totals)
        return (0, 0) if row is None else (row["users"], row["outcomes"])

    async def keep(self, decisions: Sequence[Decision], evidence: dict[int, list[Evidence]]) -> None:
        """Stores decisions and makes them the users' standing."""
        await put_decisions(
            self._connection,
            decisions,
            kind="check",
            fence=self._fence,
            decided_at=self.state.now,
            evidence=evidence,
        )

    async def note_scores(self, scores: Mapping[int, float]) -> None:
        """Keeps the scores of users whose decision stands, for the next check."""
        numbers = sorted(scores)
        await self._connection.execute(
            QUERIES.put_checked_scores, numbers, [scores[number] for number in numbers]
        )


def _state(row: asyncpg.Record) -> DetectorState:
    return DetectorState(
        row["reference_at"],
        row["rebuilt_at"],
        row["last_check_at"],
        row["last_check_duration_ms"],
        row["fencing_token"],
        row["now"],
    )


def _candidate(row: Any, factor: float) -> Candidate:
    sums = UserSums(
        row["weight"], row["exposure"], row["excess"], row["violations"], row["signals"], row["rejected"]
    )
    kept = None
    if row["version"] is not None:
        kept = Kept(
            row["version"], row["score"], Level(row["level"]), row["decided_at"], row["checked_score"]
        )
    return Candidate(row["user_no"], row["user_id"], sums.decayed(factor), row["is_fresh"], kept)
