"""Service errors as gRPC status with google.rpc details, and back; it sends nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # googleapis-common-protos ships no types
    error_details_pb2,
    status_pb2,
)

from services.common import errors

ERROR_DOMAIN: Final = "execution-control-plane"
DETAILS_KEY: Final = "grpc-status-details-bin"
INTERNAL_MESSAGE: Final = "internal error"
_DETAILS_BYTES_MAX = 6_144  # trailing metadata beyond 8 KiB is refused by default by gRPC peers
_MESSAGE_CHARACTERS_MAX = 1_024

_CODES: Final[dict[type[errors.ServiceError], grpc.StatusCode]] = {
    errors.InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AbortedError: grpc.StatusCode.ABORTED,
    errors.OutOfRangeError: grpc.StatusCode.OUT_OF_RANGE,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CLASSES: Final = {code: error_class for error_class, code in _CODES.items()}


def code_of(error: errors.ServiceError) -> grpc.StatusCode:
    """The status code of an error; INTERNAL for kinds that callers cannot act on."""
    for error_class in type(error).__mro__:
        code = _CODES.get(error_class)
        if code is not None:
            return code
    return grpc.StatusCode.INTERNAL


def status_of(error: errors.ServiceError) -> status_pb2.Status:
    """The error as google.rpc.Status: ErrorInfo always, BadRequest and RetryInfo where they apply.

    An error that maps to INTERNAL loses its message: what it says is for our logs, not for callers.
    """
    code = code_of(error)
    message = (
        INTERNAL_MESSAGE if code is grpc.StatusCode.INTERNAL else error.message[:_MESSAGE_CHARACTERS_MAX]
    )
    status = status_pb2.Status(code=code.value[0], message=message)
    if code is grpc.StatusCode.INTERNAL:
        return status
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    info.metadata["retryable"] = "true" if error.retryable else "false"
    status.details.add().Pack(info)
    if isinstance(error, errors.InvalidInputError) and error.violations:
        status.details.add().Pack(_bad_request(error.violations))
    delay_seconds = getattr(error, "retry_after_seconds", None)
    if delay_seconds is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=_duration(delay_seconds)))
    while status.ByteSize() > _DETAILS_BYTES_MAX and status.details:
        del status.details[-1]
    return status


def trailers_of(error: errors.ServiceError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries `status_of(error)`."""
    return ((DETAILS_KEY, status_of(error).SerializeToString()),)


def error_of(
    code: grpc.StatusCode, message: str, details: bytes | None, *, peer: str | None = None
) -> errors.ServiceError:
    """The service error that a peer's answer stands for.

    `details` is the value of `grpc-status-details-bin`, if there was one; what cannot be parsed is ignored. A
    deadline that passed while we waited, or a call that the peer cancelled, is UnavailableError: to our
    caller the peer is what is not available. Codes that say that we are broken (INTERNAL, UNIMPLEMENTED, …)
    give a plain ServiceError.
    """
    info, violations, delay_seconds = _parse(details)
    metadata = dict(info.metadata)
    retryable = metadata.pop("retryable", None)
    if peer is not None:
        metadata.setdefault("peer", peer)
    reason = info.reason or None
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return errors.UnavailableError(message, reason=reason or f"PEER_{code.name}", metadata=metadata)
    error_class = _CLASSES.get(code)
    if error_class is None:
        return errors.ServiceError(
            f"peer answered {code.name}: {message}", reason=reason or "PEER_FAILED", metadata=metadata
        )
    if issubclass(error_class, errors.InvalidInputError):
        return error_class(message, violations=violations, reason=reason, metadata=metadata)
    error = error_class(message, reason=reason, metadata=metadata)
    if retryable is not None:
        error.retryable = retryable == "true"
    if isinstance(error, errors.UnavailableError | errors.ResourceExhaustedError):
        error.retry_after_seconds = delay_seconds
    return error


def _parse(
    details: bytes | None,
) -> tuple[error_details_pb2.ErrorInfo, list[errors.FieldViolation], float | None]:
    info = error_details_pb2.ErrorInfo()
    violations: list[errors.FieldViolation] = []
    delay_seconds: float | None = None
    try:
        for detail in status_pb2.Status.FromString(details or b"").details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                detail.Unpack(info)
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad_request = error_details_pb2.BadRequest()
                detail.Unpack(bad_request)
                violations += [
                    errors.FieldViolation(v.field, v.description) for v in bad_request.field_violations
                ]
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                delay_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    except DecodeError:
        # A peer of another make may put anything there; code and message still count.
        pass
    return info, violations, delay_seconds


def _bad_request(violations: Iterable[errors.FieldViolation]) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in violations
        ]
    )


def _duration(seconds: float) -> Duration:
    whole, fraction = divmod(max(seconds, 0.0), 1.0)
    return Duration(seconds=int(whole), nanos=int(fraction * 1e9))
