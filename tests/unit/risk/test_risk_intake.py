"""What of a reported batch may be stored, and what is refused with which words."""

from __future__ import annotations

import pytest

from execution.risk.v1 import risk_service_pb2 as pb
from services.risk.domain.outcomes import OutcomeLimits, Reason
from services.risk.intake import digest, sort

NOW_US = 1_700_000_000_000_000
LIMITS = OutcomeLimits(age_us_max=3 * 86_400 * 1_000_000, skew_us_max=60 * 1_000_000)


def outcome(event_id: str = "e1", **fields: object) -> pb.Outcome:
    made = pb.Outcome(
        event_id=event_id,
        master_id=1,
        kind=pb.OUTCOME_KIND_EXECUTED,
        price_e8=1,
        latency_us=1,
        occurred_at_us=NOW_US,
    )
    made.position.epoch = 1
    made.position.sequence = 5
    for name, value in fields.items():
        target, _, leaf = name.rpartition("__")
        setattr(getattr(made, target) if target else made, leaf, value)
    return made


def refusal(**fields: object) -> str:
    result = sort([outcome(**fields)], masters={1}, now_us=NOW_US, limits=LIMITS)
    assert len(result.outcomes) == 0
    ((event_id, message),) = result.refused
    assert event_id == str(fields.get("event_id", "e1"))[:64]
    return message


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"event_id": ""}, "event_id"),
        ({"event_id": "x" * 65}, "event_id"),
        ({"event_id": "a\nb"}, "event_id"),
        ({"event_id": "é"}, "event_id"),
        ({"master_id": 0}, "master_id"),
        ({"master_id": 2**63}, "master_id"),
        ({"position__epoch": 0}, "position"),
        ({"position__sequence": 0}, "position"),
        ({"position__sequence": 2**53}, "position"),
        ({"kind": pb.OUTCOME_KIND_UNSPECIFIED}, "kind"),
        ({"kind": 99}, "kind"),
        ({"reason": pb.PROTECTION_REASON_PRICE}, "EXECUTED"),
        ({"kind": pb.OUTCOME_KIND_PROTECTED}, "PROTECTED"),
        ({"kind": pb.OUTCOME_KIND_PROTECTED, "reason": 99}, "PROTECTED"),
        ({"price_e8": -1}, "price_e8"),
        ({"latency_us": -1}, "latency_us"),
        ({"master_id": 2}, "not followed"),
        ({"occurred_at_us": 0}, "ago"),
        ({"occurred_at_us": NOW_US - LIMITS.age_us_max - 1}, "ago"),
        ({"occurred_at_us": NOW_US + LIMITS.skew_us_max + 1}, "ahead"),
        ({"occurred_at_us": -(2**63)}, "ago"),
        ({"occurred_at_us": 2**63 - 1}, "ahead"),
    ],
)
def test_a_bad_outcome_is_refused_by_name(fields: dict[str, object], names: str):
    assert names in refusal(**fields)


def test_one_bad_outcome_costs_only_itself():
    result = sort(
        [outcome("a"), outcome("b", kind=0), outcome("c")], masters={1}, now_us=NOW_US, limits=LIMITS
    )
    assert result.outcomes.event_ids == ["a", "c"]
    assert [event_id for event_id, _ in result.refused] == ["b"]


def test_repeats_inside_a_batch_are_duplicates_and_other_bodies_conflicts():
    batch = [outcome("a"), outcome("a"), outcome("a", price_e8=2), outcome("b")]
    result = sort(batch, masters={1}, now_us=NOW_US, limits=LIMITS)
    assert (len(result.outcomes), result.duplicates, result.conflicts) == (2, 1, 1)


def test_columns_carry_every_field():
    protected = outcome(
        "p", kind=pb.OUTCOME_KIND_PROTECTED, reason=pb.PROTECTION_REASON_SPREAD, price_e8=7, latency_us=8
    )
    columns = sort([protected], masters={1}, now_us=NOW_US, limits=LIMITS).outcomes
    assert columns.event_keys == [digest(b"p")]
    assert (columns.master_ids, columns.epochs, columns.sequences) == ([1], [1], [5])
    assert (columns.reasons, columns.prices_e8, columns.latencies_us) == ([3], [7], [8])
    assert columns.occurred_at[0].timestamp() * 1e6 == NOW_US


def test_reasons_are_numbered_as_in_the_contract():
    for reason in Reason:
        if reason is not Reason.EXECUTED:
            assert pb.ProtectionReason.Value(f"PROTECTION_REASON_{reason.name}") == reason
    assert len(Reason) == len(pb.ProtectionReason.values())


def test_keys_fit_a_bigint():
    assert all(-(2**63) <= digest(bytes([n])) < 2**63 for n in range(256))
    assert any(digest(bytes([n])) < 0 for n in range(256))
