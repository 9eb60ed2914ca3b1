from __future__ import annotations

import asyncio

import pytest

from services.common import tasks


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("cancelled")


async def fail() -> None:
    raise KeyError("broken")


async def test_tasks_end_with_the_block() -> None:
    ended: list[str] = []
    async with tasks.background(forever(ended), forever(ended)):
        await asyncio.sleep(0)
    assert ended == ["cancelled", "cancelled"]


async def test_a_task_that_fails_ends_the_block_and_the_others() -> None:
    ended: list[str] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with tasks.background(forever(ended), fail()):
            await asyncio.Event().wait()
    assert caught.group_contains(KeyError)
    assert ended == ["cancelled"]


async def test_a_failure_of_the_block_comes_out_as_it_is() -> None:
    ended: list[str] = []

    async def main() -> None:
        async with tasks.background(forever(ended)):
            await asyncio.sleep(0)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await main()
    assert ended == ["cancelled"]


async def test_a_task_that_returns_leaves_the_block_alone() -> None:
    async with tasks.background(asyncio.sleep(0)):
        await asyncio.sleep(0.01)


async def test_cancellation_of_the_block_is_not_swallowed() -> None:
    ended: list[str] = []

    async def main() -> None:
        async with tasks.background(forever(ended)):
            await asyncio.Event().wait()

    task = asyncio.create_task(main())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cancelled"]
