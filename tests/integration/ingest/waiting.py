"""Waiting for a condition of a running service, bounded; it judges nothing by time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WAIT_SECONDS_MAX = 30.0


async def until(is_so: Callable[[], bool]) -> None:
    """Returns when it is so; fails when it is not after a long time."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not is_so():  # noqa: ASYNC110  (what is waited for sets no event)
            await asyncio.sleep(0.005)
