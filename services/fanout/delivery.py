"""Drives one stream: hands its messages to the writer whenever both are ready; it decides nothing about them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from execution.common.v1 import position_pb2
from services.common.clock import Clock
from services.common.errors import ServiceError
from services.fanout import metrics
from services.fanout.domain import errors
from services.fanout.domain.codec import Message
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.lag import Lag, LagLimits, Verdict, judge
from services.fanout.domain.stream import ProgressCache, Stream, Turn
from services.fanout.edge import StreamWriter

_log = logging.getLogger(__name__)

# Streams are ended one after the other, so their readers need not wait for one another; only until the GOAWAY has come
# that keeps them from opening the next stream where this one was.
_RECONNECT_SECONDS: Final = (0.25, 0.5)
_CLOCK_STEP_US: Final = 1_000_000
"""The wall clock was set when it moved by so much more or less than time did since the last look at a stream."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Whom a delivery tells what its stream needs or has found out."""

    page: Callable[[Delivery, Cursor], None]
    """A cursor waits for older records; called once for each wait."""
    turned: Callable[[Delivery, Turn], None]
    """A cursor's sync state changed."""


class Delivery:
    """One open stream and its writer."""

    __slots__ = (
        "_asked",
        "_clock",
        "_is_finished",
        "_is_warned",
        "_limits",
        "_needs",
        "_opened_seconds",
        "_wall_ahead_us",
        "stream",
        "writer",
    )

    def __init__(
        self, stream: Stream, writer: StreamWriter, needs: Needs, clock: Clock, limits: LagLimits
    ) -> None:
        self.stream = stream
        self.writer = writer
        self._needs = needs
        self._clock = clock
        self._limits = limits
        self._asked: set[Cursor] = set()
        self._is_warned = False
        self._is_finished = False
        self._opened_seconds = clock.monotonic_seconds()
        self._wall_ahead_us = self._measure_wall(clock.now_us())

    @property
    def age_seconds(self) -> float:
        """For how long the stream has been open, whatever the wall clock was set to."""
        return self._clock.monotonic_seconds() - self._opened_seconds

    def pump(self) -> None:
        """Hands over what is next, if the reader takes more."""
        stream, writer = self.stream, self.writer
        while stream.has_next and writer.is_writable:
            messages = stream.next_messages(self._clock.now_us())
            if messages:
                writer.write(messages)
        self._pass_on()
        if stream.ended is not None and writer.is_writable and not stream.has_next:
            self._finish(stream.ended)

    def on_writable(self) -> None:
        """The reader took everything."""
        self.pump()

    def on_drain(self) -> None:
        """The connection is about to be replaced."""
        self.drain()

    def on_written(self, message: Message) -> None:
        """Counts a message that the transport took."""
        sent = metrics.SENT
        sent.messages += 1
        sent.bytes += len(message.data)
        if message.signals:
            sent.signals += message.signals
            if message.received_at_us >= self.stream.opened_at_us:
                # What came in before its reader did is a replay, and not late.
                metrics.LATENCY_MS.observe((self._clock.now_us() - message.received_at_us) / 1_000)
        elif message.gap_reason:
            metrics.GAPS.labels(_gap_name(message.gap_reason)).inc()

    def fetched(self, cursor: Cursor) -> None:
        """A page that was asked for has come or will not: the next wait is a new one."""
        self._asked.discard(cursor)
        self.pump()

    def end(self, error: ServiceError) -> None:
        """Ends the stream after what was handed over."""
        self.stream.end(error)
        self.pump()

    def drain(self) -> None:
        """Tells the stream's reader to go on elsewhere in a moment, and ends the stream."""
        self.stream.drain(int(random.uniform(*_RECONNECT_SECONDS) * 1e6))
        self.pump()

    def tick(self, cache: ProgressCache) -> None:
        """About once a second: Progress, expiry, and whether the reader is too slow."""
        now_us = self._clock.now_us()
        self._allow_for_a_set_clock(now_us)
        self.stream.tick(now_us, cache)
        self._check_lag(now_us)
        self.pump()

    def _allow_for_a_set_clock(self, now_us: int) -> None:
        """What the wall clock jumped over, forward or back, did not pass for the reader."""
        ahead_us = self._measure_wall(now_us)
        step_us, self._wall_ahead_us = ahead_us - self._wall_ahead_us, ahead_us
        if abs(step_us) < _CLOCK_STEP_US:
            return
        stream = self.stream
        stream.progress_due_us = now_us
        stream.complete_at_us = min(stream.complete_at_us + max(0, step_us), now_us)
        if stream.unacknowledged_since_us:
            stream.unacknowledged_since_us = min(stream.unacknowledged_since_us + max(0, step_us), now_us)

    def _measure_wall(self, now_us: int) -> int:
        """How far the wall clock is ahead of the one that only time moves."""
        return now_us - int(self._clock.monotonic_seconds() * 1e6)

    def _check_lag(self, now_us: int) -> None:
        lag = self.stream.lag(now_us, is_writing=not self.writer.is_writable)
        metrics.LAG_SIGNALS.observe(lag.signals)
        metrics.LAG_SECONDS.observe(lag.seconds)
        verdict, limit = judge(lag, self._limits)
        if verdict is Verdict.END:
            metrics.SLOW_READERS.labels("ended", limit).inc()
            self._log_lag("ended", limit, lag)
            error = errors.slow_reader(limit, self.stream.positions)
            self.stream.end(error)
            self._finish(error, at_once=True)
        elif verdict is Verdict.WARN and not self._is_warned:
            metrics.SLOW_READERS.labels("warned", limit).inc()
            self._log_lag("warned", limit, lag)
            self._is_warned = True
        elif verdict is Verdict.FINE:
            self._is_warned = False

    def _log_lag(self, action: str, limit: str, lag: Lag) -> None:
        _log.warning(
            "slow reader %s: beyond %s, %d signals and %.1f s behind",
            action,
            limit,
            lag.signals,
            lag.seconds,
            extra={"user.id": self.stream.reader.user_id, "stream.id": self.stream.stream_id},
        )

    def _finish(self, error: ServiceError, *, at_once: bool = False) -> None:
        if not self._is_finished:
            self._is_finished = True
            metrics.STREAMS_ENDED.labels(error.reason).inc()
        self.writer.finish(error, at_once=at_once)

    def _pass_on(self) -> None:
        for cursor in self.stream.wants():
            if cursor not in self._asked:
                self._asked.add(cursor)
                self._needs.page(self, cursor)
        for turn in self.stream.turned():
            self._needs.turned(self, turn)


def _gap_name(reason: int) -> str:
    named = position_pb2.GapReason.DESCRIPTOR.values_by_number.get(reason)
    return str(reason) if named is None else named.name.removeprefix("GAP_REASON_")
