"""Waiting for a condition that nothing tells of, bounded; it judges nothing by time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_POLL_SECONDS = 0.005


async def until(condition: Callable[[], object], *, seconds_max: float = 20.0) -> None:
    """Returns when the condition holds; fails when it does not after a long time."""
    async with asyncio.timeout(seconds_max):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(_POLL_SECONDS)
