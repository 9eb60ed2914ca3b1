"""Follows the log of one shard into the ring and wakes the streams; it knows no subscriber."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from services.common import log as signal_log
from services.common import stream, tail
from services.common.backoff import Backoff
from services.common.errors import UnavailableError
from services.common.log import SignalLog
from services.common.stream import Entry, EntryId
from services.fanout import metrics
from services.fanout.domain.index import EntryKey, LogIndex
from services.fanout.domain.intake import Intake
from services.fanout.domain.pacing import Pacing
from services.fanout.domain.position import Position
from services.fanout.domain.runs import Run, runs_of
from services.fanout.hub import Hub

_log = logging.getLogger(__name__)

_FILL_PAGE_ENTRIES = 500
_YIELD_ENTRIES = 50


@dataclass(frozen=True, slots=True)
class TailLimits:
    """How much is read at start and at a time."""

    fill_entries_max: int
    fill_bytes_max: int
    block_ms: int
    entries_max: int
    masters_max: int
    audit_interval_seconds: float


class Tailer:
    """Reads one shard of the log once for all streams of the process."""

    def __init__(
        self,
        log: SignalLog,
        shard: int,
        intake: Intake,
        index: LogIndex,
        hub: Hub,
        pacing: Pacing,
        limits: TailLimits,
        *,
        on_snapshot: Callable[[int], None],
        on_replaced: Callable[[int], None],
    ) -> None:
        """`on_snapshot(master_id)`: a newer snapshot is stored. `on_replaced(shard)`: the shard's log is a new one, and
        the ring forgot its masters."""
        self.filled = asyncio.Event()
        """Set once the end of the log was read: streams can be opened."""
        self.is_connected = False
        self._log = log
        self._client = log.client(shard)
        self._intake = intake
        self._index = index
        self._hub = hub
        self._pacing = pacing
        self._limits = limits
        self._on_snapshot = on_snapshot
        self._on_replaced = on_replaced
        self._shard = shard
        self._name = stream.log_name(shard)
        self._log_id: str | None = None
        self._is_caught_up = False
        self._took_seconds = 0.0

    async def run(self) -> None:
        """Fills the ring from the end of the log, then follows it, until cancelled; outages are waited out."""
        after = await self._fill_at_start()
        events = tail.tail(
            self._client,
            self._name,
            after,
            block_ms=self._limits.block_ms,
            count=self._limits.entries_max,
            on_entries=self._arrived,
        )
        async with aclosing(events):  # type: ignore[type-var]  # tail is an async generator
            async for event in events:
                match event:
                    case tail.Entries(_, caught_up):
                        self._is_caught_up = caught_up
                        await self._rest()
                    case tail.Connected():
                        self.is_connected = True
                        await self._look_again(went_back=False)
                    case tail.Disconnected(error):
                        self.is_connected = False
                        metrics.TAIL_BROKEN.labels("disconnected").inc()
                        _log.warning("the log cannot be read: %s", error.message)
                    case tail.Trimmed(cursor, first):
                        metrics.TAIL_BROKEN.labels("trimmed").inc()
                        _log.warning(
                            "the log was trimmed before it was read, between %s and %s", cursor, first
                        )
                    case tail.Restored(cursor, last):
                        metrics.TAIL_BROKEN.labels("restored").inc()
                        _log.warning("the log went back from %s to %s", cursor, last)
                        await self._look_again(went_back=True)

    async def audit_forever(self) -> None:
        """Compares the heads that the log tells with what was read: nothing may go missing in silence.

        A head that was told one interval ago and has not been read since, although everything was, is one that the
        log let go of before it was read. Readers are then served from behind the ring, or told what is gone.
        """
        told: dict[int, Position] = {}
        while True:
            await asyncio.sleep(self._limits.audit_interval_seconds)
            if not (self.is_connected and self.filled.is_set()):
                told.clear()
                continue
            try:
                if self._is_caught_up:
                    self._catch_up_with(told)
                heads = await signal_log.read_heads(self._client, self._followed(), shard=self._shard)
            except UnavailableError:
                told.clear()
            else:
                told = {master_id: Position(*head.position) for master_id, head in heads.items()}

    def _followed(self) -> list[int]:
        return [master_id for master_id in self._hub.followed() if self._is_ours(master_id)]

    def _is_ours(self, master_id: int) -> bool:
        return self._log.shard_of(master_id) == self._shard

    def _catch_up_with(self, told: dict[int, Position]) -> None:
        for master_id, head in told.items():
            log = self._hub.ring.get(master_id)
            if log is None or head <= log.head:
                continue
            metrics.TAIL_BROKEN.labels("missed").inc()
            _log.warning("master %s stands at %s, of which the log told nothing", master_id, tuple(head))
            if self._intake.advance(log, head):
                self._hub.log_grew([log])

    async def _fill_at_start(self) -> EntryId:
        backoff = Backoff(initial_seconds=0.1, cap_seconds=2.0, floor_seconds=0.05)
        while True:
            try:
                self._log_id = await self._read_log_id()
                last = await stream.last_id(self._client, self._name)
                await self._fill(last)
            except UnavailableError as error:
                _log.warning("%s cannot be read yet: %s", self._name, error.message)
                await asyncio.sleep(backoff.next_delay())
                continue
            self.is_connected = self._is_caught_up = True
            self.filled.set()
            _log.info("the ring holds %d masters up to entry %s of %s", len(self._hub.ring), last, self._name)
            return last

    async def _read_log_id(self) -> str | None:
        """The name of this life of the log.

        Raises:
            UnavailableError: Redis does not answer, or the log is of another number of shards.
        """
        meta = await signal_log.read_meta(self._client, shard=self._shard)
        try:
            meta.check_shards(len(self._log.shards))
        except UnavailableError:
            # Masters would be looked for in the wrong shards, and missed without a word.
            self.filled.clear()
            raise
        return meta.log_id

    async def _fill(self, last: EntryId) -> None:
        """Reads the end of the log up to `last`, newest first, and takes it in, oldest first."""
        taken: list[Entry] = []
        size_bytes = 0
        before = f"{last}"
        while len(taken) < self._limits.fill_entries_max and size_bytes < self._limits.fill_bytes_max:
            count = min(_FILL_PAGE_ENTRIES, self._limits.fill_entries_max - len(taken))
            with stream.translating():
                raw: Any = await self._client.xrevrange(self._name, max=before, count=count)
            page = stream.entries_of(raw)
            taken.extend(page)
            size_bytes += sum(len(entry.payload or b"") for entry in page)
            if len(page) < count:
                break
            before = f"({page[-1].id}"
        taken.reverse()
        for start in range(0, len(taken), _YIELD_ENTRIES):
            self._take_in(taken[start : start + _YIELD_ENTRIES])
            await asyncio.sleep(0)

    def _arrived(self, entries: Sequence[Entry]) -> None:
        """Takes in what was read and wakes the streams, on the stack of the socket that it came from."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._take_in(entries)
        self._took_seconds = loop.time() - began

    async def _rest(self) -> None:
        """Rests in proportion to what the entries cost."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        # The woken streams' coroutines have their turn before the next read.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest_seconds = self._pacing.rest_seconds(self._took_seconds + loop.time() - began)
        if rest_seconds > 0:
            await asyncio.sleep(rest_seconds)

    def _take_in(self, entries: Sequence[Entry]) -> None:
        read = [self._runs_of(entry) for entry in entries]
        # Most of the time there is only one.
        runs = read[0] if len(read) == 1 else [run for one in read for run in one]
        grown, snapshots = self._intake.apply(runs)
        self._hub.log_grew(grown)
        # What nobody waits for comes behind the deliveries.
        for entry, one in zip(entries, read, strict=True):
            self._index.note(EntryKey(entry.id.ms, entry.id.number), one)
        metrics.TAILED_ENTRIES.inc(len(entries))
        metrics.TAILED_SIGNALS.inc(sum(_signals_in(run) for run in runs))
        if len(self._hub.ring) > self._limits.masters_max:
            self._intake.discard(lambda log: not self._hub.has_followers(log))
        for master_id in snapshots:
            self._on_snapshot(master_id)

    def _runs_of(self, entry: Entry) -> list[Run]:
        """The sound runs of an entry."""
        try:
            runs, unsound = runs_of(entry.payload or b"")
        except DecodeError:
            runs, unsound = [], 1
        if unsound:
            metrics.UNREADABLE.labels(self._name).inc()
            _log.error("entry %s of the log cannot be read, or only in part", entry.id)
        return runs

    async def _look_again(self, *, went_back: bool) -> None:
        """After an outage: is it the same log, and has it come back with other entries than were read?"""
        try:
            log_id = await self._read_log_id()
            if self._log_id is not None and log_id != self._log_id:
                metrics.TAIL_BROKEN.labels("replaced").inc()
                _log.error("%s is a new log: its masters' streams begin again", self._name)
                self._intake.discard(lambda log: self._is_ours(log.master_id))
                self._index.clear()
                self._on_replaced(self._shard)
                went_back = True
            self._log_id = log_id
            if went_back:
                self._index.clear()
                await self._fill(await stream.last_id(self._client, self._name))
        except UnavailableError as error:
            # The tail notices the same, and asks to look again when Redis is back.
            self.is_connected = False
            _log.warning("the log cannot be looked at again yet: %s", error.message)


def _signals_in(run: Run) -> int:
    return run.last.sequence - run.before.sequence if run.kind == "batch" else 0
