"""Reads what the ring has let go of: from the log, then from the archive, in bounded pages shared by all who ask.

It never touches the ring or a stream. Readings of the same place wait for the same answer, few are under way at once,
and long ones let the event loop go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from execution.common.v1 import position_pb2
from execution.ledger.v1 import archive_service_pb2, archive_service_pb2_grpc
from services.common import rpc, stream
from services.common.errors import OutOfRangeError, UnavailableError
from services.common.log import SignalLog
from services.common.stream import Redis
from services.fanout import metrics
from services.fanout.domain.index import EntryKey, LogIndex
from services.fanout.domain.intake import records_of_archive, records_of_run
from services.fanout.domain.position import Position, held
from services.fanout.domain.ring import Record, Segment
from services.fanout.domain.runs import Run, runs_of

_READ_ENTRIES: Final = 32
"""At once: an entry may hold thousands of signals."""
_READS_PER_PAGE: Final = 8
_TAIL_POLL_SECONDS: Final = 0.005
_SLICE_SECONDS: Final = 0.001
"""Longest time for which parsing keeps the event loop."""


@dataclass(frozen=True, slots=True)
class Gone:
    """What follows the position is not to be had any more; `oldest` is the oldest place to go on from, if known."""

    oldest: Position | None


@dataclass(frozen=True, slots=True)
class BacklogLimits:
    """How much is read and kept."""

    walk_entries_max: int
    page_records_max: int
    pages_cached_max: int
    reads_max: int
    timeout_seconds: float


Answer = Segment | Gone


class Backlog:
    """Pages of older records."""

    def __init__(
        self,
        log: SignalLog,
        indexes: Sequence[LogIndex],
        archive: archive_service_pb2_grpc.ArchiveServiceAsyncStub,
        limits: BacklogLimits,
    ) -> None:
        """`indexes`: one for each shard of the log."""
        self._log = log
        self._shards = [
            _Shard(log.client(shard), stream.log_name(shard), index)
            for shard, index in zip(log.shards, indexes, strict=True)
        ]
        self._archive = archive
        self._limits = limits
        self._pages: OrderedDict[tuple[int, Position], Segment] = OrderedDict()
        self._under_way: dict[tuple[int, Position], asyncio.Task[Answer]] = {}
        self._log_reads = asyncio.Semaphore(limits.reads_max)
        self._archive_reads = asyncio.Semaphore(limits.reads_max)

    async def read(self, master_id: int, after: Position) -> Answer:
        """The records right behind `after`, at most a page of them; Gone when the next one is not to be had.

        Raises:
            UnavailableError: Redis or the ledger does not answer in time; try again.
        """
        key = (master_id, held(after))
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
            metrics.PAGES.labels("cache", "found").inc()
            return page
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._read(*key), name="backlog page")
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # One who asked and went away must not take the answer from the others.
        return await asyncio.shield(task)

    def forget(self, shard: int) -> None:
        """Forgets the pages of a shard's masters: its log is another one."""
        for key in [key for key in self._pages if self._log.shard_of(key[0]) == shard]:
            del self._pages[key]

    async def _read(self, master_id: int, after: Position) -> Answer:
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                shard = self._shards[self._log.shard_of(master_id)]
                newest = shard.newest
                answer = await self._look_up(shard, master_id, after)
                if isinstance(answer, Gone) and await shard.has_read_on(newest):
                    answer = await self._look_up(shard, master_id, after)
        except TimeoutError as error:
            raise UnavailableError(
                "older signals could not be read in time", reason="BACKLOG_TIMEOUT", retry_after_seconds=1
            ) from error
        if isinstance(answer, Segment):
            self._pages[master_id, after] = answer
            while len(self._pages) > self._limits.pages_cached_max:
                self._pages.popitem(last=False)
        return answer

    async def _look_up(self, shard: _Shard, master_id: int, after: Position) -> Answer:
        async with self._log_reads:
            records = await shard.read(
                master_id,
                after,
                records_max=self._limits.page_records_max,
                walk_entries_max=self._limits.walk_entries_max,
            )
        if records and records[0].follows(after):
            metrics.PAGES.labels("log", "found").inc()
            return Segment(after, records)
        oldest = records[0].before if records else None
        async with self._archive_reads:
            archived = await self._from_archive(master_id, after)
        if isinstance(archived, Gone):
            metrics.PAGES.labels("archive", "gone").inc()
            return archived if archived.oldest is not None else Gone(oldest)
        if archived and archived[0].follows(after):
            metrics.PAGES.labels("archive", "found").inc()
            return Segment(after, _dense(archived))
        metrics.PAGES.labels("archive", "gone").inc()
        return Gone(archived[0].before if archived else oldest)

    async def _from_archive(self, master_id: int, after: Position) -> list[Record] | Gone:
        request = archive_service_pb2.ReadSignalsRequest(
            master_id=master_id,
            after=position_pb2.StreamPosition(epoch=after.epoch, sequence=after.sequence),
            records_max=self._limits.page_records_max,
        )
        if after.sequence == 0 and after.epoch == 1:
            request.after.epoch = 0
        records: list[Record] = []
        pace = _Pace()
        try:
            with rpc.peer_errors("ledger"):
                async for response in self._archive.ReadSignals(request):
                    await pace.rest()
                    records.extend(records_of_archive(response.records, after=after))
        except OutOfRangeError as error:
            return Gone(_parse_position(error.metadata.get("oldest", "")))
        return records[: self._limits.page_records_max]


