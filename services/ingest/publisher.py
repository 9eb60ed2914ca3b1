"""The log as the front door writes it: all its shards, each kept connected; it moves no signal itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from services.common import log, stream, tasks
from services.common.backoff import Backoff
from services.common.errors import ConfigurationError, ServiceError, UnavailableError
from services.ingest import durability, metrics
from services.ingest.domain.values import LogHead, OpenLog, Run, StoreSnapshot
from services.ingest.lanes import Lane, Owner
from services.ingest.settings import IngestSettings
from services.ingest.shard import Shard

_log = logging.getLogger(__name__)

_WATCH_SECONDS: Final = 0.25
_REMEDIES: Final = {
    durability.UNSUPPORTED: ("DURABILITY", "change it or the server"),
    log.SHARDS_DIFFER: ("LOG_SHARDS", "set it to the log's number in every process"),
}
"""Reasons that waiting does not mend, with the setting that does."""


class Publisher:
    """All shards; each master has its own for the life of the log. `publishing` makes one and keeps it connected."""

    def __init__(self, settings: IngestSettings) -> None:
        """
        Raises:
            ConfigurationError: REDIS_URL is not set or is no URL.
        """
        self.shards = tuple(Shard(settings, number) for number in range(settings.log_shards))
        self._settings = settings
        metrics.log_shards(settings.log_shards)

    @property
    def is_ready(self) -> bool:
        """Whether the log takes appends now, in all shards."""
        return all(shard.is_ready for shard in self.shards)

    def credits(self, window: int, lane: Lane | None = None) -> int:
        """What a session with this window may be offered: less while its shard (without a lane: any) is behind."""
        is_behind = any(shard.is_behind for shard in self.shards) if lane is None else lane.way.is_behind
        return max(1, window // 4) if is_behind else window

    def open(self, command: OpenLog, now_us: int, then: Callable[[LogHead | ServiceError], None]) -> None:
        """Begins a session in the log; `then` gets the head, at once or later, or why there is none."""
        self._shard(command.master_id).open(command, now_us, then)

    def enter(self, owner: Owner, master_id: int, session_epoch: int) -> Lane:
        """A lane for an opened session; `leave` it when the session ends."""
        return self._shard(master_id).enter(owner, master_id, session_epoch)

    def leave(self, lane: Lane) -> None:
        """The session has ended. What is under way still goes into the log."""
        lane.way.leave(lane)

    def store_snapshot(
        self, lane: Lane, command: StoreSnapshot, key_id: str, now_us: int, then: Callable[[bool], None]
    ) -> None:
        """Stores a snapshot behind all runs handed over before; `then` learns whether it is there."""
        lane.way.store_snapshot(lane, command, key_id, now_us, then)

    def append(self, lane: Lane, runs: list[Run]) -> None:
        """Hands over runs, in order. The owner is answered later, or told now that the log is away."""
        lane.way.append(lane, runs)

    def discard(self, lane: Lane) -> None:
        """Forgets what the lane has handed over and was not sent; the session has refused it."""
        lane.way.discard(lane)

    async def connect(self) -> None:
        """Connects all shards, as far as they can be reached.

        Raises:
            ConfigurationError: one is there and cannot give the configured durability, or is of another log.
        """
        results = await asyncio.gather(*(shard.connect() for shard in self.shards), return_exceptions=True)
        for error in results:
            if isinstance(error, UnavailableError):
                if error.reason in _REMEDIES:
                    where, remedy = _REMEDIES[error.reason]
                    raise ConfigurationError(error.message, where=where, do=remedy) from error
                _log.warning("the log is not available yet: %s", error.message)
            elif error is not None:
                raise error

    async def keep_connected(self) -> None:
        """Connects each shard after every loss, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for shard in self.shards:
                group.create_task(self._keep_connected(shard))

    def close(self) -> None:
        """Ends the connections."""
        for shard in self.shards:
            shard.close()

    def _shard(self, master_id: int) -> Shard:
        return self.shards[stream.shard_of(master_id, len(self.shards))]

    async def _keep_connected(self, shard: Shard) -> None:
        backoff = Backoff(initial_seconds=0.05, cap_seconds=1.0, floor_seconds=0.02)
        last_reason = ""
        while True:
            if shard.is_ready:
                backoff.reset()
                last_reason = ""
                await self._wait_until_lost(shard)
            try:
                await shard.connect()
            except UnavailableError as error:
                if error.reason != last_reason:
                    _log.warning("the log is not available: %s (%s)", error.message, error.reason)
                last_reason = error.reason
                await asyncio.sleep(backoff.next_delay())

    async def _wait_until_lost(self, shard: Shard) -> None:
        """Waits until the connection is lost; cuts it when a flush, or another call, takes too long."""
        while not shard.lost.is_set():
            metrics.OUTSTANDING.set(sum(one.outstanding_bytes for one in self.shards))
            metrics.CREDITS.set(self.credits(self._settings.signal_window))
            shard.cut_if_stalled()
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    await shard.lost.wait()
            except TimeoutError:
                continue


@asynccontextmanager
async def publishing(settings: IngestSettings) -> AsyncIterator[Publisher]:
    """A publisher that connects by itself, now and after every loss, until the block ends.

    Raises:
        ConfigurationError: REDIS_URL is wrong, or the server is there and cannot give the configured durability, or the
            log is of another number of shards.
    """
    publisher = Publisher(settings)
    try:
        await publisher.connect()
        async with tasks.background(publisher.keep_connected()):
            yield publisher
    finally:
        publisher.close()
