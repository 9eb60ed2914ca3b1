"""The ledger's rules on licenses, logins, pauses, fees and fields, without any I/O."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from services.common.errors import FailedPreconditionError, InvalidInputError, NotFoundError
from services.ledger.domain import fields, journals, licenses, masters
from services.ledger.domain.journals import Entry
from services.ledger.domain.licenses import LicenseState
from services.ledger.domain.masters import Claim
from services.ledger.domain.subscriptions import NO_PAUSE, Pause, PausedBy, PauseScope, Subscription

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
OWNER = uuid4()
SUBSCRIPTION = Subscription(uuid4(), uuid4(), 1, NO_PAUSE, NO_PAUSE, 1, NOW, None)
CLAIM = Claim(OWNER, None, None, None, OWNER, NOW + HOUR, None)
BY_OPERATOR, BY_RISK = Pause(PauseScope.CLOSE_ONLY, "operator"), Pause(PauseScope.ALL, "risk")


def test_a_license_ends_at_its_end_and_revoked_outweighs_expired() -> None:
    assert licenses.license_state(NOW + HOUR, None, NOW) is LicenseState.ACTIVE
    assert licenses.license_state(NOW, None, NOW) is LicenseState.EXPIRED
    assert licenses.license_state(NOW + HOUR, NOW, NOW) is LicenseState.REVOKED
    assert licenses.license_state(NOW - HOUR, NOW, NOW) is LicenseState.REVOKED


def test_an_overlap_never_prolongs() -> None:
    assert licenses.end_of_overlap(NOW + 3 * HOUR, NOW, HOUR) == NOW + HOUR
    assert licenses.end_of_overlap(NOW + HOUR, NOW, 3 * HOUR) == NOW + HOUR
    assert licenses.end_of_overlap(None, NOW, HOUR) == NOW + HOUR


def test_a_token_is_32_bytes_in_base64_behind_its_prefix() -> None:
    assert licenses.token_of(bytes(32)) == "ecp_" + "A" * 43
    assert licenses.token_of(b"\xff" * 32) == "ecp_" + "_" * 42 + "8"
    assert licenses.token_sha256("ecp_") != licenses.token_sha256("ecp")


def test_a_session_ends_with_its_license_or_its_key_whichever_is_first() -> None:
    assert masters.session_end(CLAIM, NOW) == NOW + HOUR
    assert masters.session_end(replace(CLAIM, key_expires_at=NOW + 2 * HOUR), NOW) == NOW + HOUR
    assert masters.session_end(replace(CLAIM, key_expires_at=NOW + HOUR / 2), NOW) == NOW + HOUR / 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"suspended_at": NOW}, "MASTER_SUSPENDED"),
        ({"key_revoked_at": NOW}, "KEY_REVOKED"),
        ({"key_expires_at": NOW}, "KEY_REVOKED"),
        ({"license_revoked_at": NOW}, "LICENSE_REVOKED"),
        ({"license_expires_at": NOW}, "LICENSE_EXPIRED"),
    ],
)
def test_a_login_is_refused_with_its_reason(change: dict[str, datetime], reason: str) -> None:
    with pytest.raises(FailedPreconditionError) as raised:
        masters.session_end(replace(CLAIM, **change), NOW)
    assert raised.value.reason == reason


def test_a_foreign_license_learns_nothing_about_the_master() -> None:
    foreign = replace(CLAIM, license_user_id=uuid4(), suspended_at=NOW, key_revoked_at=NOW)
    with pytest.raises(NotFoundError):
        masters.session_end(foreign, NOW)


@pytest.mark.parametrize(
    ("operator", "risk", "counts", "by"),
    [
        (PauseScope.NONE, PauseScope.NONE, PauseScope.NONE, PausedBy.NOBODY),
        (PauseScope.CLOSE_ONLY, PauseScope.NONE, PauseScope.CLOSE_ONLY, PausedBy.OPERATOR),
        (PauseScope.NONE, PauseScope.CLOSE_ONLY, PauseScope.CLOSE_ONLY, PausedBy.RISK),
        (PauseScope.CLOSE_ONLY, PauseScope.CLOSE_ONLY, PauseScope.CLOSE_ONLY, PausedBy.OPERATOR),
        (PauseScope.CLOSE_ONLY, PauseScope.ALL, PauseScope.ALL, PausedBy.RISK),
        (PauseScope.ALL, PauseScope.CLOSE_ONLY, PauseScope.ALL, PausedBy.OPERATOR),
    ],
)
def test_the_stricter_pause_counts(
    operator: PauseScope, risk: PauseScope, counts: PauseScope, by: PausedBy
) -> None:
    paused = replace(SUBSCRIPTION, operator_pause=Pause(operator, "o"), risk_pause=Pause(risk, "r"))
    assert (paused.pause.scope, paused.paused_by) == (counts, by)


def test_risk_ends_only_what_risk_paused() -> None:
    both = SUBSCRIPTION.paused(BY_OPERATOR.scope, BY_OPERATOR.reason).with_risk_pause(BY_RISK)
    assert both.with_risk_pause(NO_PAUSE).pause == BY_OPERATOR
    assert both.resumed().pause == NO_PAUSE


def test_the_version_rises_when_what_counts_changes_and_only_then() -> None:
    paused = SUBSCRIPTION.paused(PauseScope.ALL, "operator")
    assert paused.version == 2
    assert paused.paused(PauseScope.ALL, "again") is paused
    hidden = paused.with_risk_pause(Pause(PauseScope.CLOSE_ONLY, "risk"))
    assert hidden is not paused
    assert (hidden.version, hidden.pause) == (2, paused.pause)
    assert hidden.resumed().version == 3


def test_an_end_is_final() -> None:
    ended = SUBSCRIPTION.cancelled(NOW)
    assert (ended.version, ended.cancelled_at) == (2, NOW)
    assert ended.cancelled(NOW + HOUR) is ended
    assert ended.with_risk_pause(BY_RISK) is ended
    for change in (ended.resumed, lambda: ended.paused(PauseScope.ALL, "r")):
        with pytest.raises(FailedPreconditionError):
            change()


def test_a_fee_is_shared_and_the_remainder_is_the_owners() -> None:
    subscriber, owner = UUID(int=1), UUID(int=2)
    entries = journals.fee_entries(
        subscriber=subscriber, owner=owner, fee_e8=1_001, asset="USD", platform_share_bps=3_333
    )
    assert entries == (
        Entry(f"user:{subscriber}:receivable", "USD", 1_001),
        Entry("platform:revenue", "USD", -333),
        Entry(f"user:{owner}:payable", "USD", -668),
    )


@pytest.mark.parametrize(("share", "accounts"), [(0, 2), (10_000, 2), (1, 2), (5_000, 3)])
def test_a_share_of_nothing_makes_no_entry(share: int, accounts: int) -> None:
    entries = journals.fee_entries(
        subscriber=UUID(int=1), owner=UUID(int=2), fee_e8=100, asset="USD", platform_share_bps=share
    )
    assert len(entries) == accounts
    assert journals.checked_entries(entries) == entries


@pytest.mark.parametrize(
    "text", ["", "x", "550e8400e29b41d4a716446655440000", "{550e8400-e29b-41d4-a716-446655440000}"]
)
def test_only_the_usual_form_is_a_uuid(text: str) -> None:
    with pytest.raises(InvalidInputError):
        fields.uuid_of(text, "user_id")


@pytest.mark.parametrize("text", ["a@b.example", "Ada.Lovelace+x@sub.example.co", "ü@münchen.example"])
def test_an_email_address_is_taken_as_it_is(text: str) -> None:
    assert fields.email_of(text) == text


@pytest.mark.parametrize("text", ["", "a", "@b.c", "a@", "a@b", "a@b.", "a@b@c.d", "a b@c.d", "a@b.c\n"])
def test_what_is_no_email_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        fields.email_of(text)


def test_page_sizes_have_a_default_and_a_bound() -> None:
    assert fields.page_size_of(0) == 100
    assert fields.page_size_of(1_000) == 1_000
    with pytest.raises(InvalidInputError):
        fields.page_size_of(1_001)
