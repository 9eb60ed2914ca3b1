"""The whole mesh on one machine: data servers, migrations and the four services, in order, and stopped in order."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from mesh.embedded import PostgresServer, RedisServer, Servers, servers_from_environment_or_embedded
from mesh.embedded.folders import run_folder
from mesh.errors import EXIT_CONFIGURATION, ConfigurationError, MeshError
from mesh.open_files import allow_open_files
from mesh.ports import LOOPBACK, PortBlock, port_block, require_free
from mesh.process import spawn
from mesh.runfile import SERVICES, RunFile
from mesh.supervisor import (
    RESTART_DELAY_SECONDS,
    RESTART_DELAY_SECONDS_MAX,
    ServiceSpec,
    Supervised,
    in_words,
)

DATABASE = "execution_control"
MIGRATED = ("ledger", "risk")
MIGRATION_SECONDS_MAX = 120.0
SECRETS_FILE = "secrets.json"
# Systems begin with 256 or 1,024, which the connections of a few hundred subscribers use up.
OPEN_FILES = 8_192
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "OTEL_EXPORTER_OTLP_ENDPOINT", "SSL_CERT_FILE")


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """How to run the mesh. Without `data` everything is temporary; port 0 means any free one."""

    data: Path | None = None
    front_door_port: int = 0
    fanout_port: int = 0
    check_interval_seconds: float = 300.0
    log_level: str = "INFO"


@dataclass(slots=True)
class Mesh:
    """A running mesh. Addresses are `host:port` on the loopback."""

    database_url: str
    redis_url: str
    front_door: str
    grpc: dict[str, str]
    admin: dict[str, str]
    operator_token: str
    folder: Path
    data: Path | None
    services: dict[str, Supervised] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    """Why a data server that died could not be started again yet, by its name."""

    def run_file(self) -> RunFile:
        """What others need to find it."""
        return RunFile(
            pid=os.getpid(), front_door=self.front_door, grpc=self.grpc, admin=self.admin,
            operator_token=self.operator_token, database_url=self.database_url, redis_url=self.redis_url,
            data=str(self.data or ""),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Secrets:
    service_token: str
    operator_token: str
    key_encryption_key: str


@asynccontextmanager
async def running(options: MeshOptions) -> AsyncIterator[Mesh]:
    """Starts everything, yields when every service serves, and stops everything in reverse.

    DATABASE_URL and REDIS_URL name servers to use instead of the embedded ones.

    Raises:
        ConfigurationError: the data folder, a port or a setting is not fit; one line that says what to do.
        MeshError: something did not start.
    """
    allow_open_files(OPEN_FILES)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(run_folder())
        ports = stack.enter_context(port_block())
        servers = await stack.enter_async_context(
            servers_from_environment_or_embedded(options.data, database=DATABASE)
        )
        if servers.postgres:
            await _create_database(servers.postgres.url)
        kept = _secrets(options.data)
        mesh = _plan(options, ports, folder, servers.database_url, servers.redis_url, kept)
        environments = {name: _environment(name, mesh, options, kept) for name in SERVICES}
        for name in MIGRATED:
            await _migrate(name, environments[name], mesh.folder)
        await stack.enter_async_context(_services(mesh, environments))
        await stack.enter_async_context(kept_alive(servers, mesh.troubles))
        yield mesh


async def _create_database(admin_url: str) -> None:
    connection = await asyncpg.connect(admin_url)
    try:
        if not await connection.fetchval("select 1 from pg_database where datname = $1", DATABASE):
            await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close()


@asynccontextmanager
async def kept_alive(servers: Servers, troubles: dict[str, str]) -> AsyncIterator[None]:
    """Starts an embedded server again when it dies, as an operating system's supervisor would.

    What keeps one from starting stands in `troubles` until it runs again; it is tried again and again.
    """

    async def keep(name: str, server: PostgresServer | RedisServer) -> None:
        while True:
            try:
                await server.wait()
                await asyncio.sleep(RESTART_DELAY_SECONDS)
                await server.start()
                troubles.pop(name, None)
            except MeshError as error:
                troubles[name] = str(error)
                await asyncio.sleep(RESTART_DELAY_SECONDS_MAX)

    named = {"PostgreSQL": servers.postgres, "Redis": servers.redis}
    keepers = [asyncio.create_task(keep(name, server)) for name, server in named.items() if server]
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


def _plan(
    options: MeshOptions, ports: PortBlock, folder: Path, database_url: str, redis_url: str, kept: _Secrets
) -> Mesh:
    wanted_ports = [port for port in (options.front_door_port, options.fanout_port) if port]
    if len(set(wanted_ports)) < len(wanted_ports):
        raise ConfigurationError(f"port {wanted_ports[0]} was given twice: choose another for one of the two")
    for wanted in wanted_ports:
        require_free(wanted)
    grpc = {name: f"{LOOPBACK}:{ports.take()}" for name in SERVICES}
    if options.fanout_port:
        grpc["fanout"] = f"{LOOPBACK}:{options.fanout_port}"
    return Mesh(
        database_url=database_url, redis_url=redis_url,
        front_door=f"{LOOPBACK}:{options.front_door_port or ports.take()}", grpc=grpc,
        admin={name: f"{LOOPBACK}:{ports.take()}" for name in SERVICES},
        operator_token=kept.operator_token, folder=folder, data=options.data,
    )  # fmt: skip


def _environment(name: str, mesh: Mesh, options: MeshOptions, kept: _Secrets) -> Mapping[str, str]:
    return {
        **{key: os.environ[key] for key in PASSED_ON if key in os.environ},
        "BIND_ADDRESS": mesh.front_door,
        "GRPC_BIND_ADDRESS": mesh.grpc[name],
        "ADMIN_BIND_ADDRESS": mesh.admin[name],
        "DATABASE_URL": mesh.database_url,
        "REDIS_URL": mesh.redis_url,
        "SERVICE_TOKEN": kept.service_token,
        "OPERATOR_TOKEN": kept.operator_token,
        "KEY_ENCRYPTION_KEY": kept.key_encryption_key,
        "CHECK_INTERVAL_SECONDS": str(options.check_interval_seconds),
        "LOG_LEVEL": options.log_level,
        **{f"{peer.upper()}_ADDRESS": address for peer, address in mesh.grpc.items()},
    }


def _secrets(data: Path | None) -> _Secrets:
    """Secrets of this mesh, kept in the data folder: masters' keys in the database are encrypted with one of them."""
    path = data / SECRETS_FILE if data else None
    if path and path.exists():
        try:
            return _Secrets(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"cannot read {path}: {error}; restore it, or choose another folder"
            ) from error
    made = _Secrets(
        service_token=secrets.token_urlsafe(32), operator_token=secrets.token_urlsafe(32),
        key_encryption_key=base64.b64encode(secrets.token_bytes(32)).decode(),
    )  # fmt: skip
    if path:
        _write_privately(path, json.dumps({name: getattr(made, name) for name in made.__slots__}))
    return made


