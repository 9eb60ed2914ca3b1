"""Of all processes one leads: it checks at the interval, sends what is left to ledger, and keeps the chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from services.common.errors import AbortedError, ServiceError, UnavailableError
from services.risk import metrics
from services.risk.detector import Detector
from services.risk.detector_store import DetectorStore, FencedError
from services.risk.lease import Lease, leading
from services.risk.settings import RiskSettings

_log = logging.getLogger(__name__)


class Leadership:
    """Runs the detector in this process while it leads."""

    def __init__(self, settings: RiskSettings, url: str, store: DetectorStore, detector: Detector) -> None:
        self._settings = settings
        self._url = url
        self._store = store
        self._detector = detector
        self.is_leader = False
        """Whether this process leads."""

    async def run(self) -> None:
        """Waits for the lead, leads, and waits again, until cancelled."""
        while True:
            try:
                await _apart(self._lead_once)
            except* ServiceError as group:
                _log.warning("not leading: %s", _first(group).message)
            await asyncio.sleep(self._settings.lease_retry_seconds)

    async def _lead_once(self) -> None:
        settings = self._settings
        async with leading(
            self._url,
            role=settings.database_role,
            lease_seconds=settings.lease_seconds,
            retry_seconds=settings.lease_retry_seconds,
        ) as lease:
            self._set_leader(True, lease.token)
            _log.info("leading with token %d", lease.token)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(lease.hold(), name="hold lease")
                    tasks.create_task(self._check_for_ever(lease), name="check trust")
                    tasks.create_task(self._keep_chunks_for_ever(), name="keep chunks")
            finally:
                self._set_leader(False, lease.token)

    async def _check_for_ever(self, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + await self._first_delay_seconds()
        while True:
            await self._send_until(due)
            began = loop.time()
            await self._check_once(lease)
            # A check that takes long must not take all of the database's time.
            due = max(began + self._settings.check_interval_seconds, 2 * loop.time() - began)

    async def _first_delay_seconds(self) -> float:
        """A new leader goes on in the old one's rhythm: two checks at once would make the hysteresis worthless."""
        state = await self._store.state()
        if state.last_check_at is None:
            return 0.0
        age_seconds = (state.now - state.last_check_at).total_seconds()
        return min(
            max(0.0, self._settings.check_interval_seconds - age_seconds),
            self._settings.check_interval_seconds,
        )

    async def _send_until(self, due: float) -> None:
        """Sleeps until `due`, and meanwhile sends decisions that ledger could not take."""
        loop = asyncio.get_running_loop()
        while (left := due - loop.time()) > 0:
            await asyncio.sleep(min(left, self._settings.apply_retry_seconds))
            if due - loop.time() > 0:
                await self._tolerating("sending decisions", self._detector.apply)

    async def _check_once(self, lease: Lease) -> None:
        async def check() -> None:
            result = await self._detector.run_check(lease.token)
            await self._detector.publish_distribution()
            _log.debug(
                "checked %d users on %d outcomes in %.3f s, %d decisions",
                result.users,
                result.outcomes,
                result.duration_seconds,
                len(result.changed),
            )

        await self._tolerating("check", check)

    async def _keep_chunks_for_ever(self) -> None:
        settings = self._settings
        retention_days = {
            "risk.outcomes": settings.outcome_retention_days,
            "risk.protection_logs": settings.protection_log_retention_days,
            "risk.integrity_violations": settings.outcome_retention_days,
            "risk.trust_decisions": settings.decision_retention_days,
        }

        async def keep() -> None:
            report_age_days = settings.outcome_age_days_max
            for name in await self._store.keep_chunks(
                report_age_days=report_age_days, retention_days=retention_days
            ):
                _log.info("dropped %s", name)

        while True:
            await self._tolerating("upkeep of chunks", keep)
            await asyncio.sleep(settings.chunk_upkeep_seconds)

    async def _tolerating(self, what: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Does `work`; a failure is logged and the next turn tries again. Losing the lead is not tolerated."""
        try:
            await _apart(work)
        except FencedError:
            raise
        except (AbortedError, UnavailableError) as error:
            _log.warning("%s failed: %s", what, error.message)
        except ServiceError as error:
            _log.error("%s failed: %s", what, error.message)
        except Exception:
            # The detector must not end for good over one bad turn; the alert on its last success tells.
            _log.exception("%s failed", what)

    def _set_leader(self, leader: bool, token: int) -> None:
        self.is_leader = leader
        metrics.LEADER.set(leader)
        metrics.FENCING_TOKEN.set(token)


async def _apart(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Does `work` in a task of its own, and cancels it with the caller.

    Before Python 3.13 a task in which a TaskGroup failed goes on counting as cancelled (python/cpython#116720), and
    the database's next failure there would pass for a cancellation: the detector would end without a word.

    Raises:
        UnavailableError: it was cancelled though nobody cancelled the caller.
    """
    task = asyncio.current_task()
    assert task is not None
    try:
        await asyncio.create_task(work())
    except asyncio.CancelledError as error:
        if task.cancelling():
            raise
        raise UnavailableError("cut off", reason="CUT_OFF") from error


def _first(group: BaseExceptionGroup[ServiceError]) -> ServiceError:
    inner = group.exceptions[0]
    return inner if isinstance(inner, ServiceError) else _first(inner)
