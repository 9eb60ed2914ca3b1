"""The detector: folds reports, scores, stores decisions, has ledger apply them; no rules and no SQL of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.common.errors import NotFoundError, ServiceError, UnavailableError
from services.risk import metrics
from services.risk.detector_store import Check, DetectorStore, Scoring, Unapplied
from services.risk.domain.decisions import Candidate, Decision, KeepingRules, decide, is_worth_keeping
from services.risk.ledger import HeldTrust, Ledger
from services.risk.records import Evidence, TrustRecord
from services.risk.settings import RiskSettings

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class CheckResult:
    """What a check found. `outcomes` are those behind all users' scores."""

    users: int = 0
    outcomes: int = 0
    changed: list[TrustRecord] = field(default_factory=list)
    duration_seconds: float = 0.0


@dataclass(slots=True)
class _Sending:
    """One round of sending decisions: versions taken by user number, and the last failure."""

    taken: dict[int, int] = field(default_factory=dict)
    failure: ServiceError | None = None


class Detector:
    """Runs checks, one at a time over all processes, and sends decisions to ledger."""

    def __init__(self, store: DetectorStore, ledger: Ledger, settings: RiskSettings) -> None:
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._rules = KeepingRules(settings.decision_score_delta, settings.decision_heartbeat_seconds)
        self._slots = asyncio.Semaphore(settings.apply_concurrency_max)

    async def run_check(self, fence: int | None = None) -> CheckResult:
        """Scores everybody and sends what was decided to ledger; what ledger cannot take follows later.

        `fence` is the leader's token; without it whoever leads does not matter.

        Raises:
            AbortedError: a check is running, or (FencedError) another process leads now.
            UnavailableError: the database is away; a check that was cut off is made good by the next one.
        """
        began = time.perf_counter()
        try:
            async with self._store.check() as check:
                result = await self._check(check, fence)
                result.duration_seconds = time.perf_counter() - began
                await check.set_checked(round(result.duration_seconds * 1_000))
        except BaseException as error:
            reason = error.reason if isinstance(error, ServiceError) else type(error).__name__
            metrics.CHECKS.labels(reason.lower()).inc()
            raise
        metrics.CHECKS.labels("ok").inc()
        metrics.CHECK_SECONDS.observe(result.duration_seconds)
        metrics.LAST_SUCCESS.set_to_current_time()
        await self.apply()
        return result

    async def apply(self) -> bool:
        """Sends decisions that ledger has not taken yet, pauses first; whether it took all of them."""
        waiting = await self._store.unapplied(self._settings.apply_users_max)
        sending = _Sending()
        async with asyncio.TaskGroup() as tasks:
            for one in waiting:
                tasks.create_task(self._apply_one(one, sending))
        if sending.taken:
            await self._store.set_applied(sending.taken)
        if sending.failure is not None:
            left = len(waiting) - len(sending.taken)
            _log.warning(
                "%d of %d decisions wait for ledger: %s", left, len(waiting), sending.failure.message
            )
        return sending.failure is None

    async def publish_distribution(self) -> None:
        """Sets the gauges that show all users' trust."""
        levels = await self._store.users_by_level()
        for level in ("good", "warn", "close_only", "paused"):
            metrics.USERS.labels(level).set(levels.get(level, 0))
        for bound, users in (await self._store.users_by_score(metrics.SCORE_BOUNDS)).items():
            metrics.TRUST_SCORE.labels(f"{bound:g}").set(users)

    async def _check(self, check: Check, fence: int | None) -> CheckResult:
        state = await check.state()
        waiting, newest = await check.pending_batches()
        metrics.PENDING_BATCHES.set(waiting)
        if state.now - state.rebuilt_at >= timedelta(seconds=self._settings.rebuild_interval_seconds):
            await check.rebuild(fence, state.now, self._settings.rebuild_timeout_seconds)
            state = await check.state()
        # Reports go on coming: what comes after the check began is the next one's.
        for _ in range(waiting + 1):
            if not await check.fold(fence, state.reference_at, self._settings.fold_outcomes_max, newest):
                break
        result = CheckResult()
        async with check.scoring(fence) as scoring:
            decisions = await self._score(scoring)
            result.users, result.outcomes = await scoring.totals()
            now = scoring.state.now
        self._announce(decisions)
        result.changed = [TrustRecord(d.user_id, d.version, d.score, d.level, now) for d in decisions]
        return result

    async def _score(self, scoring: Scoring) -> list[Decision]:
        heartbeat_before = scoring.state.now - timedelta(seconds=self._rules.heartbeat_seconds)
        kept: list[Decision] = []
        async for page in scoring.candidates(heartbeat_before, self._settings.score_page_size):
            decisions, scores = self._decide(page, scoring.state.now)
            if scores:
                await scoring.note_scores(scores)
            if decisions:
                await scoring.keep(
                    decisions, {d.user_no: await self._evidence(scoring, d) for d in decisions}
                )
            kept += decisions
        return kept

    def _decide(self, page: Sequence[Candidate], now: datetime) -> tuple[list[Decision], dict[int, float]]:
        """Decisions worth keeping, and new scores of users whose decision stands."""
        decisions: list[Decision] = []
        scores: dict[int, float] = {}
        for candidate in page:
            decision = decide(candidate)
            kept = candidate.kept
            if kept is None or is_worth_keeping(decision, kept, now, self._rules):
                decisions.append(decision)
            elif decision.score != kept.checked_score:
                scores[candidate.user_no] = decision.score
        return decisions, scores

    async def _evidence(self, scoring: Scoring, decision: Decision) -> list[Evidence]:
        if not decision.sums.rejected or decision.score == 100.0:
            return []
        return await scoring.evidence(
            decision.user_no, self._settings.evidence_signals_max, self._settings.evidence_candidates_max
        )

    def _announce(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            metrics.DECISIONS.labels(decision.level.value).inc()
            if decision.level is not decision.before.level:
                _log.warning(
                    "trust level changed from %s to %s",
                    decision.before.level,
                    decision.level,
                    extra={"user.id": str(decision.user_id), "trust.score": round(decision.score, 2)},
                )

    async def _apply_one(self, one: Unapplied, sending: _Sending) -> None:
        async with self._slots:
            if isinstance(sending.failure, UnavailableError):
                return
            try:
                result = await self._send(one)
            except ServiceError as error:
                sending.failure = error
                result = "failed"
        metrics.APPLIED.labels(result).inc()
        if result in ("applied", "seen", "unknown_user"):
            sending.taken[one.user_no] = one.version

    async def _send(self, one: Unapplied) -> str:
        try:
            applied = await self._ledger.apply_trust(
                one.user_id, one.score, one.version, one.level, one.explanation
            )
        except NotFoundError:
            # Nobody to pause. A new decision on the user is sent again.
            return "unknown_user"
        if applied:
            return "applied"
        return "repaired" if await self._repaired(one) else "seen"

    async def _repaired(self, one: Unapplied) -> bool:
        """Whether ledger holds what we do not know of, because our database was restored from an older one."""
        held = await self._ledger.held_trust(one.user_id)
        if held.version < one.version or held == HeldTrust(one.version, one.score):
            return False
        _log.warning(
            "ledger holds trust version %d with score %g, ours is %d with %g: going above",
            held.version,
            held.score,
            one.version,
            one.score,
        )
        await self._store.repair_version(one.user_no, one.version, held.version)
        return True
