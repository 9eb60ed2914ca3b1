"""Work on behalf of open streams that ends with its stream; it does none itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Self

from services.fanout.delivery import Delivery


class StreamTasks:
    """The tasks of each open stream."""

    def __init__(self) -> None:
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, delivery: Delivery, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs the work until it returns or the stream is over."""
        stream_id = delivery.stream.stream_id
        task = asyncio.create_task(work, name=name)
        self._tasks.setdefault(stream_id, set()).add(task)
        task.add_done_callback(lambda done: self._forget(stream_id, done))
        return task

    def closed(self, delivery: Delivery) -> None:
        """The stream is over."""
        for task in self._tasks.get(delivery.stream.stream_id, ()):
            task.cancel()

    def _forget(self, stream_id: int, task: asyncio.Task[None]) -> None:
        tasks = self._tasks.get(stream_id, set())
        tasks.discard(task)
        if not tasks:
            self._tasks.pop(stream_id, None)
