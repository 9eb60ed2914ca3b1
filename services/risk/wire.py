"""Between the contract's messages and risk's own types; it checks the form of requests and decides nothing."""

from __future__ import annotations

import base64
import binascii
import math
import struct
import unicodedata
from datetime import datetime
from typing import Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from execution.common.v1 import position_pb2
from execution.risk.v1 import risk_service_pb2 as pb
from services.common.errors import InvalidInputError
from services.risk.domain.ladder import LADDER, Level
from services.risk.domain.outcomes import Reason
from services.risk.ledger import PAUSES
from services.risk.records import Evidence, StoredDecision, TrustRecord
from services.risk.store import OverrideOrder

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
_SCORE_BELOW_MAX: Final = 101.0
_OPERATOR_NAME_CHARACTERS_MAX: Final = 100
_REASON_CHARACTERS_MAX: Final = 500
_TOKEN: Final = struct.Struct(">ddi")
_REASONS: Final = {
    Reason.EXECUTED: pb.PROTECTION_REASON_UNSPECIFIED,
    Reason.SLIPPAGE: pb.PROTECTION_REASON_SLIPPAGE,
    Reason.LATENCY: pb.PROTECTION_REASON_LATENCY,
    Reason.SPREAD: pb.PROTECTION_REASON_SPREAD,
    Reason.PRICE: pb.PROTECTION_REASON_PRICE,
    Reason.MARGIN: pb.PROTECTION_REASON_MARGIN,
    Reason.FILTER: pb.PROTECTION_REASON_FILTER,
}
_LEVELS: Final = {
    Level.GOOD: pb.TRUST_LEVEL_GOOD,
    Level.WARN: pb.TRUST_LEVEL_WARN,
    Level.CLOSE_ONLY: pb.TRUST_LEVEL_CLOSE_ONLY,
    Level.PAUSED: pb.TRUST_LEVEL_PAUSED,
}


def user_id_from_pb(text: str) -> UUID:
    """A request's user.

    Raises:
        InvalidInputError: not a UUID in its usual form.
    """
    try:
        user_id = UUID(text)
    except ValueError:
        raise InvalidInputError.of_field("user_id", "must be a UUID") from None
    if str(user_id) != text.lower():
        raise InvalidInputError.of_field("user_id", "must be a UUID")
    return user_id


def override_from_pb(request: pb.OverrideTrustRequest) -> OverrideOrder:
    """An operator's word.

    Raises:
        InvalidInputError: a field is missing or out of range.
    """
    user_id = user_id_from_pb(request.user_id)
    if not 0.0 <= request.score <= 100.0:
        raise InvalidInputError.of_field("score", "must be from 0 to 100")
    return OverrideOrder(
        user_id,
        request.score,
        _text_from_pb(request.operator_name, "operator_name", _OPERATOR_NAME_CHARACTERS_MAX),
        _text_from_pb(request.reason, "reason", _REASON_CHARACTERS_MAX),
    )


def _text_from_pb(text: str, field: str, characters_max: int) -> str:
    """Text for people, which ledger gets with the decision: it refuses control characters."""
    text = text.strip()
    if not 1 <= len(text) <= characters_max:
        raise InvalidInputError.of_field(field, f"must have 1 to {characters_max} characters")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise InvalidInputError.of_field(field, "must not contain control characters")
    return text


def score_below_from_pb(request: pb.ListAtRiskRequest) -> float:
    """The score that ListAtRisk asks for.

    Raises:
        InvalidInputError: not a score.
    """
    score: float = request.score_below
    if not math.isfinite(score) or not 0.0 <= score <= _SCORE_BELOW_MAX:
        raise InvalidInputError.of_field("score_below", "must be from 0 to 101")
    return score or LADDER.warn_below


def page_size_from_pb(page_size: int) -> int:
    """The size of a page.

    Raises:
        InvalidInputError: more than 1,000.
    """
    if page_size > PAGE_SIZE_MAX:
        raise InvalidInputError.of_field("page_size", f"must be at most {PAGE_SIZE_MAX}")
    return page_size or PAGE_SIZE_DEFAULT


def page_token(score_below: float, last: tuple[float, int]) -> str:
    """The token of the page behind `last`, a score and a user number."""
    return base64.urlsafe_b64encode(_TOKEN.pack(score_below, *last)).decode().rstrip("=")


def after_from_token(token: str, score_below: float) -> tuple[float, int]:
    """What a page token stands for: the last score and user number of the page before.

    Raises:
        InvalidInputError: not a token of ours, or of a list with another score_below.
    """
    if not token:
        return (-1.0, -1)
    try:
        below, score, number = _TOKEN.unpack(
            base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        )
    except (binascii.Error, struct.error, ValueError):
        raise InvalidInputError.of_field("page_token", "is not one of this method's") from None
    if below != score_below or not math.isfinite(score):
        raise InvalidInputError.of_field("page_token", "belongs to a list with another score_below")
    return (score, number)


def trust_to_pb(record: TrustRecord) -> pb.Trust:
    """The latest decision on a user."""
    return pb.Trust(
        user_id=str(record.user_id),
        score=record.score,
        level=_LEVELS[record.level],
        version=record.version,
        pause=PAUSES[record.level],
        decided_at=timestamp(record.decided_at),
    )


def explanation_to_pb(stored: StoredDecision) -> pb.ExplainTrustResponse:
    """A decision with all that it was made of."""
    sums, terms = stored.decision.sums, stored.decision.terms
    return pb.ExplainTrustResponse(
        trust=trust_to_pb(stored.trust),
        terms=pb.TrustTerms(
            rejection=terms.rejection,
            selectivity=terms.selectivity,
            integrity=terms.integrity,
            rejection_lower_bound=terms.rejection_lower_bound,
            weighted_signals=sums.weight,
            signals=sums.signals,
            rejected=sums.rejected,
        ),
        evidence=[_evidence_to_pb(one) for one in stored.evidence],
        model_version=stored.model_version,
        explanation=stored.explanation,
    )


def timestamp(instant: datetime) -> Timestamp:
    """An aware datetime as a Timestamp."""
    made = Timestamp()
    made.FromDatetime(instant)
    return made


def _evidence_to_pb(one: Evidence) -> pb.Evidence:
    return pb.Evidence(
        master_id=one.master_id,
        position=position_pb2.StreamPosition(epoch=one.epoch, sequence=one.sequence),
        reason=_REASONS[one.reason],
        peer_rejection_rate=one.peer_rate,
        weight=one.weight,
        reported_at=timestamp(one.reported_at),
    )
