"""The embedded servers as demo, up and the tests use them: they keep what they were given and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from mesh.embedded import postgres, redis, servers_from_environment_or_embedded
from mesh.embedded.postgres import UNPRIVILEGED
from mesh.embedded.postgres_binaries import Binaries, installed_binaries
from mesh.embedded.redis import AppendFsync
from mesh.errors import ConfigurationError, MeshError
from mesh.ports import port_block
from mesh.process import process_exists, wait_until_gone

NO_RETRY = Retry(NoBackoff(), 0)


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch_value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_postgres_keeps_its_data_over_a_stop_and_another_start(data_folder: Path) -> None:
    async with postgres(data_folder / "postgres", durable=False) as server:
        await execute(server.url, "create table kept (n int)", "insert into kept values (1)")
        first_pid = server.pid
    assert not process_exists(first_pid)
    async with postgres(data_folder / "postgres", durable=False) as server:
        assert await fetch_value(server.url, "select n from kept") == 1


@pytest.mark.parametrize("name", ["with a space", "50% #1?", 'it\'s "quoted"'])
async def test_both_bear_any_name_of_their_folders(
    name: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_folder / name
    folder.mkdir()
    folder.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for _ in range(2):
        async with (
            postgres(folder / "p", durable=False) as database,
            redis(folder / "r", tcp_port=None) as log,
            Redis.from_url(log.url, retry=NO_RETRY) as client,
        ):
            assert database.run_folder.parent == log.run_folder.parent
            assert ('"' in name) is (log.run_folder.parent != folder), "programs would not start there"
            assert await fetch_value(database.url, "select 1") == 1
            await client.incr("starts")
    assert (folder / "r" / "appendonlydir").is_dir()
    async with redis(folder / "r") as log, Redis.from_url(log.url, retry=NO_RETRY) as client:
        assert await client.get("starts") == b"2"


async def test_postgres_starts_though_it_was_installed_where_a_shell_cannot_find_it(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = installed_binaries().folder
    odd = shutil.copytree(installed.parent, data_folder / '$HOME "sweet"', symlinks=True)
    monkeypatch.setenv("ECP_POSTGRES_BIN", str(odd / installed.name))
    async with postgres(data_folder / "p", durable=False) as server:
        assert await fetch_value(server.url, "select 1") == 1


async def test_postgres_recovers_from_a_kill_on_the_same_url(data_folder: Path) -> None:
    async with postgres(data_folder) as server:
        url = server.url
        await execute(url, "create table kept (n int)", "insert into kept values (1)")
        server.kill()
        assert await server.wait() == -signal.SIGKILL
        with pytest.raises(OSError, match=r"No such file|refused"):
            await asyncpg.connect(url)
        await server.restart()
        assert server.url == url
        assert await fetch_value(url, "select n from kept") == 1


async def test_postgres_restarts_under_an_open_session(data_folder: Path) -> None:
    async with postgres(data_folder, durable=False) as server:
        connection = await asyncpg.connect(server.url)
        await server.restart()
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await connection.execute("select 1")
        connection.terminate()
        assert await fetch_value(server.url, "select 1") == 1


async def test_postgres_is_durable_unless_told_otherwise(data_folder: Path) -> None:
    names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums")
    async with postgres(data_folder / "durable") as server:
        assert {await fetch_value(server.url, f"show {name}") for name in names} == {"on"}
        assert await fetch_value(server.url, "show listen_addresses") == ""
    async with postgres(data_folder / "quick", durable=False, settings={"work_mem": "7MB"}) as server:
        assert await fetch_value(server.url, "show fsync") == "off"
        assert await fetch_value(server.url, "show work_mem") == "7MB"


async def test_postgres_on_tcp_wants_the_password(data_folder: Path) -> None:
    with port_block() as ports:
        async with postgres(data_folder, durable=False, tcp_port=ports.take()) as server:
            url = server.tcp_url_for("postgres")
            assert await fetch_value(url, "select 1") == 1
            assert await fetch_value(server.url, "select 1") == 1
            host = f"postgresql://postgres:wrong@127.0.0.1:{server.tcp_port}/postgres"
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(host)


async def test_a_server_without_tcp_has_no_tcp_url() -> None:
    async with redis() as server:
        with pytest.raises(MeshError, match="Unix socket only"):
            server.tcp_url_for(0)


async def test_redis_on_tcp_wants_the_password_everywhere() -> None:
    with port_block() as ports:
        async with redis(tcp_port=ports.take()) as server:
            for url in (server.url, server.tcp_url_for(3)):
                async with Redis.from_url(url) as client:
                    assert await client.ping()
            async with Redis(unix_socket_path=str(server.socket), retry=NO_RETRY) as stranger:
                with pytest.raises(RedisError, match=r"[Aa]uthenticat"):
                    await stranger.ping()


@pytest.mark.parametrize("appendfsync", ["always", "everysec", "no"])
async def test_redis_keeps_its_data_over_a_stop_and_another_start(
    data_folder: Path, appendfsync: AppendFsync
) -> None:
    async with redis(data_folder, appendfsync=appendfsync) as server:
        async with Redis.from_url(server.url_for(2)) as client:
            await client.set("kept", "1")
            assert (await client.config_get("appendfsync")) == {"appendfsync": appendfsync}
        first_pid = server.pid
    assert not process_exists(first_pid)
    async with redis(data_folder) as server, Redis.from_url(server.url_for(2)) as client:
        assert await client.get("kept") == b"1"


async def test_redis_with_fsync_always_loses_nothing_to_a_kill(data_folder: Path) -> None:
    async with redis(data_folder, appendfsync="always") as server:
        async with Redis.from_url(server.url) as client:
            await client.xadd("log", {"b": "1"})
        server.kill()
        assert await server.wait() == -signal.SIGKILL
        await server.restart()
        async with Redis.from_url(server.url) as client:
            assert await client.xlen("log") == 1


async def test_two_pairs_run_side_by_side() -> None:
    async with (
        postgres(durable=False) as one,
        redis() as cache_one,
        postgres(durable=False) as two,
        redis() as cache_two,
    ):
        await execute(one.url, "create table only_here ()")
        assert await fetch_value(two.url, "select to_regclass('only_here')") is None
        async with Redis.from_url(cache_one.url) as client:
            await client.set("only_here", 1)
        async with Redis.from_url(cache_two.url) as client:
            assert await client.dbsize() == 0
        assert len({one.pid, two.pid, cache_one.pid, cache_two.pid}) == 4


async def test_temporary_folders_are_gone_at_the_end() -> None:
    async with postgres(durable=False) as server, redis() as cache:
        kept = [server.run_folder, server.data_folder, cache.run_folder, cache.data_folder]
        assert all(folder.exists() for folder in kept)
    assert not any(folder.exists() for folder in kept)


async def test_a_data_folder_of_another_version_is_one_clear_line(data_folder: Path) -> None:
    async with postgres(data_folder, durable=False):
        pass
    (data_folder / "cluster" / "PG_VERSION").write_text("9.6\n")
    major = installed_binaries().major
    with pytest.raises(
        ConfigurationError, match=rf"was made by PostgreSQL 9\.6 and this is {major}: choose"
    ) as caught:
        async with postgres(data_folder, durable=False):
            pass
    assert "\n" not in str(caught.value)


async def test_a_folder_of_something_else_is_one_clear_line(data_folder: Path) -> None:
    (data_folder / "cluster").mkdir()
    with pytest.raises(ConfigurationError, match="is not a PostgreSQL data folder"):
        async with postgres(data_folder):
            pass


async def test_an_interrupted_first_start_is_made_good_by_the_next(data_folder: Path) -> None:
    half_made = data_folder / "cluster.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("17\n")
    async with postgres(data_folder, durable=False) as server:
        assert await fetch_value(server.url, "select 1") == 1
    assert not half_made.exists()


async def test_redis_data_that_it_cannot_read_is_its_own_reason_in_one_line(data_folder: Path) -> None:
    async with redis(data_folder) as server, Redis.from_url(server.url) as client:
        await client.set("kept", "1")
    for path in (data_folder / "appendonlydir").glob("*.incr.aof"):
        path.write_bytes(b"*not an append-only file\r\n" * 4)
    with pytest.raises(ConfigurationError, match=r"Redis did not start: .*Bad file format") as caught:
        async with redis(data_folder):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("server", [postgres, redis])
async def test_a_port_in_use_is_one_clear_line(server: type[postgres], data_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} is in use"):
            async with server(data_folder, tcp_port=port):
                pass


@pytest.mark.parametrize("server", [postgres, redis])
async def test_a_data_folder_in_use_is_one_clear_line(server: type[postgres], data_folder: Path) -> None:
    async with server(data_folder):
        with pytest.raises(ConfigurationError, match=f"is in use by process {os.getpid()}"):
            async with server(data_folder):
                pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
async def test_root_learns_which_parent_shuts_postgres_out(data_folder: Path) -> None:
    closed = data_folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=f"may not enter {closed}: choose a data folder"):
        async with postgres(closed / "postgres"):
            pass
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as somebody else")
async def test_root_s_postgres_starts_from_an_installation_that_only_root_can_read(data_folder: Path) -> None:
    installed = installed_binaries()
    if installed.folder.parent.name != "pginstall":
        pytest.skip("a distribution's PostgreSQL cannot be copied elsewhere")
    closed = data_folder / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(installed.folder.parent, closed / "pginstall", symlinks=True)
    async with postgres(
        data_folder / "data", durable=False, binaries=Binaries(closed / "pginstall" / "bin")
    ) as server:
        assert await fetch_value(server.url, "select 1") == 1
        assert Path(f"/proc/{server.pid}/exe").resolve().is_relative_to(server.run_folder)


async def test_the_environment_names_servers_that_are_not_started(data_folder: Path) -> None:
    environment = {"DATABASE_URL": "postgresql://elsewhere/ledger", "REDIS_URL": "rediss://elsewhere/1"}
    async with servers_from_environment_or_embedded(data_folder, environment=environment) as servers:
        assert (servers.database_url, servers.redis_url) == tuple(environment.values())
        assert (servers.postgres, servers.redis) == (None, None)
    assert not list(data_folder.iterdir())


async def test_without_them_both_are_embedded_and_keep_their_data(data_folder: Path) -> None:
    async with servers_from_environment_or_embedded(
        data_folder / "mesh", database="execution_control", durable=False, environment={}
    ) as servers:
        assert servers.postgres is not None
        await execute(servers.postgres.url, "create database execution_control")
        assert await fetch_value(servers.database_url, "select current_database()") == "execution_control"
        async with Redis.from_url(servers.redis_url) as client:
            assert await client.ping()
    assert {path.name for path in (data_folder / "mesh").iterdir()} == {"postgres", "redis"}


HOLDER = """
import asyncio, sys
from pathlib import Path
from mesh.embedded import postgres, redis
from mesh.process import run_until_signalled

