"""Followers of schedules: the real subscriber client with its journal, behind cables that can be cut and stalled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.torture.schedule_stage import FollowerLogin
from ecp_client.copying import CopySettings
from ecp_client.disk import FsyncPolicy
from ecp_client.subscriber import Batch, Start, Subscriber, SubscriberSettings
from ecp_client.subscriber.journal import JournalSettings
from mesh.demo.cable import Cable, cable


class Follower:
    """One who comes and goes."""

    def __init__(self, number: int, login: FollowerLogin, cables: list[Cable], folder: Path) -> None:
        self.name = f"follower {number}"
        self.login = login
        self.journal_folder = folder / f"journal-{number}"
        self.place = ""
        """Where it began; empty when it never came."""
        self.was_paused = False
        self.problems: list[str] = []
        self.streams = 0
        self._cables = cables
        self._client: Subscriber | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, place: str) -> None:
        """Comes, or comes back; who is there already gets a new stream."""
        if self._client is not None:
            self._client.disconnect()
            return
        self.place = self.place or place
        settings = SubscriberSettings(
            addresses=[f"127.0.0.1:{one.port}" for one in self._cables],
            license_token=self.login.license_token,
            masters={master_id: CopySettings() for master_id in self.login.subscriptions},
            start=Start(self.place),
            journal_folder=self.journal_folder,
            journal=JournalSettings(fsync=FsyncPolicy.NEVER),
            plaintext=True,
            client="schedule",
            acknowledge_interval_seconds=0.1,
            checkpoint_interval_seconds=0.5,
            silence_seconds_max=2.0,
            reconnect_seconds_max=0.3,
            refused_seconds_max=1.0,
            full_sync_seconds_min=0.2,
            full_sync_seconds_max=1.0,
        )
        self._client = Subscriber(settings, on_batch=self._see)
        await self._client.start()

    async def leave(self) -> None:
        """Closes the client; its journal stays."""
        client, self._client = self._client, None
        if client is not None:
            self.streams += client.stats.streams
            self._problems_of(client)
            await client.close()

    def drop(self, seconds: float) -> None:
        """Cuts its cables for so long."""
        for one in self._cables:
            one.cut()
        self._mend_after(seconds)

    def stall(self, seconds: float) -> None:
        """Lets its cables carry nothing for so long."""
        for one in self._cables:
            one.stall()
        self._mend_after(seconds)

    async def mended(self) -> None:
        """Waits until its cables carry again."""
        await asyncio.gather(*self._tasks)

    def behind(self, heads: dict[int, int]) -> str:
        """Of whom it has not everything up to these sequences, in words; empty when of none."""
        client = self._client
        if client is None:
            return f"{self.name} is not there"
        positions = {master_id: client.position(master_id) for master_id in heads}
        late = [
            f"{self.name} is at {position} of master {master_id}, whose head is {heads[master_id]}"
            for master_id, position in positions.items()
            if position is None or position.sequence < heads[master_id]
        ]
        return "; ".join(late)

    def _mend_after(self, seconds: float) -> None:
        async def mend() -> None:
            await asyncio.sleep(seconds)
            for one in self._cables:
                one.mend()

        task = asyncio.create_task(mend())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _see(self, batch: Batch) -> None:
        for one in batch.signals:
            if one.signal.magic != one.sequence:
                self.problems.append(f"{self.name}: {one.sequence} is the signal {one.signal.magic}")

    def _problems_of(self, client: Subscriber) -> None:
        if client.stats.callback_errors:
            self.problems.append(f"{self.name}: {client.stats.callback_errors} faults in callbacks")


@asynccontextmanager
async def follower(
    number: int, login: FollowerLogin, addresses: list[str], folder: Path
) -> AsyncIterator[Follower]:
    """A follower with a cable to each fan-out process, until the block ends."""
    async with AsyncExitStack() as stack:
        cables = [await stack.enter_async_context(cable(address)) for address in addresses]
        made = Follower(number, login, cables, folder)
        stack.push_async_callback(made.leave)
        yield made
