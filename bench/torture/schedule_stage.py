"""The real thing for schedules: Valkey, PostgreSQL, ledger, front door and fan-out processes, and who may do what.

It starts, kills and starts again, and copies and tears files. It knows no follower and judges nothing.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import asyncpg
import grpc
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bench.torture.tearing import tear
from execution.common.v1 import signal_pb2
from execution.ledger.v1 import (
    license_service_pb2,
    license_service_pb2_grpc,
    master_service_pb2,
    master_service_pb2_grpc,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from mesh.embedded import RedisServer, postgres, redis
from mesh.embedded.folders import run_folder
from mesh.errors import MeshError
from mesh.ports import LOOPBACK, PortBlock, port_block
from mesh.process import spawn
from mesh.supervisor import ServiceSpec, Supervised
from services.common import log as signal_log
from services.common import stream

DATABASE: Final = "execution_control"
_CALL_SECONDS: Final = 10.0
_MIGRATION_SECONDS: Final = 120.0
_ENTRIES_KEPT: Final = 5
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH")

# Small bounds, so that a schedule of seconds gets to see what takes hours in production.
_FANOUT: Final = {
    "RING_RECORDS_PER_MASTER_MAX": "64",
    "FILL_ENTRIES_MAX": "20",
    "PAGE_RECORDS_MAX": "40",
    "PAGES_CACHED_MAX": "8",
    "LAG_SECONDS_MAX": "2",
    "LAG_SIGNALS_MAX": "400",
    "TAIL_BLOCK_MS": "200",
    "PROGRESS_INTERVAL_SECONDS": "0.2",
    "AUDIT_INTERVAL_SECONDS": "0.5",
    "RECORD_INTERVAL_SECONDS": "0.1",
    "DRAIN_JITTER_SECONDS": "0.2",
    "DRAIN_GRACE_SECONDS": "1",
    "SNAPSHOT_WAIT_SECONDS": "3",
    "HTTP2_KEEPALIVE_SECONDS": "2",
    "HTTP2_KEEPALIVE_TIMEOUT_SECONDS": "2",
}


@dataclass(frozen=True, slots=True)
class MasterLogin:
    """What a master logs in with."""

    master_id: int
    key_id: str
    secret: bytes
    license_token: str


@dataclass(frozen=True, slots=True)
class FollowerLogin:
    """What a follower subscribes with, and its subscriptions by master."""

    user_id: str
    license_token: str
    subscriptions: Mapping[int, str]


@dataclass(slots=True)
class Stage:
    """Everything that runs. The order of kills and starts is its user's affair; one at a time for each process."""

    server: RedisServer
    ledger: Supervised
    ingest: Supervised
    fanouts: list[Supervised]
    front_door: str
    folder: Path
    channel: grpc.aio.Channel
    operator_token: str
    _saved: Path | None = None
    _names: int = 0
    problems: list[str] = field(default_factory=list)

    async def replace_fanout(self, number: int, how: signal.Signals) -> None:
        """Ends one fan-out process, by SIGTERM or SIGKILL, and starts another one on the same port.

        Raises:
            MeshError: the new one does not serve.
        """
        service = self.fanouts[number]
        child = service.child
        if child is not None:
            child.send_signal(how)
            code = await child.wait()
            if how is signal.SIGTERM and code != 0:
                self.problems.append(f"fan-out {number} ended with {code} after SIGTERM")
        service.serving = False
        service.start()
        await service.until_serving()

    def take_problems(self) -> list[str]:
        """What went wrong since the last call, and which process has ended by itself."""
        problems = list(self.problems)
        self.problems.clear()
        for service in (self.ledger, self.ingest, *self.fanouts):
            child = service.child
            if child is not None and child.returncode is not None:
                problems.append(f"{service.name} ended with {child.returncode}: {service.last_log_line()}")
        return problems

    async def save_log(self) -> None:
        """Kills Redis and copies its files."""
        self.server.kill()
        self._saved = self.folder / "saved"
        shutil.rmtree(self._saved, ignore_errors=True)
        shutil.copytree(self.server.data_folder / "appendonlydir", self._saved)
        await self.server.start()

    def forget_saved(self) -> None:
        """What was copied is not restored any more."""
        self._saved = None

    async def lose_log(self, *, bytes_torn: int = 0) -> dict[int, int]:
        """Kills front door and Redis; Redis comes back with the saved files, or with the end of its own torn off.

        Returns where each master's log ends then, before any master speaks. Without saved files nothing is lost.
        """
        assert self.ingest.child is not None
        self.ingest.child.kill()
        self.server.kill()
        kept = self.server.data_folder / "appendonlydir"
        if bytes_torn:
            tear(kept, bytes_torn)
        elif self._saved is not None:
            shutil.rmtree(kept)
            shutil.copytree(self._saved, kept)
        await self.server.start()
        async with self.redis() as client:
            raw: dict[bytes, bytes] = await cast(Any, client.hgetall(stream.heads_name()))
        self.ingest.start()
        await self.ingest.until_serving()
        return {int(name): signal_log.parse_head(name, value).sequence for name, value in raw.items()}

    async def trim_log(self) -> int:
        """Trims what the archiver has taken, but for the last entries; how many are gone."""
        try:
            async with self.redis() as client:
                groups: list[dict[str, Any]] = await client.xinfo_groups(stream.log_name())
                (group,) = [one for one in groups if one["name"] == b"archiver"]
                if group["pending"]:
                    return 0
                taken = group["last-delivered-id"].decode()
                last = stream.entries_of(
                    await cast(Any, client.xrevrange(stream.log_name(), max=taken, count=_ENTRIES_KEPT))
                )
                if len(last) < _ENTRIES_KEPT:
                    return 0
                gone: int = await client.xtrim(stream.log_name(), minid=f"{last[-1].id}", approximate=False)
                return gone
        except (RedisError, ValueError, OSError):
            return 0  # Redis is away, or nothing was archived yet.

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[Redis]:
        """A connection of the stage's own."""
        async with Redis.from_url(self.server.url) as client:
            yield client

    async def call(self, stub: Any, method: str, request: Any) -> Any:
        """One call as the operator."""
        metadata = (("authorization", f"Bearer {self.operator_token}"),)
        return await getattr(stub(self.channel), method)(request, metadata=metadata, timeout=_CALL_SECONDS)

    async def master(self) -> MasterLogin:
        """A new master with its owner."""
        user_id, token = await self._person()
        made = await self.call(
            master_service_pb2_grpc.MasterServiceStub,
            "CreateMaster",
            master_service_pb2.CreateMasterRequest(
                request_id=self._name(),
                owner_user_id=user_id,
                display_name="a master",
                account_mode=signal_pb2.ACCOUNT_MODE_HEDGING,
            ),
        )
        return MasterLogin(made.master.master_id, made.key.key_id, made.key.secret, token)

    async def follower(self, masters: list[MasterLogin]) -> FollowerLogin:
        """A new follower of these masters."""
        user_id, token = await self._person()
        subscriptions: dict[int, str] = {}
        for one in masters:
            made = await self.call(
                subscription_service_pb2_grpc.SubscriptionServiceStub,
                "CreateSubscription",
                subscription_service_pb2.CreateSubscriptionRequest(
                    request_id=self._name(), user_id=user_id, master_id=one.master_id
                ),
            )
            subscriptions[one.master_id] = made.subscription.subscription_id
        return FollowerLogin(user_id, token, subscriptions)

    async def ask_for_full_syncs(self, master_id: int) -> None:
        """The operator's word for everybody who follows a master."""
        request = subscription_service_pb2.RequestFullSyncRequest(
            master_id=master_id, reason="a schedule", page_size=1_000
        )
        await self.call(subscription_service_pb2_grpc.SubscriptionServiceStub, "RequestFullSync", request)

    async def pause(self, subscription_id: str, scope: str) -> None:
        """The operator withholds signals."""
        request = subscription_service_pb2.PauseSubscriptionRequest(
            subscription_id=subscription_id,
            scope=license_service_pb2.PauseScope.Value(f"PAUSE_SCOPE_{scope}"),
            reason="a schedule",
        )
        await self.call(subscription_service_pb2_grpc.SubscriptionServiceStub, "PauseSubscription", request)

    async def resume(self, subscription_id: str) -> None:
        """The operator ends the pause."""
        request = subscription_service_pb2.ResumeSubscriptionRequest(
            subscription_id=subscription_id, reason="a schedule"
        )
        await self.call(subscription_service_pb2_grpc.SubscriptionServiceStub, "ResumeSubscription", request)

    async def subscription(self, subscription_id: str) -> subscription_service_pb2.Subscription:
        """As the ledger has it now."""
        request = subscription_service_pb2.GetSubscriptionRequest(subscription_id=subscription_id)
        answer = await self.call(
            subscription_service_pb2_grpc.SubscriptionServiceStub, "GetSubscription", request
        )
        found: subscription_service_pb2.Subscription = answer.subscription
        return found

    async def transitions(
        self, subscription_id: str
    ) -> list[subscription_service_pb2.SubscriptionTransition]:
        """What became of a subscription, oldest first; at most a thousand."""
        request = subscription_service_pb2.ListTransitionsRequest(
            subscription_id=subscription_id, page_size=1_000
        )
        answer = await self.call(
            subscription_service_pb2_grpc.SubscriptionServiceStub, "ListTransitions", request
        )
        return list(answer.transitions)[::-1]

    async def _person(self) -> tuple[str, str]:
        name = self._name()
        made = await self.call(
            user_service_pb2_grpc.UserServiceStub,
            "CreateUser",
            user_service_pb2.CreateUserRequest(
                request_id=name, email=f"{name}@torture.invalid", display_name=name
            ),
        )
        issued = await self.call(
            license_service_pb2_grpc.LicenseServiceStub,
            "IssueLicense",
            license_service_pb2.IssueLicenseRequest(request_id=self._name(), user_id=made.user.user_id),
        )
        return made.user.user_id, issued.token

    def _name(self) -> str:
        self._names += 1
        return f"schedule-{self._names}"