class _Shard:
    """Finds places in one shard's log, and reads from there."""

    def __init__(self, client: Redis, name: str, index: LogIndex) -> None:
        self._client = client
        self._name = name
        self._index = index
        self._walking = asyncio.Lock()

    async def read(
        self, master_id: int, after: Position, *, records_max: int, walk_entries_max: int
    ) -> list[Record]:
        """What the log holds right behind `after`; behind a hole when the log was trimmed; nothing if unknown."""
        block = self._index.locate(master_id, after)
        if block is None:
            await self._walk_back(master_id, after, walk_entries_max)
            block = self._index.locate(master_id, after)
        if block is None:
            return []
        start, is_first = block.first, True
        records: list[Record] = []
        for _ in range(_READS_PER_PAGE):
            entries = await self._range(start, inclusive=is_first)
            if is_first and entries and _key(entries[0]) > start:
                self._index.forget_before(_key(entries[0]))
            records += await _records(entries, master_id, after)
            if len(entries) < _READ_ENTRIES or len(records) >= records_max:
                break
            start, is_first = _key(entries[-1]), False
        return _dense(records)

    @property
    def newest(self) -> EntryKey | None:
        """The newest entry that the tail has read."""
        return self._index.newest

    async def has_read_on(self, newest: EntryKey | None) -> bool:
        """Waits until the tail has read everything that the log has now; whether it has read beyond `newest`.

        The heads that the log tells may be some entries ahead of what was read of it.

        Raises:
            UnavailableError: Redis does not answer.
        """
        with stream.translating():
            raw: Any = await self._client.xrevrange(self._name, count=1)
        entries = stream.entries_of(raw)
        while entries and not self._has_read(_key(entries[0])):  # noqa: ASYNC110 - bounded by the caller, and rare
            await asyncio.sleep(_TAIL_POLL_SECONDS)
        return self.newest != newest

    def _has_read(self, key: EntryKey) -> bool:
        newest = self.newest
        return newest is not None and newest >= key

    async def _walk_back(self, master_id: int, after: Position, entries_max: int) -> None:
        """Looks at older entries until the place is found, the log ends, or the bound is reached."""
        async with self._walking:
            for _ in range(entries_max // _READ_ENTRIES):
                known = self._index.locate(master_id, after) is not None
                if known or self._index.reaches_beginning or not self._index.has_room:
                    return
                await self._look_further_back()

    async def _look_further_back(self) -> None:
        oldest = self._index.oldest
        before = "+" if oldest is None else f"({oldest.ms}-{oldest.number}"
        with stream.translating():
            raw: Any = await self._client.xrevrange(self._name, max=before, count=_READ_ENTRIES)
        entries = stream.entries_of(raw)
        pace = _Pace()
        parsed: list[tuple[EntryKey, list[Run]]] = []
        for entry in reversed(entries):
            await pace.rest()
            parsed.append((_key(entry), _parse(entry.payload)))
        if self._index.oldest == oldest:
            self._index.note_older(parsed)
            if len(entries) < _READ_ENTRIES:
                self._index.reaches_beginning = True

    async def _range(self, start: EntryKey, *, inclusive: bool) -> tuple[stream.Entry, ...]:
        lowest = f"{'' if inclusive else '('}{start.ms}-{start.number}"
        with stream.translating():
            raw: Any = await self._client.xrange(self._name, min=lowest, count=_READ_ENTRIES)
        return stream.entries_of(raw)


async def _records(entries: Iterable[stream.Entry], master_id: int, after: Position) -> list[Record]:
    """The master's records in the entries, behind `after`."""
    pace = _Pace()
    records: list[Record] = []
    for entry in entries:
        await pace.rest()
        for run in _parse(entry.payload):
            if run.master_id == master_id:
                records.extend(records_of_run(run, after=after))
    return records


def _key(entry: stream.Entry) -> EntryKey:
    return EntryKey(entry.id.ms, entry.id.number)


class _Pace:
    """Lets the event loop go on every now and then."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def rest(self) -> None:
        if time.monotonic() - self._since > _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._since = time.monotonic()


def _parse(payload: bytes | None) -> list[Run]:
    try:
        return runs_of(payload or b"")[0]
    except DecodeError:
        # Told and counted when it was tailed.
        return []


def _dense(records: Iterable[Record]) -> list[Record]:
    """The records up to the first hole."""
    dense: list[Record] = []
    for record in records:
        if dense and not record.follows(dense[-1].position):
            break
        dense.append(record)
    return dense


def _parse_position(text: str) -> Position | None:
    """The archive's `oldest`: epoch and sequence in decimal, with any single character between them."""
    words = "".join(character if character.isdigit() else " " for character in text).split()
    return Position(int(words[0]), int(words[1])) if len(words) == 2 else None
