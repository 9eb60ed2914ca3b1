"""The tail of a stream: what is there and what comes, each entry once and in order, or a loss that is told first."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from random import Random

import pytest

from mesh.embedded import redis as embedded_redis
from services.common import stream, tail
from services.common.backoff import Backoff
from services.common.stream import BEGINNING, EntryId, Redis
from tests.integration.common.log_entries import NAME, append


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


async def test_a_server_that_hangs_is_told_and_nothing_is_missed() -> None:
    async with (
        embedded_redis(appendfsync="no") as server,
        stream.connect(server.url, timeout_seconds=0.3) as client,
        aclosing(tail.tail(client, NAME, BEGINNING, block_ms=50, check_seconds=3_600)) as events,
    ):
        assert await anext(events) == tail.Connected()
        await append(client, b"0")
        assert await collect(events, 1) == [b"0"]
        os.kill(server.pid, signal.SIGSTOP)
        try:
            told = await next_of(events, tail.Disconnected)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert isinstance(told, tail.Disconnected)
        assert told.error.reason == "REDIS_TIMEOUT"
        assert await next_of(events, tail.Connected) == tail.Connected()
        await append(client, b"1")
        assert await collect(events, 1) == [b"1"]


async def test_a_tail_that_may_look_and_not_read_waits_longer_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ceilings: list[float] = []

    class Noted(Backoff):
        def next_delay(self) -> float:
            ceilings.append(self._ceiling_seconds)
            super().next_delay()
            return 0.01

    monkeypatch.setattr(tail, "Backoff", Noted)
    async with embedded_redis(appendfsync="no") as server, stream.connect(server.url) as client:
        await append(client, b"1")
        await client.execute_command("ACL", "SETUSER", "default", "-xread")
        async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=50)) as events:
            while len(ceilings) < 5:
                await anext(events)
    assert ceilings[4] > ceilings[0]


async def test_closing_the_tail_frees_its_connection(redis_url: str) -> None:
    async with stream.connect(redis_url, connections_max=1) as client:
        async with aclosing(tail.tail(client, NAME, BEGINNING, block_ms=50)) as events:
            assert await anext(events) == tail.Connected()
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(0.02)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert await client.ping()


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
