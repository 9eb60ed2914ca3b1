"""Which sessions are open in this process, and what all of them share; it moves no bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from services.ingest import metrics
from services.ingest.domain.rate import TokenBucket

if TYPE_CHECKING:
    from services.ingest.peer import Peer

_BUCKETS_MAX: Final = 20_000


class Sessions:
    """The open sessions by master. A later session of a master takes the place of the former one."""

    def __init__(self) -> None:
        self._by_master: dict[int, Peer] = {}
        self._count_by_master: dict[int, int] = {}
        self._buckets: OrderedDict[int, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_master)

    def find(self, master_id: int) -> Peer | None:
        """The master's open session here."""
        return self._by_master.get(master_id)

    def all(self) -> list[Peer]:
        """The open sessions, in ascending order of master_id."""
        return [self._by_master[master_id] for master_id in sorted(self._by_master)]

    def enter(self, master_id: int, peer: Peer) -> Peer | None:
        """Makes `peer` the master's session; returns the one whose place it takes."""
        former = self._by_master.get(master_id)
        self._by_master[master_id] = peer
        metrics.CONNECTIONS.labels("open").set(len(self._by_master))
        return former

    def leave(self, master_id: int, peer: Peer) -> None:
        """The session has ended."""
        if self._by_master.get(master_id) is peer:
            del self._by_master[master_id]
            metrics.CONNECTIONS.labels("open").set(len(self._by_master))

    def count(self, master_id: int, change: int) -> int:
        """Counts connections that proved to be the master's; returns how many there are now."""
        count = self._count_by_master.get(master_id, 0) + change
        if count > 0:
            self._count_by_master[master_id] = count
        else:
            self._count_by_master.pop(master_id, None)
        return count

    def bucket(self, master_id: int, per_second: float, burst: float, now_seconds: float) -> TokenBucket:
        """The master's rate limit, which outlives its sessions, so that reconnecting gains nothing."""
        bucket = self._buckets.get(master_id)
        if bucket is None:
            bucket = self._buckets[master_id] = TokenBucket(per_second, burst, now_seconds)
            if len(self._buckets) > _BUCKETS_MAX:
                self._buckets.popitem(last=False)
        bucket.set_rate(per_second, burst)
        self._buckets.move_to_end(master_id)
        return bucket
