"""The family of failures that the services expect and tell their callers; pure, it knows no transport."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong: its path in the message (`signals[3].price_e8`) and why."""

    field: str
    description: str


class ServiceError(Exception):
    """A failure whose cause is known and which the caller may be told.

    `reason` is a constant in UPPER_SNAKE that programs may branch on; `message` is for people; `metadata`
    carries what a program needs to react (strings only; never a secret). `retryable` says whether the same
    call may succeed later.
    """

    default_reason: ClassVar[str] = "INTERNAL"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retryable = self.default_retryable if retryable is None else retryable


class InvalidInputError(ServiceError):
    """The request is wrong whatever the state of the system; `violations` names each wrong field."""

    default_reason = "INVALID_INPUT"

    def __init__(
        self,
        message: str,
        *,
        violations: Iterable[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = tuple(violations)

    @classmethod
    def of_field(cls, field: str, description: str, *, reason: str | None = None) -> InvalidInputError:
        """The error for one wrong field."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)], reason=reason)


class UnauthenticatedError(ServiceError):
    """The caller did not show a token that we know."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(ServiceError):
    """We know the caller; it may not do this."""

    default_reason = "PERMISSION_DENIED"


class NotFoundError(ServiceError):
    """The thing that the request names does not exist."""

    default_reason = "NOT_FOUND"


class AlreadyExistsError(ServiceError):
    """The thing to be made exists already, or an idempotency key was used for another request."""

    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(ServiceError):
    """The state of the system forbids the request until something else changes it."""

    default_reason = "FAILED_PRECONDITION"


class AbortedError(ServiceError):
    """A concurrent change got in the way; the whole operation may be tried again at once."""

    default_reason = "ABORTED"
    default_retryable = True


class OutOfRangeError(ServiceError):
    """The position asked for is not available; `metadata` says what is."""

    default_reason = "OUT_OF_RANGE"


class _RetryLaterError(ServiceError):
    default_retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retryable=retryable)
        self.retry_after_seconds = retry_after_seconds


class ResourceExhaustedError(_RetryLaterError):
    """A limit was reached; `reason` says which."""

    default_reason = "RESOURCE_EXHAUSTED"


class UnavailableError(_RetryLaterError):
    """Something that the operation needs is down; try the same call again after `retry_after_seconds`."""

    default_reason = "UNAVAILABLE"


class DeadlineExceededError(ServiceError):
    """The operation took longer than it may; whether it took effect is unknown."""

    default_reason = "DEADLINE_EXCEEDED"
    default_retryable = True


class ConfigurationError(ServiceError):
    """The process cannot start as it is configured: says what is wrong, where it was set, and what to do.

    `str(error)` is what the process prints on stderr, one line for each thing to put right, before it exits
    with 3.
    """

    default_reason = "CONFIGURATION"
    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, *, where: str | None = None, do: str | None = None) -> None:
        line = what if where is None else f"{where}: {what}"
        super().__init__(_one_line(line if do is None else f"{line}; {do}"))

    @classmethod
    def of_lines(cls, lines: Iterable[str]) -> ConfigurationError:
        """The error for several wrong settings, one line each."""
        error = cls("")
        error.message = "\n".join(_one_line(line) for line in lines)
        error.args = (error.message,)
        return error


def _one_line(text: str) -> str:
    return " ".join(text.split())
