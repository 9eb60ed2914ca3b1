"""A master that goes on whatever happens: it keeps what is not acknowledged, reconnects and sends it again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from execution.ingest.v1 import frames_pb2 as pb
from execution.ingest.v1 import log_pb2
from tests.integration.ingest.raw_master import RawMaster, connected
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, signal

RECONNECT_SECONDS = 0.05


@dataclass
class SteadyMaster:
    """Sends batches without end; position_id 1,000 + sequence makes each signal its own."""

    port: Callable[[], int]
    who: Credentials
    window: int = 64
    batch: int = 4
    pause_seconds: float = 0.001
    acknowledged: int = 0
    epoch: int = 0
    epochs_seen: list[int] = field(default_factory=list)
    logins: int = 0
    rejects: list[pb.RejectCode.ValueType] = field(default_factory=list)
    kept: dict[int, bytes] = field(default_factory=dict)
    next: int = 1
    send_after: float = 0.0
    is_stopping: bool = False

    async def run(self) -> None:
        while not self.is_stopping:
            try:
                async with connected(self.port(), self.who) as connection:
                    await self._session(connection)
            except (OSError, AssertionError, TimeoutError):
                # The connection broke, at whatever point; everything unacknowledged is kept.
                pass
            except ExceptionGroup as broken:
                # uvloop calls writing on a closed transport a RuntimeError.
                if broken.split((OSError, AssertionError, TimeoutError, RuntimeError))[1] is not None:
                    raise
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _session(self, connection: RawMaster) -> None:
        welcome = await connection.log_in((self.epoch, self.acknowledged))
        self.logins += 1
        self.epoch = welcome.position.epoch
        if self.epoch not in self.epochs_seen:
            self.epochs_seen.append(self.epoch)
        self._advance(welcome.position.sequence)
        self.next = self.acknowledged + 1
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send(connection))
            await self._listen(connection)
            sending.cancel()

    async def _send(self, connection: RawMaster) -> None:
        while not self.is_stopping:
            # What was refused is still being read then: there is a reject for each frame.
            may_send = time.monotonic() >= self.send_after
            if may_send and self.next + self.batch - 1 - self.acknowledged <= self.window:
                first, self.next = self.next, self.next + self.batch
                connection.send(
                    connection.keys.signals(first, [self._signal(first + n) for n in range(self.batch)])
                )
                await connection.writer.drain()
            await asyncio.sleep(self.pause_seconds)
        connection.send(pb.ClientFrame(bye=pb.Bye()))

    def _signal(self, sequence: int):
        kept = self.kept.get(sequence)
        if kept is None:
            kept = self.kept[sequence] = signal(sequence).SerializeToString()
        return type(signal()).FromString(kept)

    async def _listen(self, connection: RawMaster) -> None:
        while (frame := await connection.receive()) is not None:
            match frame.WhichOneof("frame"):
                case "ack":
                    self._advance(frame.ack.sequence)
                case "reject":
                    self.rejects.append(frame.reject.code)
                    self.next = frame.reject.expected_sequence or self.next
                    if frame.reject.code != pb.REJECT_CODE_GAP:
                        self.send_after = time.monotonic() + frame.reject.retry_after_ms / 1_000
                case "bye":
                    return

    def _advance(self, sequence: int) -> None:
        assert sequence >= self.acknowledged or self.epoch == 0
        for known in range(self.acknowledged + 1, sequence + 1):
            self.kept.pop(known, None)
        self.acknowledged = max(self.acknowledged, sequence)
        self.next = max(self.next, self.acknowledged + 1)

    async def acknowledges(self, more: int) -> None:
        """Waits until so many more signals are acknowledged."""
        goal = self.acknowledged + more
        await until(lambda: self.acknowledged >= goal)


@asynccontextmanager
async def steady(port: Callable[[], int], who: Credentials, **fields: object) -> AsyncIterator[SteadyMaster]:
    """A steady master at work; at the end it says goodbye and what it sent is acknowledged or kept."""
    master = SteadyMaster(port, who, **fields)
    task = asyncio.create_task(master.run())
    try:
        yield master
    finally:
        master.is_stopping = True
        async with asyncio.timeout(20):
            await task


def check_log(runs: list[log_pb2.LogRun], master: SteadyMaster) -> list[log_pb2.LogRun]:
    """Everything the master saw acknowledged is in the log once, in order and with its content, but for what an epoch
    start names as lost. Returns the epoch starts."""
    starts, epoch, last = [], 1, 0
    for run in runs:
        if run.master_id != master.who.master_id:
            continue
        kind = run.WhichOneof("record")
        if kind == "epoch_start":
            assert run.epoch > epoch
            assert run.last_sequence >= last
            assert (run.epoch_start.previous.epoch, run.epoch_start.previous.sequence) in (
                (epoch, last),
                (0, 0),
            )
            starts.append(run)
            epoch, last = run.epoch, run.last_sequence
        elif kind != "snapshot":
            assert run.epoch == epoch
            assert run.first_sequence == last + 1, f"{run.first_sequence} behind {last}"
            for offset, one in enumerate(run.batch.signals):
                assert one.position_id == 1_000 + run.first_sequence + offset
            last = run.last_sequence
    assert last >= master.acknowledged, f"the log ends at {last}, {master.acknowledged} was acknowledged"
    return starts
