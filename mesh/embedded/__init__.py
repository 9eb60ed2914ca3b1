"""PostgreSQL and a Redis-compatible server from wheels, for demo, up and tests; production never uses them.

async with postgres() as database, redis() as log:
    database.url, log.url
"""

from __future__ import annotations

from mesh.embedded.postgres import PostgresServer, postgres
from mesh.embedded.redis import RedisServer, redis
from mesh.embedded.servers import Servers, servers_from_environment_or_embedded

__all__ = [
    "PostgresServer",
    "RedisServer",
    "Servers",
    "postgres",
    "redis",
    "servers_from_environment_or_embedded",
]
