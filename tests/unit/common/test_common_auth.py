from __future__ import annotations

import pytest

from services.common import auth
from services.common.auth import Authorizer, PrincipalKind
from services.common.errors import PermissionDeniedError, UnauthenticatedError

SUBSCRIBE = "/execution.fanout.v1.FanoutService/Subscribe"
LIST = "/execution.ledger.v1.UserService/ListUsers"
AUTHORIZER = Authorizer(
    service_token="service-token-0123456789",
    operator_token="operator-token-0123456789",
    allowed={SUBSCRIBE: {PrincipalKind.LICENSE}},
)


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


def test_our_tokens_are_known_and_their_text_is_not_kept() -> None:
    service = AUTHORIZER.authorize(LIST, bearer("service-token-0123456789"))
    operator = AUTHORIZER.authorize(LIST, bearer("operator-token-0123456789"))
    assert (service.kind, service.token) == (PrincipalKind.SERVICE, "")
    assert (operator.kind, operator.token) == (PrincipalKind.OPERATOR, "")
    assert service.is_trusted


def test_another_token_is_a_license_where_licenses_may_call() -> None:
    principal = AUTHORIZER.authorize(SUBSCRIBE, bearer("ecp_license"))
    assert (principal.kind, principal.token) == (PrincipalKind.LICENSE, "ecp_license")
    assert not principal.is_trusted
    assert "ecp_license" not in repr(principal)


def test_another_token_is_unknown_elsewhere() -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        AUTHORIZER.authorize(LIST, bearer("ecp_license"))
    assert caught.value.reason == "TOKEN_UNKNOWN"


def test_a_known_caller_of_the_wrong_kind_is_denied() -> None:
    with pytest.raises(PermissionDeniedError):
        AUTHORIZER.authorize(SUBSCRIBE, bearer("operator-token-0123456789"))


def test_without_an_operator_token_nobody_is_operator() -> None:
    authorizer = Authorizer(service_token="service-token-0123456789")
    with pytest.raises(UnauthenticatedError):
        authorizer.authorize(LIST, bearer(""))
    with pytest.raises(UnauthenticatedError):
        authorizer.authorize(LIST, bearer("None"))


@pytest.mark.parametrize("service", sorted(auth.OPEN_SERVICES))
def test_health_and_reflection_are_open(service: str) -> None:
    assert AUTHORIZER.authorize(f"/{service}/Anything", []) is auth.ANONYMOUS


@pytest.mark.parametrize(
    "method",
    ["/grpc.health.v1.HealthX/Check", "/grpc.health.v1.Health.evil/Check", "/x/grpc.health.v1.Health"],
)
def test_names_like_those_of_open_services_are_not_open(method: str) -> None:
    with pytest.raises(UnauthenticatedError):
        AUTHORIZER.authorize(method, [])


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "Basic abc")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", "Bearer " + "x" * 4_097)],
        [("authorization", "Bearer tökén")],
        [("authorization", b"Bearer x")],
        [("authorization", "Bearer one"), ("authorization", "Bearer two")],
    ],
)
def test_malformed_authorization_is_unauthenticated(metadata: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(UnauthenticatedError):
        AUTHORIZER.authorize(SUBSCRIBE, metadata)


def test_scheme_and_key_are_not_case_sensitive() -> None:
    assert auth.bearer_token([("Authorization", "bearer abc")]) == "abc"


def test_outside_of_a_call_nobody_is_the_principal() -> None:
    assert auth.current_principal() is auth.ANONYMOUS
