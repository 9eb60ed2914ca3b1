"""Knows the open streams of this process and wakes them; it reads no log and writes no socket."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.clock import Clock
from services.common.errors import ResourceExhaustedError, ServiceError
from services.fanout import metrics
from services.fanout.delivery import Delivery
from services.fanout.domain import errors
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.level import Follower, level_at, move_behind, pieces
from services.fanout.domain.ring import MasterLog, Ring
from services.fanout.domain.stream import ProgressCache, StreamLimits, state_of

_log = logging.getLogger(__name__)

# The more, the shorter signals wait for a tick among thousands of streams. A power of two.
_TURNS = 64
# Waking up costs more than looking at a few streams.
_STREAMS_AT_ONCE = 8
# A few streams need not be spread over as long a time as thousands.
_DRAIN_SECONDS_EACH = 0.01
_AGE_SPREAD = 0.1
# Of Knuth's multiplicative hash: numbers in a row become numbers without order.
_KNUTH = 2_654_435_761


@dataclass(frozen=True, slots=True)
class HubLimits:
    """How many streams there may be, how old, and how often each is looked at."""

    streams_max: int
    streams_per_user_max: int
    stream_age_seconds_max: float | None
    progress_interval_seconds: float
    drain_jitter_seconds: float
    messages: StreamLimits
    first_stream_id: int = 1


class _Follower(Follower):
    """With whom to talk to."""

    __slots__ = ("delivery", "outlet")

    def __init__(self, delivery: Delivery, cursor: Cursor) -> None:
        super().__init__(delivery.stream, cursor)
        self.delivery = delivery
        self.outlet = delivery.writer.outlet


class Hub:
    """All open streams, by stream, by user and by master."""

    def __init__(self, ring: Ring, clock: Clock, limits: HubLimits) -> None:
        self.ring = ring
        self.draining = False
        self._clock = clock
        self._limits = limits
        self._deliveries: dict[int, Delivery] = {}
        self._by_turn: list[dict[int, Delivery]] = [{} for _ in range(_TURNS)]
        self._by_user: dict[str, dict[int, Delivery]] = {}
        self._followers: dict[int, dict[Cursor, _Follower]] = {}
        self._told: dict[int, int] = {}
        """Where each followed log ended when its followers were told last."""
        self._next_id = limits.first_stream_id

    def __len__(self) -> int:
        return len(self._deliveries)

    def __iter__(self) -> Iterator[Delivery]:
        """All streams, in no order; those that come or go meanwhile do no harm."""
        return iter(tuple(self._deliveries.values()))

    def states(self) -> Iterator[str]:
        """The state of every subscription of an open stream, by name; may be asked from another thread."""
        for delivery in self:
            for cursor in tuple(delivery.stream.cursors.values()):
                yield pb.SubscriptionState.Name(state_of(cursor)).removeprefix("SUBSCRIPTION_STATE_")

    def of_user(self, user_id: str) -> tuple[Delivery, ...]:
        """The user's open streams."""
        return tuple(self._by_user.get(user_id, {}).values())

    def next_id(self) -> int:
        """A number for a new stream."""
        self._next_id += 1
        return self._next_id - 1

    def admit(self, user_id: str) -> None:
        """Sees whether there is room for one more stream of the user.

        Raises:
            ResourceExhaustedError: there is not.
            UnavailableError: the process is draining.
        """
        if self.draining:
            raise errors.draining()
        if len(self._deliveries) >= self._limits.streams_max:
            raise ResourceExhaustedError(
                "this process has as many streams as it may", reason="TOO_MANY_STREAMS", retry_after_seconds=1
            )
        if len(self._by_user.get(user_id, {})) >= self._limits.streams_per_user_max:
            raise ResourceExhaustedError(
                f"the user has {self._limits.streams_per_user_max} streams open already",
                reason="TOO_MANY_STREAMS_OF_USER",
                retry_after_seconds=1,
            )

    def add(self, delivery: Delivery) -> None:
        """The stream is open: from now on it is woken."""
        stream = delivery.stream
        self._deliveries[stream.stream_id] = delivery
        self._by_turn[stream.stream_id % _TURNS][stream.stream_id] = delivery
        self._by_user.setdefault(stream.reader.user_id, {})[stream.stream_id] = delivery
        for cursor in stream.cursors.values():
            self._followers.setdefault(cursor.master_id, {})[cursor] = _Follower(delivery, cursor)
        metrics.STREAMS.set(len(self._deliveries))

    def remove(self, delivery: Delivery) -> None:
        """The stream is over."""
        stream = delivery.stream
        if self._deliveries.pop(stream.stream_id, None) is None:
            return
        del self._by_turn[stream.stream_id % _TURNS][stream.stream_id]
        streams = self._by_user.get(stream.reader.user_id, {})
        streams.pop(stream.stream_id, None)
        if not streams:
            self._by_user.pop(stream.reader.user_id, None)
        for cursor in stream.cursors.values():
            self.unfollow(cursor)
        metrics.STREAMS.set(len(self._deliveries))

    def unfollow(self, cursor: Cursor) -> None:
        """The cursor is not woken any more."""
        followers = self._followers.get(cursor.master_id)
        if followers is not None:
            followers.pop(cursor, None)
            if not followers:
                del self._followers[cursor.master_id]
                self._told.pop(cursor.master_id, None)

    def followed(self) -> list[int]:
        """The masters that some stream follows."""
        return list(self._followers)

    def has_followers(self, log: MasterLog) -> bool:
        """Whether a stream follows the master."""
        return log.master_id in self._followers

    def log_grew(self, logs: Iterable[MasterLog]) -> int:
        """Wakes each stream that follows one of the logs, once; returns how many."""
        woken: dict[Delivery, None] = {}
        reached = 0
        grown = [log for log in logs if log.master_id in self._followers]
        for log in grown:
            followers: Sequence[_Follower] = tuple(self._followers[log.master_id].values())
            start, self._told[log.master_id] = self._told.get(log.master_id, log.end), log.end
            if len(grown) == 1:
                # With several logs at once each stream is better told of all in one message.
                told = self._tell_level(log, start, followers)
                reached = len(told)
                followers = [one for one in followers if one not in told] if reached < len(followers) else ()
            for one in followers:
                if one.stream.wake(one.cursor):
                    woken[one.delivery] = None
        for delivery in woken:
            delivery.pump()
        return reached + len(woken)

    def _tell_level(self, log: MasterLog, start: int, followers: Sequence[_Follower]) -> frozenset[_Follower]:
        """Tells what is new to all streams that stood at the end of the log, as most do; returns who has it all."""
        level = level_at(start, followers)
        now_us, end = self._clock.now_us(), start
        for piece in pieces(log, start, self._limits.messages) if level else ():
            writer = level[0].delivery.writer
            refused = frozenset(writer.write_to_each([one.outlet for one in level], piece.message))
            if refused:
                level = [one for index, one in enumerate(level) if index not in refused]
            metrics.written(piece.message, len(level), now_us)
            move_behind(piece, level, now_us)
            end = piece.end
            if not level:
                break
        return frozenset(level if end == log.end else ())

    def end_following(self, is_one: Callable[[int], bool], error: ServiceError) -> None:
        """Ends every stream that follows such a master, for the same reason."""
        for delivery in self:
            if any(is_one(cursor.master_id) for cursor in delivery.stream.cursors.values()):
                delivery.end(error)

    async def drain(self) -> None:
        """Refuses new streams from now on, and ends those that are open, one after the other in any order.

        Each goes on until its moment, so none is silent for longer than it takes to open another one elsewhere.
        """
        self.draining = True
        deliveries = list(self)
        random.shuffle(deliveries)
        spread_seconds = min(self._limits.drain_jitter_seconds, len(deliveries) * _DRAIN_SECONDS_EACH)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, delivery in enumerate(deliveries):
            due = began + spread_seconds * number / len(deliveries)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            delivery.drain()

    async def tick_forever(self) -> None:
        """Looks at each stream once in each progress interval, a part of them at a time, until cancelled."""
        pause_seconds = self._limits.progress_interval_seconds / _TURNS
        turn = 0
        while True:
            turns = self._turns_at_once()
            await asyncio.sleep(pause_seconds * turns)
            # Thousands may have come meanwhile.
            turns = min(turns, self._turns_at_once())
            self._tick([(turn + one) % _TURNS for one in range(turns)])
            turn = (turn + turns) % _TURNS

    def _turns_at_once(self) -> int:
        """All of them while there are few streams, one while there are many."""
        return _TURNS >> min((len(self) // _STREAMS_AT_ONCE).bit_length(), _TURNS.bit_length() - 1)

    def _tick(self, turns: Iterable[int]) -> None:
        now_us = self._clock.now_us()
        cache = ProgressCache(now_us)
        for delivery in [one for turn in turns for one in self._by_turn[turn].values()]:
            if self._is_old(delivery):
                delivery.drain()
            else:
                delivery.tick(cache)
        metrics.RING_BYTES.set(self.ring.memory_bytes)
        metrics.RING_MASTERS.set(len(self.ring))

    def _is_old(self, delivery: Delivery) -> bool:
        """Whether the stream has reached its age: a tenth more or less, or those of one moment would end at one."""
        age_seconds_max = self._limits.stream_age_seconds_max
        if age_seconds_max is None:
            return False
        chance = (delivery.stream.stream_id * _KNUTH & 0xFFFF) / 0x10000
        share = 1 - _AGE_SPREAD + 2 * _AGE_SPREAD * chance
        return delivery.age_seconds > age_seconds_max * share
