"""Brings a schema to the state that the code expects, from numbered SQL files; it never undoes one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import asyncpg

from services.common import pg
from services.common.backoff import Backoff
from services.common.errors import ConfigurationError, UnavailableError
from services.common.settings import ServiceSettings, require_secret

_log = logging.getLogger(__name__)

Phase = Literal["before", "after"]
# One key for all schemas of a database: migrations of two services may touch the same roles.
_LOCK_KEY: Final = 0x6563_705F_6D69_6772
_FILE_NAME: Final = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.sql")
_PHASE: Final = re.compile(r"^--\s*phase:\s*(?P<phase>\S+)\s*$", re.MULTILINE)
_SCHEMA: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_CONNECT_TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. Its phase says whether it must run before or after the code that needs it is rolled out."""

    version: int
    name: str
    phase: Phase
    sql: str
    checksum: str


@dataclass(frozen=True, slots=True)
class SchemaState:
    """A schema against the files: versions still to apply, and versions that only newer code knows."""

    pending: tuple[int, ...]
    newer: tuple[int, ...]

    @property
    def is_current(self) -> bool:
        """Whether nothing is to be applied; a schema that is ahead counts as current."""
        return not self.pending


def url(settings: ServiceSettings) -> str:
    """The URL to migrate with: MIGRATION_DATABASE_URL, the owner's, or else DATABASE_URL.

    Raises:
        ConfigurationError: neither is set.
    """
    chosen = settings.migration_database_url or settings.database_url
    return require_secret(chosen, "MIGRATION_DATABASE_URL")


def read(folder: Path) -> tuple[Migration, ...]:
    """The migrations of a folder (`NNNN_name.sql`), in order.

    Raises:
        ConfigurationError: no folder, a file with another name, a number used twice, or an unknown phase.
    """
    if not folder.is_dir():
        raise ConfigurationError("no such folder of migrations", where=str(folder))
    migrations = [_read_one(path) for path in sorted(folder.glob("*.sql"))]
    versions = [migration.version for migration in migrations]
    if len(set(versions)) != len(versions):
        raise ConfigurationError("two migrations have the same number", where=str(folder))
    return tuple(migrations)


def _read_one(path: Path) -> Migration:
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise ConfigurationError("is not named NNNN_name.sql", where=str(path))
    sql = path.read_text(encoding="utf-8")
    header = _PHASE.search(sql)
    phase = "before" if header is None else header["phase"]
    if phase not in ("before", "after"):
        raise ConfigurationError(f"phase {phase!r} is neither before nor after", where=str(path))
    checksum = hashlib.sha256(sql.replace("\r\n", "\n").encode()).hexdigest()
    return Migration(
        int(match["version"]), match["name"], "after" if phase == "after" else "before", sql, checksum
    )


async def apply(
    url: str,
    folder: Path,
    *,
    schema: str,
    phase: Phase | None = None,
    wait_seconds: float = 30.0,
    statement_timeout_seconds: float = 600.0,
) -> tuple[int, ...]:
    """Applies what is missing, in order, each file in a transaction of its own, and returns the versions
    applied.

    `url` is a superuser's, or that of an owner of the database who may create roles. Only one process migrates a
    database at a time; the others wait and then find nothing to do, so it is safe to run it everywhere and again.
    With `phase` "before", files up to the first missing "after" file are applied; without it, all.

    Raises:
        ConfigurationError: a file that was applied has changed since, or its SQL fails (the message says
        where). UnavailableError: the database did not answer, or another process kept migrating, for
        `wait_seconds`.
    """
    if _SCHEMA.fullmatch(schema) is None:
        raise ValueError(f"not a plain schema name: {schema!r}")
    pg.require_url(url, "MIGRATION_DATABASE_URL")
    migrations = read(folder)
    connection = await _connect(url, wait_seconds)
    try:
        with pg.translating():
            await connection.execute(f"set lock_timeout = {int(wait_seconds * 1_000)}")
            await connection.execute(f"set statement_timeout = {int(statement_timeout_seconds * 1_000)}")
            await _be_member_of_what_is_created(connection)
            await _lock(connection)
            await _prepare(connection, schema)
            applied = await _applied(connection, schema)
            _require_unchanged(migrations, applied, folder)
            todo = _todo(migrations, applied, phase)
            for migration in todo:
                await _run(connection, schema, migration, folder)
        return tuple(migration.version for migration in todo)
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_SECONDS)


