from __future__ import annotations

import grpc
from hypothesis import given
from hypothesis import strategies as st

from services.common import clock, errors, sql, status
from services.common.backoff import Backoff
from services.common.settings import Address
from services.common.stream import EntryId

TEXT = st.text(max_size=50)
CLASSES = [
    errors.UnauthenticatedError,
    errors.PermissionDeniedError,
    errors.NotFoundError,
    errors.AlreadyExistsError,
    errors.FailedPreconditionError,
    errors.AbortedError,
    errors.OutOfRangeError,
]
METADATA = st.dictionaries(TEXT.filter(lambda key: key not in ("retryable", "peer")), TEXT, max_size=5)


@given(st.integers(-(10**15), 2 * 10**17))
def test_times_survive_the_way_over_datetime(time_us: int) -> None:
    assert clock.us_from_datetime(clock.datetime_from_us(time_us)) == time_us


@given(
    initial=st.floats(0.001, 10),
    factor=st.floats(1, 10),
    room=st.floats(1, 100),
    count=st.integers(1, 50),
)
def test_no_delay_leaves_its_bounds(initial: float, factor: float, room: float, count: int) -> None:
    backoff = Backoff(initial_seconds=initial, cap_seconds=initial * room, factor=factor)
    assert backoff.next_delay() <= initial
    assert all(0 <= backoff.next_delay() <= initial * room for _ in range(count))


@given(st.sampled_from(CLASSES), TEXT, METADATA, st.booleans())
def test_errors_survive_the_way_to_a_peer(
    error_class: type[errors.ServiceError], message: str, metadata: dict[str, str], retryable: bool
) -> None:
    sent = error_class(message, reason="SOME_REASON", metadata=metadata, retryable=retryable)
    answer = status.status_of(sent)
    got = status.error_of(status.code_of(sent), answer.message, answer.SerializeToString())
    assert type(got) is error_class
    assert (got.message, got.reason, got.metadata, got.retryable) == (
        message,
        "SOME_REASON",
        metadata,
        retryable,
    )


@given(st.lists(st.builds(errors.FieldViolation, TEXT, TEXT), max_size=5))
def test_field_violations_survive_the_way_to_a_peer(violations: list[errors.FieldViolation]) -> None:
    sent = errors.InvalidInputError("bad", violations=violations)
    got = status.error_of(status.code_of(sent), "bad", status.status_of(sent).SerializeToString())
    assert isinstance(got, errors.InvalidInputError)
    assert got.violations == tuple(violations)


@given(st.floats(0, 10**6))
def test_retry_delay_survives_the_way_to_a_peer(seconds: float) -> None:
    sent = errors.UnavailableError("down", retry_after_seconds=seconds)
    got = status.error_of(status.code_of(sent), "down", status.status_of(sent).SerializeToString())
    assert isinstance(got, errors.UnavailableError)
    assert got.retry_after_seconds is not None
    assert abs(got.retry_after_seconds - seconds) < 1e-6


@given(st.sampled_from(list(grpc.StatusCode)), TEXT, st.binary(max_size=200))
def test_any_bytes_as_details_give_some_error(code: grpc.StatusCode, message: str, details: bytes) -> None:
    assert isinstance(status.error_of(code, message, details, peer="x"), errors.ServiceError)


@given(st.dictionaries(TEXT, st.text(min_size=500, max_size=5_000), max_size=20), st.text(max_size=20_000))
def test_no_error_makes_trailers_that_peers_refuse(metadata: dict[str, str], message: str) -> None:
    ((_, value),) = status.trailers_of(errors.NotFoundError(message, metadata=metadata))
    assert len(value) < 8_000


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**63))
def test_entry_ids_are_ordered_like_their_parts(
    ms: int, number: int, other_ms: int, other_number: int
) -> None:
    one, other = EntryId(ms, number), EntryId(other_ms, other_number)
    assert EntryId.parse(str(one)) == one
    assert (one < other) == ((ms, number) < (other_ms, other_number))


@given(st.sampled_from(["127.0.0.1", "::1", "a.example", "fe80::1%eth0", "0.0.0.0"]), st.integers(0, 65_535))
def test_addresses_survive_being_written(host: str, port: int) -> None:
    assert Address.parse(str(Address(host, port))) == Address(host, port)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
        st.sampled_from(["select 1", "-- why\nselect 2\n;"]),
        max_size=6,
    )
)
def test_sql_files_give_back_what_was_written(statements: dict[str, str]) -> None:
    text = "-- a comment\n\n" + "".join(f"-- name: {name}\n{body}\n\n" for name, body in statements.items())
    assert sql.parse(text) == statements