async def main():
    async with postgres(Path(sys.argv[1], "postgres")) as database, redis(Path(sys.argv[1], "redis")) as cache:
        print(database.pid, cache.pid, database.run_folder, cache.run_folder, flush=True)
        await asyncio.sleep(3600)

run_until_signalled(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signalled_parent_stops_both_cleanly(data_folder: Path, number: signal.Signals) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(data_folder)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        database_pid, cache_pid, *run_folders = holder.stdout.readline().split()
        holder.send_signal(number)
    assert holder.returncode == 128 + number
    assert not process_exists(int(database_pid))
    assert not process_exists(int(cache_pid))
    assert not any(Path(folder).exists() for folder in run_folders)
    assert not (data_folder / "postgres" / "cluster" / "postmaster.pid").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell a child that its parent died")
async def test_a_killed_parent_leaves_no_orphans_and_a_clean_folder(data_folder: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(data_folder)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        database_pid, cache_pid, *run_folders = holder.stdout.readline().split()
        assert process_exists(int(database_pid))
        assert process_exists(int(cache_pid))
        holder.kill()
    for pid in (database_pid, cache_pid):
        assert wait_until_gone(int(pid), seconds_max=30)
    assert any(Path(folder).exists() for folder in run_folders)
    async with postgres(data_folder / "postgres") as server, redis(data_folder / "redis"):
        assert await fetch_value(server.url, "select pg_is_in_recovery()") is False
        assert "not properly shut down" not in server.log_file.read_text(encoding="utf-8")
    assert not any(Path(folder).exists() for folder in run_folders)


@pytest.mark.parametrize(("kills", "works"), [(1, True), (2, False)])
async def test_initdb_that_a_signal_ends_is_tried_once_more(tmp_path: Path, kills: int, works: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        real = installed_binaries().reachable_by(UNPRIVILEGED if os.geteuid() == 0 else None, folder).folder
        bin_folder = folder / "install" / "bin"
        bin_folder.mkdir(parents=True)
        (bin_folder / "postgres").symlink_to(real / "postgres")
        script = bin_folder / "initdb"
        script.write_text(
            f"#!/bin/sh\nfor i in {' '.join(map(str, range(kills)))}; do\n"
            f'    mkdir "{folder}/killed$i" 2>/dev/null && kill -9 $$\ndone\nexec "{real}/initdb" "$@"\n'
        )
        script.chmod(0o755)
        starting = postgres(durable=False, binaries=Binaries(bin_folder))
        if works:
            async with starting as server:
                assert await fetch_value(server.url, "select 1") == 1
        else:
            with pytest.raises(ConfigurationError, match="initdb was ended by signal 9"):
                await starting.__aenter__()
