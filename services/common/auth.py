"""Who is calling and what it may call, from the bearer token; pure, it asks nobody about licenses."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from enum import StrEnum

from services.common.errors import PermissionDeniedError, UnauthenticatedError

TOKEN_CHARACTERS_MAX = 4_096
OPEN_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }
)


class PrincipalKind(StrEnum):
    """What a caller is."""

    SERVICE = "service"
    OPERATOR = "operator"
    LICENSE = "license"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one call. `token` is what a license's holder showed, not verified yet; else empty."""

    kind: PrincipalKind
    token: str = field(default="", repr=False)

    @property
    def is_trusted(self) -> bool:
        """Whether it is one of our services or an operator."""
        return self.kind in (PrincipalKind.SERVICE, PrincipalKind.OPERATOR)


ANONYMOUS = Principal(PrincipalKind.ANONYMOUS)
TRUSTED: frozenset[PrincipalKind] = frozenset({PrincipalKind.SERVICE, PrincipalKind.OPERATOR})

_current: ContextVar[Principal] = ContextVar("principal", default=ANONYMOUS)


def current_principal() -> Principal:
    """The caller of the call that this task serves; ANONYMOUS outside of one and on open services."""
    return _current.get()


def set_principal(principal: Principal) -> Token[Principal]:
    """Makes `principal` the current one of this task; the edge that authenticated it calls this."""
    return _current.set(principal)


def bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token of the one `authorization: Bearer <token>` entry.

    Raises:
        UnauthenticatedError: none, several, another scheme, or a token that is empty, too long or not ASCII.
    """
    values = [value for key, value in metadata if key.lower() == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        raise UnauthenticatedError(
            "one 'authorization: Bearer <token>' entry is needed", reason="TOKEN_MISSING"
        )
    scheme, _, token = values[0].partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
        raise UnauthenticatedError(
            "the authorization entry is not 'Bearer <token>'", reason="TOKEN_MALFORMED"
        )
    return token


def same_secret(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


class Authorizer:
    """Decides from method name and metadata who calls and whether it may.

    `allowed` maps full method names (`/execution.fanout.v1.FanoutService/Subscribe`) to the kinds that may
    call them; all other methods are for services and operators. A token that is neither of ours counts as a
    license where the method allows licenses, and is unknown elsewhere.
    """

    def __init__(
        self,
        *,
        service_token: str,
        operator_token: str | None = None,
        allowed: Mapping[str, Iterable[PrincipalKind]] | None = None,
    ) -> None:
        self._service_token = service_token
        self._operator_token = operator_token
        self._allowed = {method: frozenset(kinds) for method, kinds in (allowed or {}).items()}

    @property
    def methods(self) -> frozenset[str]:
        """The methods that have rules of their own."""
        return frozenset(self._allowed)

    def authorize(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Principal:
        """The caller, if it may call `method`.

        Raises:
            UnauthenticatedError: no token, a malformed or an unknown one.
            PermissionDeniedError: the caller is known and its kind may not call this method.
        """
        if method[1:].partition("/")[0] in OPEN_SERVICES:
            return ANONYMOUS
        kinds = self._allowed.get(method, TRUSTED)
        if PrincipalKind.ANONYMOUS in kinds:
            return ANONYMOUS
        principal = self._principal(bearer_token(metadata))
        if principal.kind in kinds:
            return principal
        if principal.kind is PrincipalKind.LICENSE:
            raise UnauthenticatedError("the token is not known here", reason="TOKEN_UNKNOWN")
        raise PermissionDeniedError(
            f"a caller of kind {principal.kind} may not call {method}", reason="KIND_NOT_ALLOWED"
        )

    def _principal(self, token: str) -> Principal:
        is_service = same_secret(token, self._service_token)
        is_operator = self._operator_token is not None and same_secret(token, self._operator_token)
        if is_service:
            return Principal(PrincipalKind.SERVICE)
        if is_operator:
            return Principal(PrincipalKind.OPERATOR)
        return Principal(PrincipalKind.LICENSE, token)
