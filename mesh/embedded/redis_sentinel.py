"""A Redis-compatible primary with replicas under Sentinel on loopback, for tests and rehearsals; knows no keys."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh import ports
from mesh.embedded import folders
from mesh.embedded.redis import AppendFsync, RedisServer, installed_binary, redis
from mesh.errors import MeshError
from mesh.process import Child, spawn

NAME = "execution-log"
FORM_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05


@dataclass
class RedisUnderSentinel:
    """The servers, the first primary first; `redis_under_sentinel` makes it."""

    servers: tuple[RedisServer, ...]
    sentinel_ports: tuple[int, ...]
    password: str

    @property
    def url(self) -> str:
        """The URL of whichever is the primary, as the services take it."""
        hosts = ",".join(f"{ports.LOOPBACK}:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://:{self.password}@{hosts}/{NAME}/0"

    async def primary(self) -> RedisServer:
        """The server that the first sentinel which answers names as primary.

        Raises:
            MeshError: none answers.
        """
        for port in self.sentinel_ports:
            async with Redis(host=ports.LOOPBACK, port=port) as client:
                try:
                    place = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)  # type: ignore[no-untyped-call]  # by redis-py
                except (RedisError, OSError):
                    continue
            return next(server for server in self.servers if server.tcp_port == int(place[1]))
        raise MeshError("no sentinel answers")

    async def until_replicated(self, replicas: int) -> None:
        """Returns when the primary has so many replicas in step, and the sentinels know of as many.

        Raises:
            MeshError: that took too long.
        """
        try:
            async with asyncio.timeout(FORM_SECONDS_MAX):
                while not await self._has(replicas):  # noqa: ASYNC110  (what is waited for sets no event)
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise MeshError(f"{replicas} replicas were not in step after {FORM_SECONDS_MAX:.0f} s") from None

    async def _has(self, replicas: int) -> bool:
        try:
            role = await self.command(await self.primary(), "ROLE")
            known = [await self._known(port) for port in self.sentinel_ports]
        except (RedisError, OSError):
            return False
        return role[0] == b"master" and len(role[2]) >= replicas and min(known) >= replicas

    async def _known(self, port: int) -> int:
        async with Redis(host=ports.LOOPBACK, port=port) as client:
            client.response_callbacks.clear()
            replicas: list[Any] = await client.execute_command("SENTINEL", "REPLICAS", NAME)  # type: ignore[no-untyped-call]  # by redis-py
            return len(replicas)

    async def command(self, server: RedisServer, *words: object) -> Any:
        """What one server answers to a command."""
        async with Redis(unix_socket_path=str(server.socket), password=self.password) as client:
            client.response_callbacks.clear()
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]  # by redis-py


@asynccontextmanager
async def redis_under_sentinel(
    *,
    replicas: int = 2,
    sentinels: int = 3,
    appendfsync: AppendFsync = "everysec",
    settings: Mapping[str, str] | None = None,
    down_after_ms: int = 1_000,
) -> AsyncIterator[RedisUnderSentinel]:
    """A primary with replicas in step, watched by sentinels that agree by majority; stopped at the end."""
    password = secrets.token_urlsafe(24)
    async with AsyncExitStack() as stack:
        block = stack.enter_context(ports.port_block())
        shared = {"masterauth": password, "repl-diskless-sync-delay": "0", **(settings or {})}
        servers: list[RedisServer] = []
        for _ in range(1 + replicas):
            of = {"replicaof": f"{ports.LOOPBACK} {servers[0].tcp_port}"} if servers else {}
            server = redis(
                appendfsync=appendfsync, tcp_port=block.take(), password=password, settings={**shared, **of}
            )
            servers.append(await stack.enter_async_context(server))
        primary_port = servers[0].tcp_port
        assert primary_port is not None
        sentinel_ports: list[int] = []
        for _ in range(sentinels):
            sentinel_ports.append(block.take())
            watched = (primary_port, password, sentinels // 2 + 1, down_after_ms)
            await stack.enter_async_context(_sentinel(sentinel_ports[-1], *watched))
        under = RedisUnderSentinel(tuple(servers), tuple(sentinel_ports), password)
        await under.until_replicated(replicas)
        yield under


@asynccontextmanager
async def _sentinel(
    port: int, primary_port: int, password: str, quorum: int, down_after_ms: int
) -> AsyncIterator[Child]:
    with folders.run_folder() as folder:
        configuration = folder / "sentinel.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f"port {port}\nbind {ports.LOOPBACK}\n"
            f"sentinel monitor {NAME} {ports.LOOPBACK} {primary_port} {quorum}\n"
            f"sentinel auth-pass {NAME} {password}\n"
            f"sentinel down-after-milliseconds {NAME} {down_after_ms}\n"
            f"sentinel failover-timeout {NAME} {3 * down_after_ms}\n"
            f"sentinel parallel-syncs {NAME} 2\n",
            encoding="ascii",
        )
        child = spawn(
            "sentinel",
            [installed_binary(), configuration, "--sentinel"],
            environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            folder=folder,
            log_file=folder / "sentinel.log",
            death_signal=signal.SIGTERM,
        )
        try:
            yield child
        finally:
            await child.stop(number=signal.SIGTERM, grace_seconds=5.0)