@asynccontextmanager
async def stage(*, fanouts: int) -> AsyncIterator[Stage]:
    """Everything, serving, until the block ends.

    Raises:
        MeshError: something did not start.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(run_folder())
        ports = stack.enter_context(port_block())
        server = await stack.enter_async_context(redis(appendfsync="always"))
        database = await stack.enter_async_context(postgres(durable=False))
        await _create_database(database.url)
        operator_token = secrets.token_urlsafe(24)
        common = {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "DATABASE_URL": database.url_for(DATABASE),
            "REDIS_URL": server.url,
            "SERVICE_TOKEN": secrets.token_urlsafe(24),
            "OPERATOR_TOKEN": operator_token,
            "KEY_ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "LOG_LEVEL": "WARNING",
        }
        await _migrate(common)
        ledger, ingest, streams = _services(common, ports, folder, fanouts)
        for service in (ledger, ingest, *streams):
            stack.push_async_callback(service.stop)
            service.start()
        async with asyncio.TaskGroup() as group:
            for service in (ledger, ingest, *streams):
                group.create_task(service.until_serving())
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(ledger.spec.grpc_address))
        door = ingest.spec.environment["BIND_ADDRESS"]
        yield Stage(server, ledger, ingest, streams, door, folder, channel, operator_token)


def _services(
    common: Mapping[str, str], ports: PortBlock, folder: Path, fanouts: int
) -> tuple[Supervised, Supervised, list[Supervised]]:
    ledger_address, ingest_address = f"{LOOPBACK}:{ports.take()}", f"{LOOPBACK}:{ports.take()}"
    peers = {"LEDGER_ADDRESS": ledger_address, "INGEST_ADDRESS": ingest_address}

    def service(name: str, label: str, address: str, **extra: str) -> Supervised:
        environment = {
            **common,
            **peers,
            **extra,
            "GRPC_BIND_ADDRESS": address,
            "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:{ports.take()}",
        }
        return Supervised(ServiceSpec(name, environment, address, folder / f"{label}.log"))

    ledger = service("ledger", "ledger", ledger_address, ARCHIVE_BLOCK_MS="100")
    door = {
        "BIND_ADDRESS": f"{LOOPBACK}:{ports.take()}",
        "SIGNAL_AGE_MS_MAX": "86400000",
        "LOG_ENTRIES_MAX": "0",
    }
    ingest = service("ingest", "ingest", ingest_address, **door)
    streams = [
        service("fanout", f"fanout-{number}", f"{LOOPBACK}:{ports.take()}", **_FANOUT)
        for number in range(fanouts)
    ]
    return ledger, ingest, streams


async def _create_database(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close()


async def _migrate(environment: Mapping[str, str]) -> None:
    lines: list[str] = []
    child = spawn(
        "ledger migrate",
        [sys.executable, "-P", "-m", "services.ledger", "migrate"],
        environment=environment,
        on_line=lines.append,
    )
    with suppress(TimeoutError):
        async with asyncio.timeout(_MIGRATION_SECONDS):
            await child.wait()
    if await child.stop() != 0:
        raise MeshError(f"the ledger's migrations failed: {lines[-1] if lines else 'no reason'}")
