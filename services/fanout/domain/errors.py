"""The failures that a stream is told; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import (
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from services.fanout.domain.position import Position


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A position that cannot be resumed from, and what is there instead."""

    master_id: int
    requested: Position
    oldest: Position
    head: Position
    snapshot: Position | None


class PositionUnavailableError(OutOfRangeError):
    """Positions cannot be resumed from; `positions` says what is there instead of each."""

    default_reason = "POSITION_UNAVAILABLE"

    def __init__(self, positions: Sequence[Unavailable]) -> None:
        masters = ", ".join(str(one.master_id) for one in positions[:10])
        super().__init__(
            f"the stream cannot go on after these positions of masters {masters}: begin from a snapshot or from now",
            metadata={"masters": str(len(positions))},
        )
        self.positions = tuple(positions)


def not_subscribed(master_ids: Sequence[int]) -> PermissionDeniedError:
    """The user does not follow these masters."""
    names = ",".join(str(master_id) for master_id in master_ids[:10])
    return PermissionDeniedError(
        f"no subscription to master {names}", reason="NOT_SUBSCRIBED", metadata={"master_ids": names}
    )


def cancelled(master_id: int) -> PermissionDeniedError:
    """The stream's last subscription ended."""
    return PermissionDeniedError(
        f"the subscription to master {master_id} was cancelled",
        reason="SUBSCRIPTION_CANCELLED",
        metadata={"master_id": str(master_id)},
    )


def license_revoked() -> UnauthenticatedError:
    """The license was revoked."""
    return UnauthenticatedError("the license was revoked", reason="LICENSE_REVOKED")


def license_expired() -> UnauthenticatedError:
    """The license's time is over."""
    return UnauthenticatedError("the license has expired", reason="LICENSE_EXPIRED")


def slow_reader(what: str, positions: Sequence[tuple[int, Position]]) -> ResourceExhaustedError:
    """This reader fell too far behind; `positions` are where it can resume."""
    listed = ",".join(f"{master_id}:{p.epoch}:{p.sequence}" for master_id, p in positions[:50])
    return ResourceExhaustedError(
        f"this reader fell behind: {what}; resume after the last position that you processed",
        reason="SLOW_READER",
        metadata={"limit": what, "positions": listed},
    )


def draining() -> UnavailableError:
    """The server ends its streams."""
    return UnavailableError(
        "the server is stopping; resume elsewhere", reason="DRAINING", retry_after_seconds=0
    )


def log_replaced() -> UnavailableError:
    """The log came back as another one: positions of the former one mean nothing in it."""
    return UnavailableError(
        "the signal log was replaced; resume, or begin from a snapshot",
        reason="LOG_REPLACED",
        retry_after_seconds=0.5,
    )


def not_ready() -> UnavailableError:
    """This process has not read the log yet."""
    return UnavailableError("the signal log was not read yet", reason="NOT_READY", retry_after_seconds=0.5)


def snapshot_unavailable(master_id: int, waited_seconds: float) -> UnavailableError:
    """No usable snapshot came in time."""
    return UnavailableError(
        f"master {master_id} has no usable snapshot and sent none within {waited_seconds:g} s",
        reason="SNAPSHOT_UNAVAILABLE",
        metadata={"master_id": str(master_id)},
        retry_after_seconds=1,
    )
