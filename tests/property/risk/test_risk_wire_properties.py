"""Page tokens and reported batches, whatever is thrown at them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from execution.risk.v1 import risk_service_pb2 as pb
from services.common.errors import InvalidInputError
from services.risk import wire
from services.risk.domain.outcomes import OutcomeLimits
from services.risk.intake import sort

NOW_US = 1_700_000_000_000_000
LIMITS = OutcomeLimits(age_us_max=3 * 86_400 * 1_000_000, skew_us_max=60 * 1_000_000)
scores = st.floats(0, 100)
uint64 = st.integers(0, 2**64 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)


@given(st.floats(0, 101), scores, st.integers(0, 2**31 - 1))
def test_a_page_token_comes_back_as_it_was(below: float, score: float, number: int):
    assert wire.after_from_token(wire.page_token(below, (score, number)), below) == (score, number)


@given(st.text(min_size=1, max_size=60))
def test_any_text_is_a_token_or_refused(text: str):
    try:
        score, number = wire.after_from_token(text, 65.0)
    except InvalidInputError:
        return
    assert wire.page_token(65.0, (score, number))


def outcomes() -> st.SearchStrategy[pb.Outcome]:
    def build(event_id, master, epoch, sequence, kind, reason, price, latency, occurred) -> pb.Outcome:
        made = pb.Outcome(
            event_id=event_id, master_id=master, kind=kind, reason=reason, price_e8=price, latency_us=latency,
            occurred_at_us=occurred,
        )  # fmt: skip
        made.position.epoch, made.position.sequence = epoch, sequence
        return made

    return st.builds(
        build,
        st.sampled_from(["a", "b", "c"]) | st.text(max_size=70),
        st.sampled_from([1, 2]) | uint64,
        st.just(1) | uint64,
        st.integers(1, 3) | uint64,
        st.sampled_from([1, 2]) | st.integers(-5, 99),
        st.integers(0, 6) | st.integers(-5, 99),
        st.just(1) | int64,
        st.just(1) | int64,
        st.just(NOW_US) | int64,
    )


@given(st.lists(outcomes(), max_size=30))
def test_every_outcome_of_a_batch_is_accounted_for_and_what_is_stored_fits(batch: list[pb.Outcome]):
    result = sort(batch, masters={1}, now_us=NOW_US, limits=LIMITS)
    columns = result.outcomes
    assert len(columns) + len(result.refused) + result.duplicates + result.conflicts == len(batch)
    assert len(set(columns.event_keys)) == len(columns)
    for column, low, high in (
        (columns.master_ids, 1, 1),
        (columns.epochs, 1, 2**31 - 1),
        (columns.sequences, 1, 2**53 - 1),
        (columns.reasons, 0, 6),
        (columns.prices_e8, 0, 2**63 - 1),
        (columns.latencies_us, 0, 2**63 - 1),
    ):
        assert len(column) == len(columns)
        assert all(low <= value <= high for value in column)


@given(st.lists(outcomes(), max_size=10))
def test_the_same_batch_twice_is_all_duplicates_the_second_time(batch: list[pb.Outcome]):
    once = sort(batch, masters={1}, now_us=NOW_US, limits=LIMITS)
    twice = sort([*batch, *batch], masters={1}, now_us=NOW_US, limits=LIMITS)
    assert len(twice.outcomes) == len(once.outcomes)
    assert twice.conflicts == 2 * once.conflicts
