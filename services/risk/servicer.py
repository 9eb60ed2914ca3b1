"""RiskService: messages in, calls to the store and the detector, messages out; no rules of its own."""

from __future__ import annotations

from typing import Final

from execution.risk.v1 import risk_service_pb2 as pb
from execution.risk.v1 import risk_service_pb2_grpc as risk_grpc
from services.common import rpc
from services.common.auth import PrincipalKind, current_principal
from services.common.clock import Clock
from services.common.errors import InvalidInputError, NotFoundError
from services.risk import metrics, wire
from services.risk.detector import Detector
from services.risk.detector_store import DetectorStore
from services.risk.domain.model import PARAMETERS
from services.risk.domain.outcomes import REASON_NAMES, OutcomeLimits, Reason
from services.risk.intake import Sorted, sort
from services.risk.leadership import Leadership
from services.risk.licenses import LicenseCache
from services.risk.log_heads import LogHeads
from services.risk.settings import RiskSettings
from services.risk.store import RiskStore, Stored

_SERVICE: Final = "/execution.risk.v1.RiskService"
# Who may call what; all other methods are for services and operators.
RULES: Final = {
    f"{_SERVICE}/ReportOutcomes": {PrincipalKind.LICENSE},
    f"{_SERVICE}/OverrideTrust": {PrincipalKind.OPERATOR},
}
_UNMATCHED: Final = "the master has sent no such signal"
_DOUBLED: Final = "this signal has an outcome already, under another event_id"


