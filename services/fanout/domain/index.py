"""Where in the log each master's positions lie, as far back as was looked; it reads nothing.

The log holds all masters' entries in one stream, so finding what follows a position would mean reading everything
since. This remembers, for blocks of consecutive entries, which positions of which masters they hold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.fanout.domain.position import Position
from services.fanout.domain.runs import Run


class EntryKey(NamedTuple):
    """The id of an entry of the log; compares as Redis orders them."""

    ms: int
    number: int


class Block:
    """Consecutive entries, and for each master in them the place before its first position here and its last."""

    __slots__ = ("entries", "first", "floors", "last", "lasts")

    def __init__(self, first: EntryKey) -> None:
        self.first = first
        self.last = first
        self.entries = 0
        self.floors: dict[int, Position] = {}
        self.lasts: dict[int, Position] = {}

    def note(self, key: EntryKey, runs: Iterable[Run]) -> None:
        """Adds the next entry."""
        self.last = key
        self.entries += 1
        for run in runs:
            if run.kind != "snapshot":
                self.floors.setdefault(run.master_id, run.before)
                self.lasts[run.master_id] = run.last


class LogIndex:
    """The blocks of one shard's log, the newest of those that were looked at.

    Its cost is that of its marks: one for each master in each block. The oldest blocks go when there are too many.
    """

    def __init__(self, *, marks_max: int, block_entries: int) -> None:
        self._marks_max = marks_max
        self._marks = 0
        self._block_entries = block_entries
        self._blocks: deque[Block] = deque()
        self._by_master: dict[int, list[Block]] = {}
        self._open: Block | None = None
        self.reaches_beginning = False
        """Whether nothing older is left in the log."""

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def oldest(self) -> EntryKey | None:
        """The oldest entry that was looked at."""
        return self._blocks[0].first if self._blocks else None

    @property
    def newest(self) -> EntryKey | None:
        """The newest entry that was noted."""
        return self._blocks[-1].last if self._blocks else None

    @property
    def has_room(self) -> bool:
        """Whether older entries may be added without losing newer ones."""
        return self._marks < self._marks_max

    def note(self, key: EntryKey, runs: Sequence[Run]) -> None:
        """Adds an entry behind all others; one that is not behind them is known already."""
        if self._blocks and key <= self._blocks[-1].last:
            return
        if self._open is None or self._open.entries >= self._block_entries:
            self._open = Block(key)
            self._blocks.append(self._open)
        self._open.note(key, runs)
        for run in runs:
            if run.master_id not in self._open.floors:
                continue
            blocks = self._by_master.setdefault(run.master_id, [])
            if not blocks or blocks[-1] is not self._open:
                blocks.append(self._open)
                self._marks += 1
        while self._marks > self._marks_max and len(self._blocks) > 1:
            self._drop_oldest()

    def note_older(self, entries: Sequence[tuple[EntryKey, Sequence[Run]]]) -> None:
        """Adds consecutive entries, oldest first, that lie right before all others."""
        blocks: list[Block] = []
        for key, runs in entries:
            if not blocks or blocks[-1].entries >= self._block_entries:
                blocks.append(Block(key))
            blocks[-1].note(key, runs)
        for block in reversed(blocks):
            self._blocks.appendleft(block)
            self._marks += len(block.floors)
            for master_id in block.floors:
                self._by_master.setdefault(master_id, []).insert(0, block)

    def locate(self, master_id: int, after: Position) -> Block | None:
        """The block that holds what follows `after`; None when it is older than what was looked at, or newer.

        Where the log has a hole there, it is the block behind the hole.
        """
        blocks = self._by_master.get(master_id, [])
        found = bisect_right(blocks, after, key=lambda block: block.floors[master_id])
        if found == 0:
            # Right at the beginning of the log there is nothing older that could hold it.
            return blocks[0] if blocks and self.reaches_beginning else None
        if blocks[found - 1].lasts[master_id] > after:
            return blocks[found - 1]
        return blocks[found] if found < len(blocks) else None

    def forget_before(self, key: EntryKey) -> None:
        """The log was trimmed: entries before `key` are gone."""
        while self._blocks and self._blocks[0].last < key:
            self._drop_oldest()
        self.reaches_beginning = True

    def clear(self) -> None:
        """Nothing is known any more."""
        self._blocks.clear()
        self._by_master.clear()
        self._open = None
        self._marks = 0
        self.reaches_beginning = False

    def _drop_oldest(self) -> None:
        block = self._blocks.popleft()
        self.reaches_beginning = False
        if block is self._open:
            self._open = None
        self._marks -= len(block.floors)
        for master_id in block.floors:
            blocks = self._by_master[master_id]
            del blocks[0]
            if not blocks:
                del self._by_master[master_id]
