"""The two servers that the mesh needs: those that DATABASE_URL and REDIS_URL name, else embedded ones."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh.embedded.postgres import PostgresServer, postgres
from mesh.embedded.redis import RedisServer, redis


@dataclass(frozen=True)
class Servers:
    """Where the stores are. A server that the environment names is None here: not ours to stop or kill."""

    database_url: str
    redis_url: str
    postgres: PostgresServer | None
    redis: RedisServer | None


@asynccontextmanager
async def servers_from_environment_or_embedded(
    data_dir: Path | None = None,
    *,
    database: str = "postgres",
    durable: bool = True,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Servers]:
    """Both servers, running; the embedded ones keep their data in `data_dir`, or in a temporary folder without one.

    `database_url` is the superuser's URL of `database`, which need not exist yet, or DATABASE_URL as it is.

    Raises:
        ConfigurationError: an embedded server cannot start; one line says what to do.
    """
    given = os.environ if environment is None else environment
    async with AsyncExitStack() as stack:
        own_postgres = own_redis = None
        if not (database_url := given.get("DATABASE_URL", "")):
            folder = data_dir / "postgres" if data_dir else None
            own_postgres = await stack.enter_async_context(postgres(folder, durable=durable))
            database_url = own_postgres.url_for(database)
        if not (redis_url := given.get("REDIS_URL", "")):
            folder = data_dir / "redis" if data_dir else None
            own_redis = await stack.enter_async_context(
                redis(folder, appendfsync="everysec" if durable else "no")
            )
            redis_url = own_redis.url
        yield Servers(database_url, redis_url, own_postgres, own_redis)
