"""Pauses and who may end them: operators and risk pause independently, the stricter pause counts; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from uuid import UUID

from services.common.errors import FailedPreconditionError


class PauseScope(IntEnum):
    """What a pause withholds, the stricter the greater; numbered as in the contract."""

    NONE = 0
    CLOSE_ONLY = 1
    ALL = 2


class PausedBy(IntEnum):
    """Whose pause counts; numbered as in the contract."""

    NOBODY = 0
    OPERATOR = 1
    RISK = 2


class SyncState(IntEnum):
    """Whether a subscriber is in step; numbered as in the contract."""

    UNKNOWN = 0
    SYNCED = 1
    DEGRADED_GAP = 2
    RESYNCING = 3


@dataclass(frozen=True, slots=True)
class Pause:
    """One side's pause; scope NONE is no pause."""

    scope: PauseScope = PauseScope.NONE
    reason: str = ""


NO_PAUSE = Pause()


@dataclass(frozen=True, slots=True)
class Subscription:
    """One user following one master. `version` rises with each change of the pause that counts and with the end."""

    subscription_id: UUID
    user_id: UUID
    master_id: int
    operator_pause: Pause
    risk_pause: Pause
    version: int
    created_at: datetime
    cancelled_at: datetime | None
    acknowledged: tuple[int, int] = (0, 0)
    sync_state: SyncState = SyncState.UNKNOWN
    sync_reason: str = ""
    sync_changed_at: datetime | None = None
    full_sync_due: int = 0
    """Number of the full sync that was asked for and is not done; 0 is none."""

    @property
    def paused_by(self) -> PausedBy:
        """Whose pause counts: the stricter one's, and of two equal ones the operator's."""
        if self.operator_pause.scope is PauseScope.NONE and self.risk_pause.scope is PauseScope.NONE:
            return PausedBy.NOBODY
        return PausedBy.OPERATOR if self.operator_pause.scope >= self.risk_pause.scope else PausedBy.RISK

    @property
    def pause(self) -> Pause:
        """The pause that counts."""
        return self.risk_pause if self.paused_by is PausedBy.RISK else self.operator_pause

    def paused(self, scope: PauseScope, reason: str) -> Subscription:
        """As an operator pauses it; the same object when that changes nothing.

        Raises:
            FailedPreconditionError: it was cancelled.
        """
        self.require_active()
        return self._with(operator_pause=Pause(scope, reason))

    def resumed(self) -> Subscription:
        """As an operator resumes it, whoever paused; the same object when that changes nothing.

        Raises:
            FailedPreconditionError: it was cancelled.
        """
        self.require_active()
        return self._with(operator_pause=NO_PAUSE, risk_pause=NO_PAUSE)

    def with_risk_pause(self, pause: Pause) -> Subscription:
        """As risk decides: it sets and ends its own pause and never an operator's. Nothing changes after the end."""
        return self if self.cancelled_at is not None else self._with(risk_pause=pause)

    def cancelled(self, now: datetime) -> Subscription:
        """As it is after its end; the same object when it had ended before."""
        if self.cancelled_at is not None:
            return self
        return replace(self, cancelled_at=now, version=self.version + 1)

    def _with(self, *, operator_pause: Pause | None = None, risk_pause: Pause | None = None) -> Subscription:
        operator = self.operator_pause if operator_pause is None else operator_pause
        risk = self.risk_pause if risk_pause is None else risk_pause
        # A repeat of the same scope keeps its first reason, so that repeating a call changes nothing.
        operator = self.operator_pause if operator.scope is self.operator_pause.scope else operator
        risk = self.risk_pause if risk.scope is self.risk_pause.scope else risk
        if operator is self.operator_pause and risk is self.risk_pause:
            return self
        changed = replace(self, operator_pause=operator, risk_pause=risk)
        counts = (changed.pause, changed.paused_by) != (self.pause, self.paused_by)
        return replace(changed, version=self.version + counts)

    def require_active(self) -> None:
        """Raises FailedPreconditionError when it was cancelled."""
        if self.cancelled_at is not None:
            raise FailedPreconditionError("the subscription was cancelled", reason="SUBSCRIPTION_CANCELLED")


@dataclass(frozen=True, slots=True)
class NewSubscription:
    """A subscription to be made, with the first period's fee; its fields are checked."""

    user_id: UUID
    master_id: int
    fee_e8: int
    fee_asset: str
    platform_share_bps: int


@dataclass(frozen=True, slots=True)
class Entitlement:
    """One master that a user may follow."""

    subscription_id: UUID
    master_id: int
    pause: PauseScope
    version: int
    full_sync_due: int = 0


@dataclass(frozen=True, slots=True)
class SyncTransition:
    """One change of whether a subscriber is in step; without a time it happened now."""

    sync_state: SyncState
    reason: str
    changed_at: datetime | None
    position: tuple[int, int] | None = None
    """(epoch, sequence): everything up to here was told when it did. None: it is not known."""


@dataclass(frozen=True, slots=True)
class SubscriberPosition:
    """How far a subscriber has come (None leaves what is stored), and what happened meanwhile, oldest first."""

    user_id: UUID
    master_id: int
    acknowledged: tuple[int, int] | None
    transitions: tuple[SyncTransition, ...] = ()
    full_sync_done: int = 0


@dataclass(frozen=True, slots=True)
class FullSyncFilter:
    """Which subscriptions are to be brought in step anew; None is any."""

    subscription_id: UUID | None
    user_id: UUID | None
    master_id: int | None


class TransitionKind(IntEnum):
    """What a transition is about; numbered as in the contract."""

    CREATED = 1
    PAUSE = 2
    SYNC = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of a subscription's history. The values are SyncStates for SYNC, PauseScopes else."""

    history_id: int
    changed_at: datetime
    kind: TransitionKind
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class TrustDecision:
    """Risk's decision on a user; its fields are checked. `pause` NO_PAUSE ends what risk had paused."""

    user_id: UUID
    trust_score: float
    version: int
    pause: Pause
    reason: str
