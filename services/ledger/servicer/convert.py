"""Conversions that all servicers of the ledger share: keys, pages, times; it decides nothing."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import InvalidInputError
from services.ledger.domain import fields
from services.ledger.domain.requests import RequestKey
from services.ledger.store.pages import PageRequest


class _Paged(Protocol):
    @property
    def page_size(self) -> int: ...
    @property
    def page_token(self) -> str: ...


def key_of(request: Message, request_id: str) -> RequestKey:
    """The idempotency key of a request that was checked: its body is all of its fields."""
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    return RequestKey(request.DESCRIPTOR.name.removesuffix("Request"), request_id, digest)


def page_of(request: _Paged) -> PageRequest:
    """What page is asked for.

    Raises:
        InvalidInputError: the page size is above the limit.
    """
    return PageRequest(fields.page_size_of(request.page_size), request.page_token)


def timedelta_of(duration: Duration, field: str, *, low: timedelta, high: timedelta) -> timedelta:
    """A duration within bounds, both included.

    Raises:
        InvalidInputError: it is not.
    """
    if abs(duration.seconds) <= high.total_seconds() + 1:
        length = timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1_000)
        if low <= length <= high:
            return length
    raise InvalidInputError.of_field(field, f"is not between {low} and {high}")


def datetime_of(timestamp: Timestamp, field: str) -> datetime:
    """The instant, to the microsecond.

    Raises:
        InvalidInputError: it is not in years 1 to 9999.
    """
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError.of_field(field, "is not a time in years 1 to 9999") from error


def timestamp_to_pb(instant: datetime) -> Timestamp:
    """The instant as Timestamp."""
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def optional_timestamp_to_pb(instant: datetime | None) -> Timestamp | None:
    """The instant as Timestamp; None stays None."""
    return None if instant is None else timestamp_to_pb(instant)
