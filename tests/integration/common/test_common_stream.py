"""Redis against a real server: what a stream tells, connections, and failures by name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis.exceptions
import trustme

from mesh.embedded import redis as running_redis
from services.common import errors, stream, tail
from services.common.consumer_group import ConsumerGroup
from services.common.stream import BEGINNING, Redis
from tests.integration.common.log_entries import NAME, append


async def test_state_of_a_stream(client: Redis) -> None:
    assert await stream.read_state(client, NAME) is None
    assert await stream.last_id(client, NAME) == BEGINNING
    ids = await append(client, b"1", b"2", b"3")
    await client.xtrim(NAME, maxlen=1, approximate=False)
    state = await stream.read_state(client, NAME)
    assert state == stream.StreamState(last=ids[2], first=ids[2], added=3, length=1)
    assert state.trimmed == 2
    await client.xtrim(NAME, maxlen=0, approximate=False)
    state = await stream.read_state(client, NAME)
    assert state == stream.StreamState(last=ids[2], first=None, added=3, length=0)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with stream.connect("redis://127.0.0.1:1/0") as client:
        with pytest.raises(errors.UnavailableError) as caught, stream.translating():
            await client.ping()
    assert caught.value.reason == "REDIS_UNREACHABLE"


async def test_a_server_that_never_answers_is_unavailable() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with stream.connect(f"redis://127.0.0.1:{port}/0", timeout_seconds=0.1) as client:
            with pytest.raises(errors.UnavailableError) as caught, stream.translating():
                await client.ping()
    assert caught.value.reason == "REDIS_TIMEOUT"


@pytest.mark.parametrize("url", ["http://x", "postgresql://secret@x/y", "redis://h:port/0", ""])
async def test_a_url_of_another_kind_is_a_configuration_error_without_the_url(url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="REDIS_URL: is not a redis://"):
        async with stream.connect(url):
            pass


async def test_rediss_checks_the_servers_certificate(redis_url: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    async with tls_in_front_of(redis_url, context) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path}"
        async with stream.connect(f"{url}/ca.pem") as client, stream.connect(f"{url}/other.pem") as wrong:
            assert await client.ping()
            with pytest.raises(errors.UnavailableError) as caught, stream.translating():
                await wrong.ping()
    assert caught.value.reason == "REDIS_UNREACHABLE"


@asynccontextmanager
async def tls_in_front_of(redis_url: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that speaks TLS and hands the bytes on to the Redis of a unix:// or redis:// URL."""
    url = urlsplit(redis_url)

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if url.scheme == "unix":
            behind = await asyncio.open_unix_connection(url.path)
        else:
            behind = await asyncio.open_connection(url.hostname, url.port or 6379)
        await asyncio.gather(hand_on(reader, behind[1]), hand_on(behind[0], writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_wrong_commands_pass_through(client: Redis) -> None:
    await client.set("text", "x")
    with pytest.raises(redis.exceptions.ResponseError), stream.translating():
        await client.execute_command("XADD", "text", "*", "a", "b")
    with pytest.raises(redis.exceptions.ResponseError), stream.translating():
        await client.execute_command("NOSUCHCOMMAND")


async def test_a_client_whose_connections_are_all_in_use_is_unavailable_by_name_and_heals(
    redis_url: str,
) -> None:
    async with stream.connect(redis_url, connections_max=1, timeout_seconds=0.1) as client:
        held = await client.connection_pool.get_connection()
        with pytest.raises(errors.UnavailableError) as caught, stream.translating():
            await client.ping()
        await client.connection_pool.release(held)
        assert await client.ping()
    assert caught.value.reason == "REDIS_POOL_EXHAUSTED"


async def test_waiting_longer_than_the_time_out_is_cut_to_fit_it(redis_url: str) -> None:
    async with stream.connect(redis_url, timeout_seconds=1.5) as client:
        group = ConsumerGroup(client, NAME, "g", "c")
        assert await group.read_new(count=1, block_ms=60_000) == ()
        async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=60_000)) as events:
            assert await anext(events) == tail.Connected()
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(2)
            await append(client, b"1")
            assert isinstance(await waiting, tail.Entries)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "REDIS_OUT_OF_MEMORY"),
        ("MISCONF Redis is configured to save RDB snapshots", "REDIS_READ_ONLY"),
        ("READONLY You can't write against a read only replica.", "REDIS_READ_ONLY"),
        ("LOADING Redis is loading the dataset in memory", "REDIS_LOADING"),
        ("NOREPLICAS Not enough good replicas to write.", "REDIS_FAILING_OVER"),
        ("MASTERDOWN Link with MASTER is down", "REDIS_FAILING_OVER"),
        ("CLUSTERDOWN The cluster is down", "REDIS_FAILING_OVER"),
        ("UNBLOCKED force unblock from blocking operation", "REDIS_FAILING_OVER"),
        ("BUSY Redis is busy running a script.", "REDIS_TIMEOUT"),
        ("NOAUTH Authentication required.", "REDIS_REFUSED"),
        ("NOPERM User default has no permissions to run this command", "REDIS_REFUSED"),
    ],
)
async def test_answers_that_mean_not_now_are_unavailable(answer: str, reason: str) -> None:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(b"-" + answer.encode() + b"\r\n")
            await reader.readline()
        writer.close()

    async with await asyncio.start_server(answering, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with stream.connect(f"redis://127.0.0.1:{port}/0", timeout_seconds=2) as client:
            with pytest.raises(errors.UnavailableError) as caught, stream.translating():
                await client.ping()
    assert caught.value.reason == reason


async def test_a_refusal_within_a_pipeline_is_unavailable_too() -> None:
    async with running_redis(appendfsync="no") as server, stream.connect(server.url) as client:
        await client.config_set("min-replicas-to-write", 1)
        pipeline = client.pipeline(transaction=True)
        pipeline.xadd(NAME, {stream.FIELD: b"1"})
        with pytest.raises(errors.UnavailableError) as caught, stream.translating():
            await pipeline.execute()
    assert caught.value.reason == "REDIS_FAILING_OVER"
