"""A client of the test's own Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.common import stream
from services.common.stream import Redis


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with stream.connect(redis_url) as connected:
        yield connected
