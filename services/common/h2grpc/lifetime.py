"""When something is due on a connection that nobody asked for; pure, it is told the time and does nothing itself."""

from __future__ import annotations

import random
from enum import Enum, auto

from services.common.h2grpc.settings import Http2Settings


class Step(Enum):
    """What is due."""

    HANDSHAKE_OVERDUE = auto()
    """The peer has not said hello."""
    PING = auto()
    """The peer was silent: it is asked whether it lives."""
    PEER_IS_DEAD = auto()
    """It did not answer."""
    AGED = auto()
    """The connection is to be replaced by a new one, perhaps to another process."""
    IDLE = auto()
    """It has carried no call for long."""
    LAST_CALL = auto()
    """The peer did not confirm that it was told to open no more streams: none are taken from now on."""
    DRAINED = auto()
    """The time for calls to end is over."""


class Lifetime:
    """The times of one connection, in seconds of the event loop."""

    __slots__ = (
        "_age_at",
        "_began_at",
        "_drain_from",
        "_drain_until",
        "_heard_at",
        "_pinged_at",
        "_quiet_since",
        "_settings",
    )

    def __init__(self, settings: Http2Settings, now: float) -> None:
        self._settings = settings
        self._began_at = self._heard_at = self._quiet_since = now
        self._pinged_at: float | None = None
        self._drain_from = now
        self._drain_until: float | None = None
        self._age_at: float | None = None
        if settings.grpc_connection_age_seconds_max is not None:
            # Spread by a tenth, so that connections of one moment do not all come back at one moment.
            self._age_at = now + settings.grpc_connection_age_seconds_max * random.uniform(0.9, 1.1)

    @property
    def is_draining(self) -> bool:
        """Whether the peer was told to open no more streams."""
        return self._drain_until is not None

    def heard(self, now: float) -> None:
        """The peer sent something."""
        self._heard_at = now
        self._pinged_at = None

    def calls_ended(self, now: float) -> None:
        """The last call is over."""
        self._quiet_since = now

    def begin_drain(self, now: float, grace_seconds: float) -> bool:
        """Calls have `grace_seconds` from now on; False when that was said before."""
        if self._drain_until is not None:
            return False
        self._drain_from, self._drain_until = now, now + grace_seconds
        return True

    def step(self, now: float, *, has_begun: bool, has_calls: bool, takes_calls: bool) -> Step | None:
        """What is due now, the most pressing first; a PING counts as sent."""
        settings = self._settings
        if not has_begun:
            is_late = now - self._began_at > settings.http2_handshake_seconds_max
            return Step.HANDSHAKE_OVERDUE if is_late else None
        if self._pinged_at is not None and now - self._pinged_at > settings.http2_keepalive_timeout_seconds:
            return Step.PEER_IS_DEAD
        if self._drain_until is not None:
            return self._drain_step(now, self._drain_until, takes_calls)
        if self._age_at is not None and now > self._age_at:
            return Step.AGED
        if not has_calls and now - self._quiet_since > settings.http2_idle_seconds_max:
            return Step.IDLE
        if self._pinged_at is None and now - self._heard_at > settings.http2_keepalive_seconds:
            self._pinged_at = now
            return Step.PING
        return None

    def _drain_step(self, now: float, until: float, takes_calls: bool) -> Step | None:
        if now > until:
            return Step.DRAINED
        if takes_calls and now > (self._drain_from + until) / 2:
            return Step.LAST_CALL
        return None
