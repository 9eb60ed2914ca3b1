"""Redis against a real server: connections and failures by name, the tail, the consumer group."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest
import redis.exceptions
import trustme

from mesh.embedded import redis as embedded_redis
from services.common import errors, stream, tail
from services.common.consumer_group import ConsumerGroup
from services.common.stream import BEGINNING, EntryId, Redis

NAME = stream.log_name()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with stream.connect(redis_url) as connected:
        yield connected


async def append(client: Redis, *payloads: bytes) -> list[EntryId]:
    return [EntryId.parse(await client.xadd(NAME, {stream.FIELD: payload})) for payload in payloads]


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


async def collect(events: AsyncIterator[tail.Event], count: int) -> list[bytes | None]:
    """Payloads until there are `count`; nothing but entries and connections may come."""
    payloads: list[bytes | None] = []
    async for event in events:
        assert isinstance(event, tail.Entries | tail.Connected), event
        if isinstance(event, tail.Entries):
            payloads += [entry.payload for entry in event.entries]
        if len(payloads) >= count:
            return payloads
    raise AssertionError("the tail ended")


async def next_of(events: AsyncIterator[tail.Event], kind: type[tail.Event]) -> tail.Event:
    async for event in events:
        if isinstance(event, kind):
            return event
        assert not isinstance(event, tail.Trimmed | tail.Restored), event
    raise AssertionError("the tail ended")


async def test_the_tail_gives_what_is_there_and_what_comes(client: Redis) -> None:
    await append(client, b"1", b"2", b"3")
    async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=100, count=2)) as events:
        assert await collect(events, 3) == [b"1", b"2", b"3"]
        waiting = asyncio.create_task(collect(events, 1))
        await append(client, b"4")
        assert await waiting == [b"4"]


async def test_the_tail_goes_on_after_an_id_and_waits_through_silence(client: Redis) -> None:
    ids = await append(client, b"1", b"2", b"3")
    async with aclosing(tail.tail(client, NAME, ids[1], block_ms=20, check_seconds=0)) as events:
        assert await collect(events, 1) == [b"3"]
        waiting = asyncio.create_task(collect(events, 1))
        await asyncio.sleep(0.1)
        await append(client, b"4")
        assert await waiting == [b"4"]


async def test_the_tail_says_whether_it_has_caught_up(client: Redis) -> None:
    await append(client, *[b"x"] * 5)
    async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=100, count=2)) as events:
        seen = [await next_of(events, tail.Entries) for _ in range(3)]
    assert [event.caught_up for event in seen if isinstance(event, tail.Entries)] == [False, False, True]


async def test_trimming_what_was_read_is_not_told(client: Redis) -> None:
    ids = await append(client, *[b"x"] * 10)
    async with aclosing(
        tail.tail(client, NAME, BEGINNING, block_ms=20, count=100, check_seconds=0)
    ) as events:
        assert len(await collect(events, 10)) == 10
        await client.xtrim(NAME, maxlen=0, approximate=False)
        await append(client, b"y")
        assert await collect(events, 1) == [b"y"]
        await client.xtrim(NAME, minid=str(ids[-1]), approximate=False)
        await append(client, b"z")
        assert await collect(events, 1) == [b"z"]


async def test_trimming_what_was_not_read_is_told_before_anything_later(client: Redis) -> None:
    ids = await append(client, *[b"%d" % number for number in range(10)])
    async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=20, count=3)) as events:
        assert await collect(events, 3) == [b"0", b"1", b"2"]
        await client.xtrim(NAME, maxlen=4, approximate=False)
        assert await next_of(events, tail.Trimmed) == tail.Trimmed(cursor=ids[2], first=ids[6])
        assert await collect(events, 4) == [b"6", b"7", b"8", b"9"]


async def test_trimming_up_to_the_cursor_is_not_told(client: Redis) -> None:
    ids = await append(client, *[b"%d" % number for number in range(10)])
    async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=20, count=3)) as events:
        assert await collect(events, 3) == [b"0", b"1", b"2"]
        await client.xtrim(NAME, minid=str(ids[3]), approximate=False)
        assert await collect(events, 7) == [b"%d" % number for number in range(3, 10)]


async def test_a_cursor_from_before_the_first_entry_is_told_at_the_start(client: Redis) -> None:
    ids = await append(client, *[b"x"] * 10)
    await client.xtrim(NAME, maxlen=2, approximate=False)
    for start in (BEGINNING, ids[3]):
        async with aclosing(tail.tail(client, NAME, start, block_ms=20)) as events:
            assert await next_of(events, tail.Trimmed) == tail.Trimmed(cursor=start, first=ids[8])
            assert len(await collect(events, 2)) == 2


async def test_a_stream_emptied_behind_the_reader_is_told_and_goes_on(client: Redis) -> None:
    ids = await append(client, *[b"x"] * 5)
    await client.xtrim(NAME, maxlen=0, approximate=False)
    async with aclosing(tail.tail(client, NAME, ids[0], block_ms=20)) as events:
        assert await next_of(events, tail.Trimmed) == tail.Trimmed(cursor=ids[0], first=None)
        waiting = asyncio.create_task(collect(events, 1))
        await append(client, b"new")
        assert await waiting == [b"new"]


async def test_a_deleted_stream_is_told_as_restored(client: Redis) -> None:
    ids = await append(client, b"1", b"2")
    async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=20, check_seconds=0)) as events:
        assert len(await collect(events, 2)) == 2
        await client.delete(NAME)
        assert await next_of(events, tail.Restored) == tail.Restored(cursor=ids[1], last=BEGINNING)
        await append(client, b"new")
        assert await collect(events, 1) == [b"new"]


async def test_a_restored_stream_that_has_grown_past_the_cursor_is_told(client: Redis) -> None:
    """Ids are times, so entries added after a restore have greater ids than those that were lost."""
    ids = await append(client, b"1", b"2", b"3", b"4")
    async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=20, check_seconds=0)) as events:
        assert len(await collect(events, 4)) == 4
        await client.delete(NAME)
        for entry_id, payload in ((ids[0], b"1"), (EntryId(ids[3].ms + 10), b"other")):
            await client.xadd(NAME, {stream.FIELD: payload}, id=str(entry_id))
        restored = await next_of(events, tail.Restored)
        assert restored == tail.Restored(cursor=ids[3], last=EntryId(ids[3].ms + 10))


@pytest.mark.parametrize("way", ["kill", "restart"])
async def test_the_tail_survives_restarts_and_misses_nothing(way: str) -> None:
    async with embedded_redis(appendfsync="always") as server, stream.connect(server.url) as client:
        await append(client, b"0")
        async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=50)) as events:
            assert await collect(events, 1) == [b"0"]
            for number in range(1, 4):
                waiting = asyncio.create_task(next_of(events, tail.Disconnected))
                await asyncio.sleep(0.02)
                if way == "kill":
                    server.kill()
                    await server.wait()
                else:
                    await server.stop()
                assert isinstance(await waiting, tail.Disconnected)
                await server.start()
                assert await next_of(events, tail.Connected) == tail.Connected()
                await append(client, b"%d" % number)
                assert await collect(events, 1) == [b"%d" % number]


async def test_the_tail_outlasts_a_server_that_is_not_there_at_the_start() -> None:
    async with embedded_redis(appendfsync="no") as server:
        url = server.url
        await server.stop()
        async with (
            stream.connect(url) as client,
            aclosing(tail.tail(client, NAME, BEGINNING, block_ms=50)) as events,
        ):
            assert isinstance(await anext(events), tail.Disconnected)
            await server.start()
            assert await anext(events) == tail.Connected()


async def test_closing_the_tail_frees_its_connection(redis_url: str) -> None:
    async with stream.connect(redis_url, connections_max=1) as client:
        async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=50)) as events:
            assert await anext(events) == tail.Connected()
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(0.02)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert await client.ping()


@pytest.fixture
def group(client: Redis) -> ConsumerGroup:
    return ConsumerGroup(client, NAME, stream.ARCHIVER_GROUP, "one")


async def test_a_group_is_made_once(group: ConsumerGroup) -> None:
    assert await group.ensure() is True
    assert await group.ensure() is False
    assert await group.read_new(count=10) == ()


async def test_entries_are_read_kept_pending_and_acknowledged(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    ids = await append(client, b"1", b"2", b"3")
    first = await group.read_new(count=2)
    assert [entry.payload for entry in first] == [b"1", b"2"]
    assert await group.read_pending(count=10) == first
    assert await group.read_pending(count=10, after=ids[0]) == first[1:]
    assert await group.acknowledge([ids[0]]) == 1
    assert await group.acknowledge([ids[0]]) == 0
    assert await group.acknowledge([]) == 0
    assert await group.read_pending(count=10) == first[1:]
    assert [entry.payload for entry in await group.read_new(count=10)] == [b"3"]


async def test_reading_waits_for_the_first_entry(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    waiting = asyncio.create_task(group.read_new(count=10, block_ms=2_000))
    await asyncio.sleep(0.05)
    await append(client, b"1")
    assert [entry.payload for entry in await waiting] == [b"1"]


async def test_what_a_dead_consumer_took_is_taken_over(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    await append(client, b"1", b"2")
    taken = await group.read_new(count=10)
    other = ConsumerGroup(client, NAME, stream.ARCHIVER_GROUP, "two")
    assert await other.claim_stale(min_idle_ms=3_600_000, count=10) == ()
    assert await other.claim_stale(min_idle_ms=0, count=10) == taken
    assert await group.read_pending(count=10) == ()


async def test_pending_entries_that_were_trimmed_are_told_without_payload(
    client: Redis, group: ConsumerGroup
) -> None:
    await group.ensure()
    ids = await append(client, b"1", b"2")
    await group.read_new(count=10)
    await client.xtrim(NAME, maxlen=1, approximate=False)
    pending = await group.read_pending(count=10)
    assert [(entry.id, entry.payload) for entry in pending] == [(ids[0], None), (ids[1], b"2")]


async def test_a_group_that_is_gone_is_made_again(client: Redis, group: ConsumerGroup) -> None:
    await group.ensure()
    await client.delete(NAME)
    assert await group.read_new(count=10) == ()
    await append(client, b"1")
    assert [entry.payload for entry in await group.read_new(count=10)] == [b"1"]
    await client.delete(NAME)
    assert await group.claim_stale(min_idle_ms=0, count=10) == ()


async def test_a_group_without_a_server_is_unavailable() -> None:
    async with stream.connect("redis://127.0.0.1:1/0") as client:
        group = ConsumerGroup(client, NAME, "g", "c")
        for attempt in (group.ensure(), group.read_new(count=1), group.acknowledge([BEGINNING])):
            with pytest.raises(errors.UnavailableError):
                await attempt


@pytest.mark.parametrize("seed", range(25))
async def test_no_schedule_loses_an_entry_without_saying_so(client: Redis, seed: int) -> None:
    """Random appends, trims and restores between reads: each entry comes once and in order, or a loss is told first."""
    random = Random(seed)
    written = read = 0
    saved: tuple[bytes, int] | None = None
    async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=1, count=4, check_seconds=0)) as events:
        assert await anext(events) == tail.Connected()
        for _ in range(60):
            action = random.choice(["append", "append", "trim", "read", "read", "save", "restore"])
            if action == "append":
                for _ in range(random.randint(1, 6)):
                    written += 1
                    await append_after_last(client, written)
            elif action == "trim":
                await client.xtrim(NAME, maxlen=random.randint(0, 8), approximate=False)
            elif action == "save" and written:
                saved = await client.dump(NAME), written
            elif action == "restore" and saved is not None:
                await client.restore(NAME, 0, saved[0], replace=True)
                written = saved[1]
                # Grown beyond its old size before anybody looks, only the log's own meta data can tell.
                read, written = await read_once(client, events, read, written)
            elif written > 0 and await stream.last_id(client, NAME) > BEGINNING:
                read, written = await read_once(client, events, read, written)


async def append_after_last(client: Redis, number: int) -> None:
    last = await stream.last_id(client, NAME)
    await client.xadd(NAME, {stream.FIELD: b"%d" % number}, id=f"{last.ms + 1}-0")


async def read_once(
    client: Redis, events: AsyncIterator[tail.Event], read: int, written: int
) -> tuple[int, int]:
    """One step of the reader; the newest number read, and the newest written so that a waiting reader gets one."""
    told = False
    async with asyncio.timeout(10):
        step = asyncio.create_task(anext(events))
        while True:
            done, _ = await asyncio.wait({step}, timeout=0.01)
            if not done:
                written += 1
                await append_after_last(client, written)
                continue
            event = step.result()
            if isinstance(event, tail.Entries):
                break
            told = told or isinstance(event, tail.Trimmed | tail.Restored)
            step = asyncio.create_task(anext(events))
    numbers = [int(entry.payload or b"0") for entry in event.entries]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert told or numbers[0] == read + 1
    return numbers[-1], max(written, numbers[-1])
