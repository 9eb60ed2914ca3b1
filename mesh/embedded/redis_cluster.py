"""A Redis-compatible cluster on loopback, for tests and rehearsals; it knows nothing of the keys in it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from mesh import ports
from mesh.embedded.redis import AppendFsync, RedisServer, redis
from mesh.errors import MeshError

SLOTS = 16_384
FORM_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
KEYS_PER_MIGRATION = 100
MIGRATE_TIMEOUT_MS = 5_000


@dataclass
class RedisCluster:
    """The nodes, the primaries first; `redis_cluster` makes it."""

    nodes: tuple[RedisServer, ...]
    password: str

    @property
    def url(self) -> str:
        """The URL of the cluster, as the services take it."""
        hosts = ",".join(f"{ports.LOOPBACK}:{node.tcp_port}" for node in self.nodes)
        return f"redis+cluster://:{self.password}@{hosts}"

    async def owner_of(self, key: str) -> RedisServer:
        """The node that owns the key's slot now, as the first node that answers tells.

        Raises:
            MeshError: no node answers, or none owns it.
        """
        slot = key_slot(key.encode())
        for node in self.nodes:
            try:
                ranges = await self.command(node, "CLUSTER", "SLOTS")
            except (RedisError, OSError):
                continue
            for first, last, primary, *_ in ranges:
                if int(first) <= slot <= int(last):
                    return next(one for one in self.nodes if one.tcp_port == int(primary[1]))
        raise MeshError(f"no node owns slot {slot}")

    async def command(self, node: RedisServer, *words: object) -> Any:
        """What one node answers to a command."""
        async with Redis(unix_socket_path=str(node.socket), password=self.password) as client:
            # The bare answer: redis-py would make something else of some.
            client.response_callbacks.clear()
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]  # by redis-py

    async def migrate(self, key: str, target: RedisServer) -> None:
        """Moves the key's slot with all its keys to another node, as `redis-cli --cluster reshard` does."""
        slot = key_slot(key.encode())
        source = await self.owner_of(key)
        source_id, target_id = [
            (await self.command(node, "CLUSTER", "MYID")).decode() for node in (source, target)
        ]
        await self.command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await self.command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        await self.move_keys(slot, source, target)
        for node in (target, source, *(one for one in self.nodes if one not in (source, target))):
            await self.command(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    async def move_keys(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Moves what is in the slot, and goes on until nothing is."""
        while keys := await self.command(source, "CLUSTER", "GETKEYSINSLOT", slot, KEYS_PER_MIGRATION):
            place = (ports.LOOPBACK, target.tcp_port, "", 0, MIGRATE_TIMEOUT_MS)
            await self.command(source, "MIGRATE", *place, "AUTH", self.password, "KEYS", *keys)

    async def until_ok(self, nodes: Sequence[RedisServer] | None = None) -> None:
        """Returns when every node (or each of `nodes`) says that the cluster is well.

        Raises:
            MeshError: that took too long.
        """
        try:
            async with asyncio.timeout(FORM_SECONDS_MAX):
                for node in nodes or self.nodes:
                    while not await self._is_ok(node):  # noqa: ASYNC110  (what is waited for sets no event)
                        await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise MeshError(f"the cluster was not well after {FORM_SECONDS_MAX:.0f} s") from None

    async def until_replica(self, node: RedisServer) -> None:
        """Returns when the node is a replica in step with its primary.

        Raises:
            MeshError: that took too long.
        """
        try:
            async with asyncio.timeout(FORM_SECONDS_MAX):
                while (await self.command(node, "ROLE"))[3:4] != [b"connected"]:  # noqa: ASYNC110  (no event)
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise MeshError(f"the replica was not in step after {FORM_SECONDS_MAX:.0f} s") from None

    async def _is_ok(self, node: RedisServer) -> bool:
        try:
            info = (await self.command(node, "CLUSTER", "INFO")).decode()
        except (RedisError, OSError):
            return False
        known = f"cluster_known_nodes:{len(self.nodes)}\r\n"
        return "cluster_state:ok" in info and known in info and "cluster_slots_fail:0\r\n" in info


@asynccontextmanager
async def redis_cluster(
    primaries: int = 3,
    *,
    replicas: int = 0,
    appendfsync: AppendFsync = "everysec",
    settings: Mapping[str, str] | None = None,
    node_timeout_ms: int = 1_000,
) -> AsyncIterator[RedisCluster]:
    """A cluster with its slots spread evenly over the primaries, each with so many replicas; stopped at the end."""
    password = secrets.token_urlsafe(24)
    async with AsyncExitStack() as stack:
        block = stack.enter_context(ports.port_block())
        nodes = [
            await stack.enter_async_context(
                redis(
                    appendfsync=appendfsync,
                    tcp_port=block.take(),
                    password=password,
                    settings={
                        "cluster-enabled": "yes",
                        "cluster-port": str(block.take()),
                        "cluster-node-timeout": str(node_timeout_ms),
                        "masterauth": password,
                        "repl-diskless-sync-delay": "0",
                        **(settings or {}),
                    },
                )
            )
            for _ in range(primaries * (1 + replicas))
        ]
        cluster = RedisCluster(tuple(nodes), password)
        await _form(cluster, primaries)
        yield cluster


async def _form(cluster: RedisCluster, primaries: int) -> None:
    first, *others = cluster.nodes
    edges = [SLOTS * number // primaries for number in range(primaries + 1)]
    for number, node in enumerate(cluster.nodes):
        await cluster.command(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number < primaries:
            await cluster.command(node, "CLUSTER", "ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
    for node in others:
        meeting = (ports.LOOPBACK, first.tcp_port, first.settings["cluster-port"])
        await cluster.command(node, "CLUSTER", "MEET", *meeting)
    await cluster.until_ok()
    for number, node in enumerate(cluster.nodes[primaries:]):
        primary = cluster.nodes[number % primaries]
        await cluster.command(
            node, "CLUSTER", "REPLICATE", (await cluster.command(primary, "CLUSTER", "MYID")).decode()
        )
