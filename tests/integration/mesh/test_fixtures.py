"""The fixtures that every integration test builds on: what one test leaves behind, the next does not see."""

from __future__ import annotations

import asyncpg
import pytest
from redis.asyncio import Redis


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_gets_a_database_of_its_own(fresh_database: str, turn: int) -> None:
    connection = await asyncpg.connect(fresh_database)
    try:
        await connection.execute("create table public.left_behind ()")
        assert await connection.fetchval("show server_encoding") == "UTF8"
        assert await connection.fetchval("select 'a' < 'B'") is False, "order must be by code point"
    finally:
        await connection.close()


async def test_an_empty_database_has_no_schemas_of_the_services(empty_database: str) -> None:
    connection = await asyncpg.connect(empty_database)
    try:
        query = "select count(*) from pg_namespace where nspname in ('ledger', 'risk')"
        assert await connection.fetchval(query) == 0
    finally:
        await connection.close()


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_gets_an_empty_redis(redis_url: str, turn: int) -> None:
    async with Redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0
        await client.set("left_behind", turn)
