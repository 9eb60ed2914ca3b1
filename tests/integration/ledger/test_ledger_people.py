"""Users, masters, licenses: what the calls do and how they repeat."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import master_service_pb2 as masters
from execution.ledger.v1 import user_service_pb2 as users
from services.common.errors import AbortedError, AlreadyExistsError, FailedPreconditionError, NotFoundError
from services.ledger.settings import LedgerSettings
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    events_in,
    eventually,
    ledger_running,
    refused,
    superuser,
    unique,
)


async def test_a_user_is_found_as_it_was_made(ledger: LedgerClient) -> None:
    made = await ledger.user(display_name="Ada Łovelace")
    found = (await ledger.call("UserService/GetUser", users.GetUserRequest(user_id=made.user_id))).user
    assert found == made
    assert found.display_name == "Ada Łovelace"
    assert (found.trust_score, found.trust_version) == (100, 0)


async def test_an_email_belongs_to_one_user_in_any_spelling(ledger: LedgerClient) -> None:
    await ledger.user(email="Ada@Example.com")
    error = await refused(ledger.user(email="ada@example.COM"))
    assert isinstance(error, AlreadyExistsError)
    assert error.reason == "EMAIL_TAKEN"


async def test_a_repeat_makes_one_user_even_at_the_same_moment(ledger: LedgerClient) -> None:
    request = users.CreateUserRequest(request_id=unique(), email="one@example.com", display_name="One")
    answers = await asyncio.gather(*(ledger.call("UserService/CreateUser", request) for _ in range(8)))
    assert len({answer.user.user_id for answer in answers}) == 1
    assert all(answer == answers[0] for answer in answers)


async def test_a_request_id_with_another_body_is_aborted(ledger: LedgerClient) -> None:
    await ledger.user(request_id="same", email="one@example.com")
    error = await refused(ledger.user(request_id="same", email="two@example.com"))
    assert isinstance(error, AbortedError)
    assert (error.reason, error.retryable) == ("REQUEST_ID_REUSED", False)


async def test_a_failed_change_leaves_its_request_id_free(ledger: LedgerClient) -> None:
    await ledger.user(email="taken@example.com")
    await refused(ledger.user(request_id="later", email="taken@example.com"))
    assert (await ledger.user(request_id="later", email="free@example.com")).email == "free@example.com"


async def test_pages_hold_each_user_once_in_order_of_creation(ledger: LedgerClient) -> None:
    made = [(await ledger.user()).user_id for _ in range(7)]
    listed, token, sizes = [], "", []
    while True:
        page = await ledger.call(
            "UserService/ListUsers", users.ListUsersRequest(page_size=3, page_token=token)
        )
        listed += [user.user_id for user in page.users]
        sizes.append(len(page.users))
        token = page.next_page_token
        if not token:
            break
    assert (listed, sizes) == (made, [3, 3, 1])


async def test_a_master_has_a_key_whose_secret_a_repeat_within_a_day_shows_again(
    ledger: LedgerClient, fresh_database: str
) -> None:
    owner = await ledger.user()
    first = await ledger.master(owner, request_id="make", signals_per_second_max=50)
    again = await ledger.master(owner, request_id="make", signals_per_second_max=50)
    assert first == again
    assert len(first.key.secret) == 32
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "update ledger.idempotency_keys set created_at = now() - interval '25 hours'"
        )
    late = await ledger.master(owner, request_id="make", signals_per_second_max=50)
    assert (late.master, late.key.key_id, late.key.secret) == (first.master, first.key.key_id, b"")


async def test_masters_are_numbered_and_listed_from_one(ledger: LedgerClient) -> None:
    owner = await ledger.user()
    made = [(await ledger.master(owner)).master for _ in range(3)]
    page = await ledger.call("MasterService/ListMasters", masters.ListMastersRequest())
    assert list(page.masters) == made
    assert made[0].master_id == 1
    assert (
        await ledger.call("MasterService/GetMaster", masters.GetMasterRequest(master_id=1))
    ).master == made[0]


async def test_the_age_limit_of_signals_keeps_its_microseconds(ledger: LedgerClient) -> None:
    owner = await ledger.user()
    made = await ledger.master(owner, signal_age_max=Duration(seconds=2, nanos=500_000))
    assert made.master.signal_age_max == Duration(seconds=2, nanos=500_000)
    assert not (await ledger.master(owner)).master.HasField("signal_age_max")


@pytest.fixture
async def login(ledger: LedgerClient) -> masters.AuthorizeMasterRequest:
    owner = await ledger.user()
    made, license = await ledger.master(owner), await ledger.license(owner)
    return masters.AuthorizeMasterRequest(
        master_id=made.master.master_id, key_id=made.key.key_id, license_token=license.token
    )


async def test_a_login_resolves_key_and_license_together(ledger: LedgerClient) -> None:
    owner = await ledger.user()
    made, license = await ledger.master(owner), await ledger.license(owner)
    request = masters.AuthorizeMasterRequest(
        master_id=made.master.master_id, key_id=made.key.key_id, license_token=license.token
    )
    answer = await ledger.call("MasterService/AuthorizeMaster", request)
    assert answer.master == made.master
    assert answer.secret == made.key.secret
    assert answer.license_id == license.license.license_id
    assert answer.expires_at == license.license.expires_at


async def test_a_license_of_another_user_opens_no_session(
    ledger: LedgerClient, login: masters.AuthorizeMasterRequest
) -> None:
    login.license_token = (await ledger.license(await ledger.user())).token
    assert isinstance(await refused(ledger.call("MasterService/AuthorizeMaster", login)), NotFoundError)


async def test_after_a_rotation_both_keys_count_until_the_overlap_ends(
    ledger: LedgerClient, login: masters.AuthorizeMasterRequest, fresh_database: str, redis_url: str
) -> None:
    rotation = masters.RotateSigningKeyRequest(
        request_id=unique(), master_id=login.master_id, overlap=Duration(seconds=600)
    )
    new = (await ledger.call("MasterService/RotateSigningKey", rotation)).key
    assert (await ledger.call("MasterService/RotateSigningKey", rotation)).key == new
    with_old = await ledger.call("MasterService/AuthorizeMaster", login)
    with_new = await ledger.call(
        "MasterService/AuthorizeMaster",
        masters.AuthorizeMasterRequest(
            master_id=login.master_id, key_id=new.key_id, license_token=login.license_token
        ),
    )
    assert with_new.secret == new.secret != with_old.secret
    assert with_old.expires_at.ToDatetime(UTC) < datetime.now(UTC) + timedelta(seconds=601)
    assert with_new.expires_at.ToDatetime(UTC) > datetime.now(UTC) + timedelta(days=29)
    (event,) = [
        e for e in await eventually(lambda: events_in(redis_url)) if e.HasField("signing_key_changed")
    ]
    assert (event.signing_key_changed.key_id, event.signing_key_changed.revoked) == (login.key_id, False)
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "update ledger.signing_keys set expires_at = now() where key_id = $1", login.key_id
        )
    error = await refused(ledger.call("MasterService/AuthorizeMaster", login))
    assert (type(error), error.reason) == (FailedPreconditionError, "KEY_REVOKED")


async def test_a_second_rotation_does_not_prolong_a_key_that_is_to_end(
    ledger: LedgerClient, login: masters.AuthorizeMasterRequest, fresh_database: str
) -> None:
    for seconds in (60, 3_600):
        await ledger.call(
            "MasterService/RotateSigningKey",
            masters.RotateSigningKeyRequest(
                request_id=unique(), master_id=login.master_id, overlap=Duration(seconds=seconds)
            ),
        )
    async with superuser(fresh_database) as connection:
        left = await connection.fetch(
            "select key_id, expires_at - now() as left from ledger.signing_keys order by 1"
        )
    assert left[0]["left"] <= timedelta(seconds=60)
    assert timedelta(seconds=60) < left[1]["left"] <= timedelta(seconds=3_600)
    assert left[2]["left"] is None


async def test_a_revoked_key_counts_no_more_and_revoking_repeats(
    ledger: LedgerClient, login: masters.AuthorizeMasterRequest, redis_url: str
) -> None:
    request = masters.RevokeSigningKeyRequest(master_id=login.master_id, key_id=login.key_id)
    for _ in range(2):
        await ledger.call("MasterService/RevokeSigningKey", request)
    error = await refused(ledger.call("MasterService/AuthorizeMaster", login))
    assert error.reason == "KEY_REVOKED"
    await ledger.user()
    told = [e for e in await eventually(lambda: events_in(redis_url)) if e.HasField("signing_key_changed")]
    assert [e.signing_key_changed.revoked for e in told] == [True]


async def test_a_token_is_shown_once_and_stored_never(ledger: LedgerClient, fresh_database: str) -> None:
    user = await ledger.user()
    first = await ledger.license(user, request_id="issue")
    again = await ledger.license(user, request_id="issue")
    assert first.token.startswith("ecp_")
    assert len(first.token) == len("ecp_") + 43
    assert (again.license, again.token) == (first.license, "")
    async with superuser(fresh_database) as connection:
        for table in await connection.fetch("select tablename from pg_tables where schemaname = 'ledger'"):
            text = await connection.fetchval(
                f"select coalesce(string_agg(t::text, ''), '') from ledger.{table['tablename']} as t"
            )
            assert first.token not in text
            assert first.token.encode().hex() not in text


async def test_authenticate_tells_what_the_user_follows_now(ledger: LedgerClient) -> None:
    owner, follower = await ledger.user(), await ledger.user()
    followed = [(await ledger.master(owner)).master.master_id for _ in range(3)]
    subscriptions = [await ledger.subscription(follower, master_id) for master_id in reversed(followed)]
    license = await ledger.license(follower)
    answer = await ledger.call(
        "LicenseService/Authenticate", licenses.AuthenticateRequest(token=license.token)
    )
    assert (answer.user_id, answer.license_id) == (follower.user_id, license.license.license_id)
    assert [one.master_id for one in answer.entitlements] == followed
    assert {one.subscription_id for one in answer.entitlements} == {
        one.subscription_id for one in subscriptions
    }
    assert {one.version for one in answer.entitlements} == {1}


async def test_a_rotated_license_has_a_successor_of_the_same_validity(
    ledger: LedgerClient, redis_url: str
) -> None:
    user = await ledger.user()
    old = await ledger.license(user, validity=Duration(seconds=5 * 86_400))
    request = licenses.RotateLicenseRequest(
        request_id=unique(), license_id=old.license.license_id, overlap=Duration(seconds=60)
    )
    new = await ledger.call("LicenseService/RotateLicense", request)
    again = await ledger.call("LicenseService/RotateLicense", request)
    assert (again.license, again.token) == (new.license, "")
    assert new.license.rotated_from == old.license.license_id
    assert new.license.expires_at.ToSeconds() - new.license.issued_at.ToSeconds() == 5 * 86_400
    for token in (old.token, new.token):
        await ledger.call("LicenseService/Authenticate", licenses.AuthenticateRequest(token=token))
    (event,) = await eventually(lambda: events_in(redis_url))
    assert event.license_changed.license_id == old.license.license_id
    assert not event.license_changed.revoked
    assert event.license_changed.expires_at.ToDatetime(UTC) < datetime.now(UTC) + timedelta(seconds=61)


async def test_a_license_that_is_rotated_again_has_another_whole_successor(ledger: LedgerClient) -> None:
    # As by somebody who never got the answer, and with it the token, of the first rotation.
    old = (await ledger.license(await ledger.user(), validity=Duration(seconds=40 * 86_400))).license
    for _ in range(2):
        rotation = licenses.RotateLicenseRequest(
            request_id=unique(), license_id=old.license_id, overlap=Duration(seconds=3_600)
        )
        made = (await ledger.call("LicenseService/RotateLicense", rotation)).license
        assert validity_of(made) == timedelta(days=40)


async def test_a_license_is_valid_as_long_as_asked_whatever_the_time_zone_of_the_database(
    ledger_config: LedgerSettings, fresh_database: str
) -> None:
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "do $$ begin execute format('alter database %I set timezone = %L',"
            " current_database(), 'Europe/Berlin'); end $$"
        )
    async with ledger_running(ledger_config) as ledger:
        user = await ledger.user()
        # At least one of them ends at another time of the year than now.
        for days in range(30, 400, 30):
            made = (await ledger.license(user, validity=Duration(seconds=days * 86_400))).license
            assert validity_of(made) == timedelta(days=days)


def validity_of(made: licenses.License) -> timedelta:
    return made.expires_at.ToDatetime() - made.issued_at.ToDatetime()


async def test_a_revoked_license_lets_nobody_in_and_revoking_repeats(
    ledger: LedgerClient, redis_url: str
) -> None:
    issued = await ledger.license(await ledger.user())
    request = licenses.RevokeLicenseRequest(license_id=issued.license.license_id, reason="lost")
    first = await ledger.call("LicenseService/RevokeLicense", request)
    assert first.license.state == licenses.LICENSE_STATE_REVOKED
    assert (await ledger.call("LicenseService/RevokeLicense", request)) == first
    error = await refused(
        ledger.call("LicenseService/Authenticate", licenses.AuthenticateRequest(token=issued.token))
    )
    assert error.reason == "LICENSE_REVOKED"
    assert [e.license_changed.revoked for e in await eventually(lambda: events_in(redis_url))] == [True]


async def test_licenses_are_listed_newest_first_page_by_page(ledger: LedgerClient) -> None:
    user = await ledger.user()
    made = [(await ledger.license(user)).license.license_id for _ in range(5)]
    await ledger.license(await ledger.user())
    listed, token = [], ""
    while True:
        page = await ledger.call(
            "LicenseService/ListLicenses",
            licenses.ListLicensesRequest(user_id=user.user_id, page_size=2, page_token=token),
        )
        listed += [license.license_id for license in page.licenses]
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::-1]
