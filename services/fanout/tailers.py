"""The tailers of all shards of the log as one: ready and connected when all of them are; it reads nothing."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from services.fanout.tailer import Tailer


class Tailers:
    """One tailer for each shard."""

    def __init__(self, tailers: Sequence[Tailer]) -> None:
        self._tailers = tuple(tailers)

    @property
    def is_filled(self) -> bool:
        """Whether the end of every shard was read: streams can be opened."""
        return all(tailer.filled.is_set() for tailer in self._tailers)

    @property
    def is_connected(self) -> bool:
        """Whether every shard can be read now."""
        return all(tailer.is_connected for tailer in self._tailers)

    async def wait_filled(self) -> None:
        """Returns once the end of every shard was read."""
        for tailer in self._tailers:
            await tailer.filled.wait()

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run in the background, until cancelled."""
        return [one for tailer in self._tailers for one in (tailer.run(), tailer.audit_forever())]
