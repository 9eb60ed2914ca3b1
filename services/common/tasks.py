"""Tasks and their cancellation; it schedules nothing by time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


def is_being_cancelled() -> bool:
    """Whether somebody asked the current task to end and it has not yet.

    Cleaning up after a cancellation may fail, and that failure then hides the cancellation: whoever turns
    failures into others must look here first, or a task that treats the failure as a passing one never ends.
    """
    return cancellations() > 0


def cancellations() -> int:
    """How often the current task was asked to end; 0 outside of a task.

    Where it rises over an await that returns as if nothing had happened, the request was swallowed.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return 0
    return 0 if task is None else task.cancelling()


@asynccontextmanager
async def background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs the coroutines while the block runs and cancels them at its end.

    A coroutine that fails cancels the block and the others; one that returns does not. A failure of the block
    alone comes out as it is, not in a group.

    Raises:
        ExceptionGroup: the failures of the coroutines and of the block.
    """
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
            try:
                yield
            except Exception as error:
                failure = error
                raise
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as all_failures:
        if failure is None or all_failures.exceptions != (failure,):
            raise
        raise failure from failure.__cause__
