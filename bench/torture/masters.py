"""Masters at work through the client library, with a record of what each was promised; they kill nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from bench.authority import identity
from bench.torture.promises import Promises
from ecp_client.books import Book
from ecp_client.disk import FsyncPolicy
from ecp_client.errors import OutboxFullError
from ecp_client.master import Master, MasterSettings, OutboxSettings, events
from ecp_client.master.handshake import Identity
from execution.common.v1 import signal_pb2 as pb
from execution.common.v1.position_pb2 import Durability
from services.common import tasks

_BURST_SIGNALS_MAX: Final = 8
_PENDING_MAX: Final = 20_000
_CLOSE_SECONDS: Final = 30.0


class WatchedMaster:
    """One master that trades without end and writes down what it is told."""

    def __init__(
        self,
        address: str,
        master_id: int,
        folder: Path,
        durability: Durability.ValueType,
        who: Identity | None = None,
    ) -> None:
        """`who` is what it logs in with, where that is not the identity of a benchmark."""
        who = who or identity(master_id)
        self.master_id = master_id
        self.openings: list[events.SessionOpened] = []
        self.promises = Promises()
        self.problems: list[str] = []
        self.epochs: set[int] = set()
        self._durability = durability
        settings = MasterSettings(
            addresses=[address],
            master_id=master_id,
            key_id=who.key_id,
            secret=who.secret,
            license_token=who.license_token,
            outbox_folder=folder / f"outbox-{master_id}",
            plaintext=True,
            outbox=OutboxSettings(fsync=FsyncPolicy.NEVER),
            reconnect_seconds_min=0.02,
            reconnect_seconds_max=0.5,
            snapshot_every_seconds=2.0,
            close_timeout_seconds=_CLOSE_SECONDS,
        )
        self.master = Master(settings, book=Book(), on_event=self._hear)

    async def trade(self, signals_per_second: float) -> None:
        """Puts in bursts of signals at random times, until cancelled."""
        while True:
            count = random.randint(1, _BURST_SIGNALS_MAX)
            if self.master.pending < _PENDING_MAX:
                self._put(count)
            await asyncio.sleep(random.uniform(0.5, 1.5) * count / signals_per_second)

    def _put(self, count: int) -> None:
        first = self.master.last_sequence + 1
        try:
            given = self.master.put_many([_signal(sequence) for sequence in range(first, first + count)])
        except OutboxFullError:
            return
        if given != range(first, first + count):
            self._problem(f"sequences {given} were given instead of those from {first} on")

    def _hear(self, event: events.MasterEvent) -> None:
        match event:
            case events.Acknowledged(epoch, sequence, durability):
                self._promised(epoch, sequence, durability)
            case events.SessionOpened():
                self.openings.append(event)
                self._promised(event.epoch, event.sequence, event.durability)
            case events.SignalRefused() | events.SignalsLost() | events.SequencesMoved():
                self._problem(f"{event}")
            case _:
                pass

    def _promised(self, epoch: int, sequence: int, durability: int) -> None:
        self.epochs.add(epoch)
        if sequence and durability != self._durability:
            self._problem(f"an acknowledgement promises durability {durability}")
        self.promises.acknowledged(epoch, sequence)

    def _problem(self, what: str) -> None:
        self.problems.append(f"master {self.master_id}: {what}")


def _signal(sequence: int) -> pb.Signal:
    """Opens at odd sequences and closes at even ones, marked with the sequence."""
    opens = sequence % 2 == 1
    return pb.Signal(
        kind=pb.SIGNAL_KIND_OPEN if opens else pb.SIGNAL_KIND_CLOSE,
        position_id=sequence if opens else sequence - 1,
        symbol="EURUSD",
        side=pb.SIDE_BUY,
        volume_lots_e8=10_000_000,
        price_e8=107_140_000 + sequence % 1_000,
        magic=sequence,
    )


@asynccontextmanager
async def trading(
    address: str,
    folder: Path,
    *,
    masters: int,
    signals_per_second: float,
    durability: Durability.ValueType,
) -> AsyncIterator[list[WatchedMaster]]:
    """So many masters that trade while the block runs, together so many signals a second.

    They are left connected and silent at its end, with their last signals still under way, until the context ends.
    """
    watched = [WatchedMaster(address, number, folder, durability) for number in range(1, masters + 1)]
    async with AsyncExitStack() as stack:
        for one in watched:
            await stack.enter_async_context(one.master)
        async with tasks.background(*(one.trade(signals_per_second / masters) for one in watched)):
            yield watched
        async with asyncio.timeout(_CLOSE_SECONDS):
            await asyncio.gather(*(one.master.wait_all_acknowledged() for one in watched))