class RiskServicer(risk_grpc.RiskServiceServicer):
    """Implements execution.risk.v1.RiskService."""

    def __init__(
        self,
        settings: RiskSettings,
        *,
        store: RiskStore,
        detector_store: DetectorStore,
        detector: Detector,
        leadership: Leadership,
        licenses: LicenseCache,
        heads: LogHeads,
        clock: Clock,
    ) -> None:
        self._outcomes_max = settings.outcomes_per_call_max
        self._limits = OutcomeLimits(
            age_us_max=int(settings.outcome_age_seconds_max * 1e6),
            skew_us_max=int(settings.outcome_skew_seconds_max * 1e6),
        )
        self._store = store
        self._detector_store = detector_store
        self._detector = detector
        self._leadership = leadership
        self._licenses = licenses
        self._heads = heads
        self._clock = clock

    async def ReportOutcomes(
        self, request: pb.ReportOutcomesRequest, context: rpc.Context
    ) -> pb.ReportOutcomesResponse:
        """Stores what the caller did with signals."""
        token = current_principal().token
        await self._licenses.resolve(token)
        if not 1 <= len(request.outcomes) <= self._outcomes_max:
            raise InvalidInputError.of_field("outcomes", f"must be 1 to {self._outcomes_max}")
        identity = await self._licenses.resolve_for(token, {one.master_id for one in request.outcomes})
        batch = sort(
            request.outcomes, masters=identity.masters, now_us=self._clock.now_us(), limits=self._limits
        )
        unmatched = await self._heads.unknown(batch.outcomes)
        batch.refused += [(batch.outcomes.event_ids[index], _UNMATCHED) for index in unmatched]
        batch.outcomes.remove(unmatched)
        stored = Stored(0, 0, 0, ())
        if batch.outcomes:
            stored = await self._store.store_outcomes(identity.user_id, batch.outcomes)
        response = _response(batch, stored)
        if response.conflicts or stored.doubled or unmatched:
            await self._store.store_violations(
                identity.user_id,
                conflicts=response.conflicts,
                doubled=len(stored.doubled),
                unmatched=len(unmatched),
            )
        _count(batch, response)
        return response

    async def GetTrust(self, request: pb.GetTrustRequest, context: rpc.Context) -> pb.GetTrustResponse:
        """A user's latest trust."""
        user_id = wire.user_id_from_pb(request.user_id)
        record = await self._store.get_trust(user_id)
        if record is None:
            raise NotFoundError(f"user {user_id} was never scored", reason="NEVER_SCORED")
        return pb.GetTrustResponse(trust=wire.trust_to_pb(record))

    async def ExplainTrust(
        self, request: pb.ExplainTrustRequest, context: rpc.Context
    ) -> pb.ExplainTrustResponse:
        """The latest decision with each term and the evidence."""
        user_id = wire.user_id_from_pb(request.user_id)
        decision = await self._store.get_decision(user_id)
        if decision is None:
            raise NotFoundError(f"user {user_id} was never scored", reason="NEVER_SCORED")
        return wire.explanation_to_pb(decision)

    async def ListAtRisk(self, request: pb.ListAtRiskRequest, context: rpc.Context) -> pb.ListAtRiskResponse:
        """Users below a score, lowest first."""
        score_below = wire.score_below_from_pb(request)
        size = wire.page_size_from_pb(request.page_size)
        after = wire.after_from_token(request.page_token, score_below)
        listed = await self._store.list_at_risk(score_below, after=after, limit=size + 1)
        response = pb.ListAtRiskResponse(users=[wire.trust_to_pb(record) for _, record in listed[:size]])
        if len(listed) > size:
            number, record = listed[size - 1]
            response.next_page_token = wire.page_token(score_below, (record.score, number))
        return response

    async def OverrideTrust(
        self, request: pb.OverrideTrustRequest, context: rpc.Context
    ) -> pb.OverrideTrustResponse:
        """Sets a user's trust on an operator's word."""
        record = await self._store.override(wire.override_from_pb(request))
        # Stored is done: if ledger is away, the leader sends it later.
        await self._detector.apply()
        return pb.OverrideTrustResponse(trust=wire.trust_to_pb(record))

    async def RunCheck(self, request: pb.RunCheckRequest, context: rpc.Context) -> pb.RunCheckResponse:
        """Scores everybody now."""
        result = await self._detector.run_check()
        return pb.RunCheckResponse(
            users=result.users,
            outcomes=result.outcomes,
            changed=[wire.trust_to_pb(record) for record in result.changed],
        )

    async def GetDetectorStatus(
        self, request: pb.GetDetectorStatusRequest, context: rpc.Context
    ) -> pb.GetDetectorStatusResponse:
        """When the last check ran and who leads."""
        state = await self._detector_store.state()
        response = pb.GetDetectorStatusResponse(
            leader=self._leadership.is_leader,
            fencing_token=state.fencing_token,
            last_check_duration_ms=state.last_check_duration_ms,
            model_version=PARAMETERS.version,
        )
        if state.last_check_at is not None:
            response.last_check_at.CopyFrom(wire.timestamp(state.last_check_at))
        return response


def _response(batch: Sorted, stored: Stored) -> pb.ReportOutcomesResponse:
    refused = [pb.RefusedOutcome(event_id=event_id, message=message) for event_id, message in batch.refused]
    refused += [
        pb.RefusedOutcome(event_id=batch.outcomes.event_ids[index], message=_DOUBLED)
        for index in stored.doubled
    ]
    return pb.ReportOutcomesResponse(
        stored=stored.stored,
        duplicates=batch.duplicates + stored.duplicates,
        conflicts=batch.conflicts + stored.conflicts,
        refused=refused,
    )


def _count(batch: Sorted, response: pb.ReportOutcomesResponse) -> None:
    metrics.OUTCOMES.labels("stored").inc(response.stored)
    metrics.OUTCOMES.labels("duplicate").inc(response.duplicates)
    metrics.OUTCOMES.labels("conflict").inc(response.conflicts)
    metrics.OUTCOMES.labels("refused").inc(len(response.refused))
    if response.stored == len(batch.outcomes):
        reasons = batch.outcomes.reasons
        for reason in Reason:
            if reason is not Reason.EXECUTED and (count := reasons.count(reason)):
                metrics.PROTECTIONS.labels(REASON_NAMES[reason]).inc(count)