def _write_privately(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path} ({error.strerror}): make the data folder writable"
        ) from error


async def _migrate(name: str, environment: Mapping[str, str], folder: Path) -> None:
    lines: list[str] = []
    command = [sys.executable, "-P", "-m", f"services.{name}", "migrate"]
    child = spawn(f"{name} migrate", command, environment=environment, on_line=lines.append)
    try:
        async with asyncio.timeout(MIGRATION_SECONDS_MAX):
            code = await child.wait()
    except TimeoutError as error:
        raise MeshError(
            f"the migrations of {name} did not end within {MIGRATION_SECONDS_MAX:.0f} s"
        ) from error
    finally:
        await child.stop()
    (folder / f"{name}-migrate.log").write_text("\n".join(lines), encoding="utf-8")
    if code:
        failure = ConfigurationError if code == EXIT_CONFIGURATION else MeshError
        raise failure(
            f"the migrations of {name} failed: {in_words(lines[-1]) if lines else f'exit code {code}'}"
        )


@asynccontextmanager
async def _services(mesh: Mesh, environments: Mapping[str, Mapping[str, str]]) -> AsyncIterator[None]:
    logs = (mesh.data or mesh.folder) / "logs"
    logs.mkdir(exist_ok=True)
    for name in SERVICES:
        spec = ServiceSpec(name, environments[name], mesh.grpc[name], logs / f"{name}.log")
        mesh.services[name] = Supervised(spec)
    keepers: list[asyncio.Task[None]] = []
    try:
        for service in mesh.services.values():
            service.start()
        async with asyncio.TaskGroup() as starting:
            for service in mesh.services.values():
                starting.create_task(service.until_serving())
        keepers = [asyncio.create_task(service.keep_alive()) for service in mesh.services.values()]
        yield
    except* MeshError as group:
        raise group.exceptions[0] from None
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(service.stop() for service in mesh.services.values()))
