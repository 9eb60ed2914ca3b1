"""Opens streams: checks each start against the log, and builds the stream where all of them hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.clock import Clock
from services.common.log import SignalLog
from services.fanout.backlog import Backlog, Gone
from services.fanout.domain import errors
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.errors import PositionUnavailableError, Unavailable
from services.fanout.domain.position import BEGINNING, Position, held
from services.fanout.domain.request import Begin, Start
from services.fanout.domain.resume import Reach, reach_of
from services.fanout.domain.ring import MasterLog, Ring, Segment
from services.fanout.domain.stream import Reader, Stream, StreamLimits
from services.fanout.entitlements import Entitlement, Identity


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream that is about to begin."""

    stream: Stream
    begun: tuple[tuple[Cursor, Begin], ...]
    """Each cursor, and where it begins: with SNAPSHOT it waits for one."""


class Opening:
    """Turns starts into streams."""

    def __init__(
        self, signal_log: SignalLog, ring: Ring, backlog: Backlog, clock: Clock, limits: StreamLimits
    ) -> None:
        self._signal_log = signal_log
        self._ring = ring
        self._backlog = backlog
        self._clock = clock
        self._limits = limits

    async def open(
        self, stream_id: int, reader: Reader, identity: Identity, starts: Sequence[Start]
    ) -> Opened:
        """The stream for these starts; for none, of everything that the user follows, from now.

        Raises:
            PermissionDeniedError: a master that the user does not follow, or none at all.
            PositionUnavailableError: positions that cannot be resumed from.
            UnavailableError: Redis or the ledger does not answer.
        """
        wanted = list(starts) or [Start(master_id, Begin.NOW) for master_id in identity.entitlements]
        missing = [one.master_id for one in wanted if one.master_id not in identity.entitlements]
        if missing or not wanted:
            raise errors.not_subscribed(missing)
        logs = await self._logs([one.master_id for one in wanted])
        pages = await self._check([(logs[one.master_id], one) for one in wanted if one.begin is Begin.AFTER])
        if any(self._ring.get(master_id) is not log for master_id, log in logs.items()):
            raise errors.log_replaced()
        cursors = [
            self._cursor(logs[one.master_id], identity.entitlements[one.master_id], one, pages)
            for one in wanted
        ]
        stream = Stream(stream_id, reader, cursors, self._limits, now_us=self._clock.now_us())
        for cursor in stream.wants():
            page = pages.get(cursor.master_id)
            if page is not None:
                stream.feed(cursor, page, self._clock.now_us())
        return Opened(stream, tuple((stream.cursors[one.master_id], one.begin) for one in wanted))

    async def head(self, master_id: int) -> Position:
        """The last position of a master, as far as this process or the log knows.

        Raises:
            UnavailableError: Redis does not answer.
        """
        log = self._ring.get(master_id)
        stored = await self._signal_log.read_head(master_id)
        known = BEGINNING if log is None else log.head
        return known if stored is None else max(known, Position(*stored.position))

    async def _logs(self, master_ids: Sequence[int]) -> dict[int, MasterLog]:
        """The masters' logs; one that the ring does not have begins at the head that the log tells."""
        unknown = [master_id for master_id in master_ids if self._ring.get(master_id) is None]
        heads = await self._signal_log.read_heads(unknown)
        return {
            master_id: self._ring.open(
                master_id, Position(*heads[master_id].position) if master_id in heads else BEGINNING
            )
            for master_id in master_ids
        }

    async def _check(self, starts: Sequence[tuple[MasterLog, Start]]) -> dict[int, Segment]:
        """Sees whether each position can be resumed from; returns the pages that were read to find out."""
        results = await asyncio.gather(*(self._check_one(log, held(one.after)) for log, one in starts))
        pages: dict[int, Segment] = {}
        unavailable: list[Unavailable] = []
        for (log, start), result in zip(starts, results, strict=True):
            if isinstance(result, Segment):
                pages[start.master_id] = result
            elif result is not None:
                unavailable.append(await self._unavailable(log, start.after, result))
        if unavailable:
            raise PositionUnavailableError(unavailable)
        return pages

    async def _check_one(self, log: MasterLog, after: Position) -> Segment | Gone | None:
        """None: the ring goes on from there."""
        match reach_of(log, after):
            case Reach.RING:
                return None
            case Reach.AHEAD:
                # Another process may have read further than this one has by now.
                return None if after <= await self.head(log.master_id) else Gone(None)
            case Reach.BEHIND:
                return await self._backlog.read(log.master_id, after)

    async def _unavailable(self, log: MasterLog, requested: Position, gone: Gone) -> Unavailable:
        stored = await self._signal_log.read_head(log.master_id)
        as_of = None if stored is None or stored.snapshot is None else Position(*stored.snapshot)
        head = log.head if stored is None else max(log.head, Position(*stored.position))
        oldest = gone.oldest if gone.oldest is not None else log.floor
        return Unavailable(log.master_id, requested, oldest, head, as_of)

    def _cursor(
        self, log: MasterLog, entitlement: Entitlement, start: Start, pages: dict[int, Segment]
    ) -> Cursor:
        cursor = Cursor(
            log,
            subscription_id=entitlement.subscription_id,
            pause=entitlement.pause,
            version=entitlement.version,
        )
        if start.begin is Begin.SNAPSHOT:
            cursor.resync()
        elif start.begin is Begin.NOW:
            cursor.start(log.head)
            cursor.in_step_at(log.head, "the stream begins now")
        else:
            cursor.start(start.after)
        return cursor
