"""SubscriptionService over the subscription store."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from execution.common.v1 import position_pb2
from execution.ledger.v1 import license_service_pb2, subscription_service_pb2_grpc
from execution.ledger.v1 import subscription_service_pb2 as pb
from services.common.errors import InvalidInputError
from services.common.rpc import Context
from services.ledger.domain import fields, journals
from services.ledger.domain.subscriptions import (
    NO_PAUSE,
    FullSyncFilter,
    NewSubscription,
    Pause,
    PauseScope,
    SubscriberPosition,
    Subscription,
    SyncState,
    SyncTransition,
    Transition,
    TransitionKind,
    TrustDecision,
)
from services.ledger.servicer import convert
from services.ledger.store.progress import ProgressStore
from services.ledger.store.subscriptions import SubscriptionStore
from services.ledger.store.transitions import TransitionStore

REASON_CHARACTERS_MAX = 200
TRUST_REASON_CHARACTERS_MAX = 500
FULL_SYNC_REASON_CHARACTERS_MAX = 150
POSITIONS_MAX = 10_000
TRANSITIONS_MAX = 32


class SubscriptionServicer(subscription_service_pb2_grpc.SubscriptionServiceServicer):
    """See the contract."""

    def __init__(
        self, subscriptions: SubscriptionStore, progress: ProgressStore, transitions: TransitionStore
    ) -> None:
        self._subscriptions = subscriptions
        self._progress = progress
        self._transitions = transitions

    async def CreateSubscription(
        self, request: pb.CreateSubscriptionRequest, context: Context
    ) -> pb.CreateSubscriptionResponse:
        """See the contract."""
        key = convert.key_of(request, fields.request_id_of(request.request_id))
        made = await self._subscriptions.create(key, new_subscription_from_pb(request))
        return pb.CreateSubscriptionResponse(subscription=subscription_to_pb(made))

    async def GetSubscription(
        self, request: pb.GetSubscriptionRequest, context: Context
    ) -> pb.GetSubscriptionResponse:
        """See the contract."""
        found = await self._subscriptions.get(fields.uuid_of(request.subscription_id, "subscription_id"))
        return pb.GetSubscriptionResponse(subscription=subscription_to_pb(found))

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Context
    ) -> pb.ListSubscriptionsResponse:
        """See the contract."""
        user_id = fields.uuid_of(request.user_id, "user_id") if request.user_id else None
        master_id = fields.master_id_of(request.master_id) if request.master_id else None
        page = await self._subscriptions.page(user_id, master_id, convert.page_of(request))
        return pb.ListSubscriptionsResponse(
            subscriptions=map(subscription_to_pb, page.items), next_page_token=page.next_token
        )

    async def PauseSubscription(
        self, request: pb.PauseSubscriptionRequest, context: Context
    ) -> pb.PauseSubscriptionResponse:
        """See the contract."""
        subscription_id = fields.uuid_of(request.subscription_id, "subscription_id")
        scope = scope_from_pb(request.scope, "scope")
        if scope is PauseScope.NONE:
            raise InvalidInputError.of_field("scope", "is required")
        paused = await self._subscriptions.pause(subscription_id, scope, _reason_of(request.reason))
        return pb.PauseSubscriptionResponse(subscription=subscription_to_pb(paused))

    async def ResumeSubscription(
        self, request: pb.ResumeSubscriptionRequest, context: Context
    ) -> pb.ResumeSubscriptionResponse:
        """See the contract."""
        subscription_id = fields.uuid_of(request.subscription_id, "subscription_id")
        resumed = await self._subscriptions.resume(subscription_id, _reason_of(request.reason))
        return pb.ResumeSubscriptionResponse(subscription=subscription_to_pb(resumed))

    async def CancelSubscription(
        self, request: pb.CancelSubscriptionRequest, context: Context
    ) -> pb.CancelSubscriptionResponse:
        """See the contract."""
        subscription_id = fields.uuid_of(request.subscription_id, "subscription_id")
        cancelled = await self._subscriptions.cancel(subscription_id, _reason_of(request.reason))
        return pb.CancelSubscriptionResponse(subscription=subscription_to_pb(cancelled))

    async def RecordPositions(
        self, request: pb.RecordPositionsRequest, context: Context
    ) -> pb.RecordPositionsResponse:
        """See the contract."""
        positions = positions_from_pb(request)
        recorded = await self._progress.record(positions)
        return pb.RecordPositionsResponse(recorded=recorded, unknown=len(positions) - recorded)

    async def RequestFullSync(
        self, request: pb.RequestFullSyncRequest, context: Context
    ) -> pb.RequestFullSyncResponse:
        """See the contract."""
        wanted, reason = full_sync_from_pb(request)
        if wanted.subscription_id is not None:
            (await self._subscriptions.get(wanted.subscription_id)).require_active()
        page = await self._progress.ask_for_full_syncs(wanted, reason, convert.page_of(request))
        asked = await self._subscriptions.get_many(page.items)
        return pb.RequestFullSyncResponse(
            subscriptions=map(subscription_to_pb, asked), next_page_token=page.next_token
        )

    async def ListTransitions(
        self, request: pb.ListTransitionsRequest, context: Context
    ) -> pb.ListTransitionsResponse:
        """See the contract."""
        subscription_id = fields.uuid_of(request.subscription_id, "subscription_id")
        page = await self._transitions.page(subscription_id, convert.page_of(request))
        return pb.ListTransitionsResponse(
            transitions=map(transition_to_pb, page.items), next_page_token=page.next_token
        )

    async def ApplyTrust(self, request: pb.ApplyTrustRequest, context: Context) -> pb.ApplyTrustResponse:
        """See the contract."""
        applied, changed = await self._subscriptions.apply_trust(trust_decision_from_pb(request))
        return pb.ApplyTrustResponse(applied=applied, changed=map(subscription_to_pb, changed))


def new_subscription_from_pb(request: pb.CreateSubscriptionRequest) -> NewSubscription:
    """The subscription to make.

    Raises:
        InvalidInputError: a field is wrong.
    """
    if request.fee_e8 < 0:
        raise InvalidInputError.of_field("fee_e8", "is negative")
    if request.fee_asset or request.fee_e8:
        journals.asset_of(request.fee_asset, "fee_asset")
    return NewSubscription(
        user_id=fields.uuid_of(request.user_id, "user_id"),
        master_id=fields.master_id_of(request.master_id),
        fee_e8=request.fee_e8,
        fee_asset=request.fee_asset,
        platform_share_bps=fields.between(
            request.platform_share_bps, 0, journals.BASIS_POINTS, "platform_share_bps"
        ),
    )


def scope_from_pb(scope: license_service_pb2.PauseScope.ValueType, field: str) -> PauseScope:
    """The scope.

    Raises:
        InvalidInputError: it is none that we know.
    """
    try:
        return PauseScope(scope)
    except ValueError as error:
        raise InvalidInputError.of_field(field, f"{scope} is not known") from error


def positions_from_pb(request: pb.RecordPositionsRequest) -> Sequence[SubscriberPosition]:
    """The positions, of one subscriber and master the last one.

    Raises:
        InvalidInputError: too many, or a field is wrong.
    """
    if len(request.positions) > POSITIONS_MAX:
        raise InvalidInputError.of_field("positions", f"are more than {POSITIONS_MAX}")
    last: dict[tuple[UUID, int], SubscriberPosition] = {}
    for number, message in enumerate(request.positions):
        one = _position_from_pb(message, f"positions[{number}]")
        last[one.user_id, one.master_id] = one
    return list(last.values())


def _position_from_pb(message: pb.SubscriberPosition, field: str) -> SubscriberPosition:
    acknowledged = message.acknowledged if message.HasField("acknowledged") else None
    return SubscriberPosition(
        fields.uuid_of(message.user_id, f"{field}.user_id"),
        fields.master_id_of(message.master_id, f"{field}.master_id"),
        _place_of(acknowledged, f"{field}.acknowledged"),
        _transitions_from_pb(message, field),
        fields.between(message.full_sync_done, 0, fields.INT64_MAX, f"{field}.full_sync_done"),
    )


def _transitions_from_pb(message: pb.SubscriberPosition, field: str) -> tuple[SyncTransition, ...]:
    if len(message.transitions) > TRANSITIONS_MAX:
        raise InvalidInputError.of_field(f"{field}.transitions", f"are more than {TRANSITIONS_MAX}")
    if message.transitions:
        return tuple(
            _sync_transition_from_pb(one, f"{field}.transitions[{number}]")
            for number, one in enumerate(message.transitions)
        )
    single = pb.SyncTransition(sync_state=message.sync_state, reason=message.reason)
    one = _sync_transition_from_pb(single, field, may_be_unknown=True)
    return () if one.sync_state is SyncState.UNKNOWN else (one,)


def _sync_transition_from_pb(
    message: pb.SyncTransition, field: str, *, may_be_unknown: bool = False
) -> SyncTransition:
    try:
        state = SyncState(message.sync_state)
    except ValueError as error:
        raise InvalidInputError.of_field(
            f"{field}.sync_state", f"{message.sync_state} is not known"
        ) from error
    if state is SyncState.UNKNOWN and not may_be_unknown:
        raise InvalidInputError.of_field(f"{field}.sync_state", "is required")
    reason = fields.text_of(
        message.reason, f"{field}.reason", characters_min=0, characters_max=REASON_CHARACTERS_MAX
    )
    changed_at = None
    if message.HasField("changed_at"):
        changed_at = convert.datetime_of(message.changed_at, f"{field}.changed_at")
    position = message.position if message.HasField("position") else None
    return SyncTransition(state, reason, changed_at, _place_of(position, f"{field}.position"))


def _place_of(position: position_pb2.StreamPosition | None, field: str) -> tuple[int, int] | None:
    return None if position is None else fields.position_of(position.epoch, position.sequence, field)


def full_sync_from_pb(request: pb.RequestFullSyncRequest) -> tuple[FullSyncFilter, str]:
    """Which subscriptions, and why.

    Raises:
        InvalidInputError: a field is wrong, or there is no filter at all.
    """
    one, user = request.subscription_id, request.user_id
    wanted = FullSyncFilter(
        fields.uuid_of(one, "subscription_id") if one else None,
        fields.uuid_of(user, "user_id") if user else None,
        fields.master_id_of(request.master_id) if request.master_id else None,
    )
    if wanted == FullSyncFilter(None, None, None):
        raise InvalidInputError.of_field("subscription_id", "or user_id or master_id is required")
    reason = fields.text_of(request.reason, "reason", characters_max=FULL_SYNC_REASON_CHARACTERS_MAX)
    return wanted, f"a full sync was asked for: {reason}"


def trust_decision_from_pb(request: pb.ApplyTrustRequest) -> TrustDecision:
    """The decision.

    Raises:
        InvalidInputError: a field is wrong.
    """
    user_id = fields.uuid_of(request.user_id, "user_id")
    if not 0 <= request.trust_score <= 100:
        raise InvalidInputError.of_field("trust_score", "is not in 0..100")
    fields.between(request.version, 1, fields.INT64_MAX, "version")
    scope = scope_from_pb(request.pause, "pause")
    reason = fields.text_of(request.reason, "reason", characters_max=TRUST_REASON_CHARACTERS_MAX)
    pause = NO_PAUSE if scope is PauseScope.NONE else Pause(scope, reason)
    return TrustDecision(user_id, request.trust_score, request.version, pause, reason)


def subscription_to_pb(subscription: Subscription) -> pb.Subscription:
    """The subscription as message."""
    epoch, sequence = subscription.acknowledged
    return pb.Subscription(
        subscription_id=str(subscription.subscription_id),
        user_id=str(subscription.user_id),
        master_id=subscription.master_id,
        pause=license_service_pb2.PauseScope.ValueType(subscription.pause.scope),
        paused_by=pb.PausedBy.ValueType(subscription.paused_by),
        pause_reason=subscription.pause.reason,
        sync_state=pb.SyncState.ValueType(subscription.sync_state),
        acknowledged=position_pb2.StreamPosition(epoch=epoch, sequence=sequence),
        version=subscription.version,
        created_at=convert.timestamp_to_pb(subscription.created_at),
        cancelled_at=convert.optional_timestamp_to_pb(subscription.cancelled_at),
        sync_reason=subscription.sync_reason,
        sync_changed_at=convert.optional_timestamp_to_pb(subscription.sync_changed_at),
        full_sync_due=subscription.full_sync_due,
    )


def transition_to_pb(transition: Transition) -> pb.SubscriptionTransition:
    """One line of the history as message."""
    message = pb.SubscriptionTransition(
        changed_at=convert.timestamp_to_pb(transition.changed_at),
        kind=pb.TransitionKind.ValueType(transition.kind),
        reason=transition.reason,
    )
    if transition.kind is TransitionKind.SYNC:
        message.sync_before = pb.SyncState.ValueType(transition.before)
        message.sync_after = pb.SyncState.ValueType(transition.after)
    else:
        message.pause_before = license_service_pb2.PauseScope.ValueType(transition.before)
        message.pause_after = license_service_pb2.PauseScope.ValueType(transition.after)
    return message


def _reason_of(text: str) -> str:
    return fields.text_of(text, "reason", characters_max=REASON_CHARACTERS_MAX)