async def check(pool: pg.Pool, folder: Path, *, schema: str) -> SchemaState:
    """How the schema compares with the files of `folder`. A schema newer than the code is fine.

    Raises:
        ConfigurationError: a file that was applied has changed since.
        UnavailableError: the database is not there, or was never migrated.
    """
    rows = await pool.fetch(f"select version, checksum from {schema}.schema_migrations order by version")
    applied = {row["version"]: row["checksum"] for row in rows}
    migrations = read(folder)
    _require_unchanged(migrations, applied, folder)
    known = {migration.version for migration in migrations}
    return SchemaState(tuple(sorted(known - applied.keys())), tuple(sorted(applied.keys() - known)))


async def _connect(url: str, wait_seconds: float) -> asyncpg.Connection[asyncpg.Record]:
    backoff = Backoff(initial_seconds=0.1, cap_seconds=2.0, floor_seconds=0.05)
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while True:
        try:
            with pg.translating():
                return await asyncpg.connect(
                    url,
                    timeout=_CONNECT_TIMEOUT_SECONDS,
                    server_settings={"application_name": "migrations"},
                )
        except UnavailableError:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(backoff.next_delay())


async def _lock(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    try:
        await connection.execute("select pg_advisory_lock($1)", _LOCK_KEY)
    except asyncpg.LockNotAvailableError as error:
        raise UnavailableError(
            "another process is migrating this database", reason="DATABASE_MIGRATING"
        ) from error


async def _be_member_of_what_is_created(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    # Since 16 whoever is no superuser may grant the roles that he creates, but not act as them unless he asks for it.
    if connection.get_server_version().major >= 16:
        await connection.execute("set createrole_self_grant = 'set, inherit'")


async def _prepare(connection: asyncpg.Connection[asyncpg.Record], schema: str) -> None:
    async with connection.transaction():
        await connection.execute(f"create schema if not exists {schema}")
        await connection.execute(
            f"""
            create table if not exists {schema}.schema_migrations (
                version int primary key,
                name text not null,
                phase text not null,
                checksum text not null,
                applied_at timestamptz not null default now()
            )
            """
        )
        await connection.execute(f"grant select on {schema}.schema_migrations to public")


async def _applied(connection: asyncpg.Connection[asyncpg.Record], schema: str) -> dict[int, str]:
    rows = await connection.fetch(f"select version, checksum from {schema}.schema_migrations")
    return {row["version"]: row["checksum"] for row in rows}


def _require_unchanged(migrations: Iterable[Migration], applied: dict[int, str], folder: Path) -> None:
    for migration in migrations:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise ConfigurationError(
                f"migration {migration.version:04d}_{migration.name} changed after it was applied",
                where=str(folder),
                do="restore the file and write a new migration instead",
            )


def _todo(migrations: Sequence[Migration], applied: dict[int, str], phase: Phase | None) -> list[Migration]:
    todo: list[Migration] = []
    for migration in migrations:
        if migration.version in applied:
            continue
        if phase == "before" and migration.phase == "after":
            break
        todo.append(migration)
    return todo


async def _run(
    connection: asyncpg.Connection[asyncpg.Record], schema: str, migration: Migration, folder: Path
) -> None:
    label = f"{migration.version:04d}_{migration.name}"
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                f"insert into {schema}.schema_migrations (version, name, phase, checksum)"
                " values ($1, $2, $3, $4)",
                migration.version,
                migration.name,
                migration.phase,
                migration.checksum,
            )
    except asyncpg.PostgresError as error:
        if isinstance(pg.classify(error), UnavailableError) and (error.sqlstate or "")[:2] in (
            "08",
            "53",
            "57",
        ):
            raise
        detail = f" ({error.detail})" if error.detail else ""
        raise ConfigurationError(f"migration {label} failed: {error}{detail}", where=str(folder)) from error
    _log.info("migration applied: %s.%s", schema, label)
