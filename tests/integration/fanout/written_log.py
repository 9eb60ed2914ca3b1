"""Writes the log as the front door would: dense runs, heads, snapshots; for tests that need no front door."""

from __future__ import annotations

import time
from collections.abc import Iterable

from redis.asyncio import Redis

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2, log_pb2
from services.common import log as signal_log
from services.common import stream


def now_us() -> int:
    return time.time_ns() // 1_000


def signal(
    number: int, kind: signal_pb2.SignalKind.ValueType = signal_pb2.SIGNAL_KIND_OPEN, **fields: object
) -> signal_pb2.Signal:
    values: dict[str, object] = {
        "kind": kind,
        "position_id": number,
        "symbol": "EURUSD",
        "side": signal_pb2.SIDE_BUY,
        "volume_lots_e8": 10_000_000,
        "price_e8": 107_140_000,
        "stop_loss_e8": 106_000_000,
        "occurred_at_us": now_us(),
    }
    values.update(fields)
    return signal_pb2.Signal(**values)


def batch_run(
    master_id: int, first: int, signals: Iterable[signal_pb2.Signal], *, epoch: int = 1
) -> log_pb2.LogRun:
    listed = list(signals)
    at = now_us()
    return log_pb2.LogRun(
        master_id=master_id,
        epoch=epoch,
        first_sequence=first,
        last_sequence=first + len(listed) - 1,
        received_at_us=at,
        session_epoch=1,
        key_id="key",
        batch=frames_pb2.SignalBatch(first_sequence=first, sent_at_us=at, signals=listed),
    )


def gap_run(
    master_id: int,
    first: int,
    last: int,
    *,
    epoch: int = 1,
    reason: position_pb2.GapReason.ValueType = position_pb2.GAP_REASON_REJECTED,
) -> log_pb2.LogRun:
    return log_pb2.LogRun(
        master_id=master_id,
        epoch=epoch,
        first_sequence=first,
        last_sequence=last,
        received_at_us=now_us(),
        gap=log_pb2.GapMarker(reason=reason, note="a hole"),
    )


def epoch_run(
    master_id: int,
    epoch: int,
    resume: int,
    previous: tuple[int, int],
    *,
    reason: position_pb2.GapReason.ValueType = position_pb2.GAP_REASON_LOG_LOST,
) -> log_pb2.LogRun:
    return log_pb2.LogRun(
        master_id=master_id,
        epoch=epoch,
        first_sequence=resume,
        last_sequence=resume,
        received_at_us=now_us(),
        epoch_start=log_pb2.EpochStart(
            previous=position_pb2.StreamPosition(epoch=previous[0], sequence=previous[1]), reason=reason
        ),
    )


class WrittenLog:
    """One shard's log and what was written to it: `written[master_id]` holds every position in order."""

    def __init__(self, client: Redis, *, shard: int = 0) -> None:
        self._client = client
        self._shard = shard
        self.heads: dict[int, tuple[int, int]] = {}
        self._snapshots: dict[int, tuple[int, int]] = {}

    async def begin(self, log_id: str = "log-1") -> None:
        await self._client.hset(stream.meta_name(self._shard), signal_log.LOG_ID, log_id)

    async def write(self, *runs: log_pb2.LogRun) -> bytes:
        """Appends one entry with these runs and moves the heads, in one transaction as the front door does."""
        for run in runs:
            self.heads[run.master_id] = max(
                self.heads.get(run.master_id, (0, 0)), (run.epoch, run.last_sequence)
            )
        async with self._client.pipeline(transaction=True) as pipeline:
            batch = log_pb2.LogBatch(runs=runs)
            pipeline.xadd(stream.log_name(self._shard), {stream.FIELD: batch.SerializeToString()})
            for master_id in {run.master_id for run in runs}:
                pipeline.hset(stream.heads_name(self._shard), str(master_id), self._head(master_id))
            answers = await pipeline.execute()
        return answers[0]

    async def signals(
        self, master_id: int, count: int, *, per_entry: int = 1, **fields: object
    ) -> list[tuple[int, int]]:
        """Appends `count` further signals; returns their positions."""
        positions: list[tuple[int, int]] = []
        while len(positions) < count:
            epoch, last = self.heads.get(master_id, (1, 0))
            size = min(per_entry, count - len(positions))
            made = [signal(last + 1 + index, **fields) for index in range(size)]
            await self.write(batch_run(master_id, last + 1, made, epoch=epoch))
            positions += [(epoch, last + 1 + index) for index in range(size)]
        return positions

    async def trim(self, *, kept: int = 0) -> None:
        """Lets go of all entries but the last `kept`; heads and snapshots stay."""
        await self._client.xtrim(stream.log_name(self._shard), maxlen=kept, approximate=False)

    def run(self, master_id: int, count: int) -> log_pb2.LogRun:
        """A run of the next `count` signals, for a test that appends it in its own way."""
        epoch, last = self.heads.get(master_id, (1, 0))
        self.heads[master_id] = (epoch, last + count)
        made = [signal(last + 1 + index) for index in range(count)]
        return batch_run(master_id, last + 1, made, epoch=epoch)

    def next_signals(self, master_id: int, count: int) -> bytes:
        """The entry that holds such a run."""
        return log_pb2.LogBatch(runs=[self.run(master_id, count)]).SerializeToString()

    async def gap(self, master_id: int, count: int) -> None:
        """Declares the next `count` sequences as a hole."""
        epoch, last = self.heads.get(master_id, (1, 0))
        await self.write(gap_run(master_id, last + 1, last + count, epoch=epoch))

    async def epoch_start(self, master_id: int, resume: int, **fields: object) -> None:
        """Begins a new epoch behind `resume`."""
        previous = self.heads.get(master_id, (1, 0))
        await self.write(epoch_run(master_id, previous[0] + 1, resume, previous, **fields))

    async def snapshot(self, master_id: int) -> snapshot_pb2.Snapshot:
        """Stores a snapshot as of the head and marks it in the log."""
        epoch, last = self.heads.get(master_id, (1, 0))
        taken = snapshot_pb2.Snapshot(
            master_id=master_id,
            as_of=position_pb2.StreamPosition(epoch=epoch, sequence=last),
            taken_at_us=now_us(),
            account_mode=signal_pb2.ACCOUNT_MODE_HEDGING,
        )
        self._snapshots[master_id] = (epoch, last)
        await self._client.hset(stream.snapshots_name(self._shard), str(master_id), taken.SerializeToString())
        marker = log_pb2.LogRun(
            master_id=master_id,
            epoch=epoch,
            first_sequence=last,
            last_sequence=last,
            received_at_us=now_us(),
            snapshot=log_pb2.SnapshotMarker(),
        )
        await self.write(marker)
        return taken

    def _head(self, master_id: int) -> str:
        epoch, sequence = self.heads[master_id]
        as_of = self._snapshots.get(master_id, (0, 0))
        return f"{epoch} {sequence} 1 - {as_of[0]} {as_of[1]}"
