"""Properties of the ledger's rules: money, tokens, pauses, rows."""

from __future__ import annotations

import string
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.common.v1 import signal_pb2
from services.common.errors import InvalidInputError
from services.ledger.domain import journals, pagination
from services.ledger.domain.archive_rows import COLUMNS, SIGNAL_COLUMNS, sequenced_of, signal_values
from services.ledger.domain.journals import Entry
from services.ledger.domain.subscriptions import NO_PAUSE, Pause, PauseScope, Subscription

INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)
AMOUNTS = INT64.filter(bool)
ACCOUNTS = st.text(string.ascii_lowercase + string.digits + ":._-", min_size=1, max_size=20)
ENTRIES = st.lists(
    st.builds(Entry, ACCOUNTS, st.sampled_from(["USD", "EUR", "BTC"]), AMOUNTS), min_size=1, max_size=20
)


@given(ENTRIES)
def test_entries_make_a_journal_exactly_when_each_asset_sums_to_zero(entries: list[Entry]) -> None:
    balanced = len(entries) >= 2 and all(total == 0 for total in journals.sums(entries).values())
    if balanced:
        assert journals.checked_entries(entries) == tuple(entries)
    else:
        with pytest.raises(InvalidInputError):
            journals.checked_entries(entries)


@given(ENTRIES)
def test_entries_with_their_counterparts_make_a_journal(entries: list[Entry]) -> None:
    counterparts = [Entry("platform:suspense", entry.asset, -entry.amount_e8) for entry in entries]
    assert journals.sums(journals.checked_entries(entries + counterparts)) == dict.fromkeys(
        {entry.asset for entry in entries}, 0
    )


@given(st.integers(1, 2**63 - 1), st.integers(0, 10_000))
def test_a_fee_makes_a_journal_whatever_the_share(fee_e8: int, share: int) -> None:
    entries = journals.fee_entries(
        subscriber=UUID(int=1), owner=UUID(int=2), fee_e8=fee_e8, asset="USD", platform_share_bps=share
    )
    assert journals.checked_entries(entries) == entries
    of_platform = -sum(entry.amount_e8 for entry in entries if entry.account == journals.PLATFORM_REVENUE)
    assert 0 <= fee_e8 * share - of_platform * journals.BASIS_POINTS < journals.BASIS_POINTS


# What keys are made of, and a little of everything; a token of far more than that is too long.
KEYS = st.lists(st.one_of(INT64, st.uuids().map(str), st.text(max_size=8)), max_size=3).map(tuple)


@given(st.text(max_size=20), KEYS, KEYS)
def test_a_page_token_gives_back_its_key(listing: str, filters: pagination.Key, key: pagination.Key) -> None:
    assert pagination.key_of(pagination.token_of(listing, filters, key), listing, filters) == key


@given(KEYS, KEYS, KEYS)
def test_a_page_token_of_other_filters_is_refused(
    filters: pagination.Key, others: pagination.Key, key: pagination.Key
) -> None:
    if filters == others:
        return
    with pytest.raises(InvalidInputError):
        pagination.key_of(pagination.token_of("users", filters, key), "users", others)


@given(KEYS, st.integers(0, 10_000), st.characters(codec="ascii"))
def test_a_damaged_page_token_is_refused(key: pagination.Key, index: int, character: str) -> None:
    token = pagination.token_of("users", (), key)
    index %= len(token)
    damaged = token[:index] + character + token[index + 1 :]
    if damaged == token:
        return
    try:
        found = pagination.key_of(damaged, "users", ())
    except InvalidInputError:
        return
    # Base64 has spare bits at its end; a token that differs only there stands for the same key.
    assert found == key


@given(st.text(max_size=600))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    if text:
        with pytest.raises(InvalidInputError):
            pagination.key_of(text, "users", ())


PAUSES = st.builds(Pause, st.sampled_from(PauseScope), st.text(max_size=5))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("operator"), st.sampled_from([PauseScope.CLOSE_ONLY, PauseScope.ALL])),
        st.tuples(st.just("risk"), st.sampled_from(PauseScope)),
        st.tuples(st.just("resume"), st.none()),
    ),
    max_size=20,
)


@given(STEPS)
def test_the_stricter_pause_counts_after_any_history(steps: list[tuple[str, PauseScope | None]]) -> None:
    now = Subscription(uuid4(), uuid4(), 1, NO_PAUSE, NO_PAUSE, 1, datetime.now(UTC), None)
    operator = risk = PauseScope.NONE
    for kind, scope in steps:
        before = now
        if kind == "operator":
            assert scope is not None
            operator, now = scope, now.paused(scope, "o")
        elif kind == "risk":
            assert scope is not None
            risk, now = scope, now.with_risk_pause(Pause(scope, "r"))
        else:
            operator = risk = PauseScope.NONE
            now = now.resumed()
        assert now.pause.scope is max(operator, risk)
        changed = (now.pause.scope, now.paused_by) != (before.pause.scope, before.paused_by)
        assert now.version == before.version + changed
        # Doing it again changes nothing at all.
        if kind == "operator":
            assert now.paused(operator, "x") is now
        elif kind == "risk":
            assert now.with_risk_pause(Pause(risk, "x")) is now
        else:
            assert now.resumed() is now


SIGNALS = st.builds(
    signal_pb2.Signal,
    kind=st.integers(0, 9),
    position_id=UINT64,
    symbol=st.text(max_size=32),
    side=st.integers(0, 2),
    volume_lots_e8=INT64,
    price_e8=INT64,
    stop_loss_e8=INT64,
    take_profit_e8=INT64,
    occurred_at_us=INT64,
    order_id=UINT64,
    order_type=st.integers(0, 3),
    stop_limit_price_e8=INT64,
    expires_at_us=INT64,
    opposite_position_id=UINT64,
    comment=st.text(max_size=64),
    magic=UINT64,
)


@given(SIGNALS, st.binary(max_size=8))
def test_any_signal_comes_back_from_its_row_as_it_was(signal: signal_pb2.Signal, extra: bytes) -> None:
    if extra:
        # A field that only a newer contract knows: number 1000, length-delimited.
        signal = signal_pb2.Signal.FromString(
            signal.SerializeToString() + b"\xc2\x3e" + bytes([len(extra)]) + extra
        )
    values = signal_values(signal)
    assert all(not isinstance(value, str) or "\0" not in value for value in values)
    assert all(not isinstance(value, int) or -(2**63) <= value < 2**63 for value in values)
    row = dict.fromkeys(COLUMNS) | dict(zip(SIGNAL_COLUMNS, values, strict=True))
    row |= {"received_at": datetime.now(UTC), "master_id": 1, "epoch": 1, "sequence": 1}
    back = sequenced_of(row).signal
    assert back.SerializeToString(deterministic=True) == signal.SerializeToString(deterministic=True)


@given(SIGNALS)
def test_a_row_is_equal_for_equal_signals_only(signal: signal_pb2.Signal) -> None:
    copy = signal_pb2.Signal.FromString(signal.SerializeToString())
    assert signal_values(copy) == signal_values(signal)
    copy.price_e8 = signal.price_e8 // 2 + 1 if signal.price_e8 != 1 else 2
    assert (signal_values(copy) == signal_values(signal)) == (copy == signal)
