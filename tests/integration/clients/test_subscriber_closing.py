"""What is in the journal reaches the application, also when the client is closed in the middle of it."""

from __future__ import annotations

import asyncio

import pytest

from ecp_client.errors import ClosedError
from ecp_client.subscriber import Batch, Subscriber, SubscriberThread
from tests.integration.clients.application import FOREVER, WAIT_SECONDS, settings
from tests.integration.clients.scripted_server import says, serving, signals
from tests.waiting import until


async def test_a_batch_that_is_being_done_is_done_to_its_end() -> None:
    begun, release = asyncio.Event(), asyncio.Event()
    done: list[int] = []

    async def on_batch(batch: Batch) -> None:
        begun.set()
        await release.wait()
        done.extend(one.sequence for one in batch.signals)

    async with serving(says(signals(1), signals(2))) as server:
        client = Subscriber(settings(server), on_batch=on_batch)
        await client.start()
        await begun.wait()
        closing = asyncio.create_task(client.close())
        await until(lambda: all(task.done() for task in client._tasks))
        assert not closing.done()
        release.set()
        await closing
    assert done == [1]


async def test_what_fails_then_is_counted_all_the_same() -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def on_batch(_batch: Batch) -> None:
        begun.set()
        await release.wait()
        raise ZeroDivisionError

    async with serving(says(signals(1))) as server:
        client = Subscriber(settings(server), on_batch=on_batch)
        await client.start()
        await begun.wait()
        closing = asyncio.create_task(client.close())
        await until(lambda: all(task.done() for task in client._tasks))
        release.set()
        await closing
        assert client.stats.callback_errors == 1


async def test_a_batch_that_never_ends_is_given_up() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def on_batch(_batch: Batch) -> None:
        begun.set()
        try:
            await asyncio.sleep(FOREVER)
        finally:
            ended.append("cancelled")

    async with serving(says(signals(1))) as server:
        async with Subscriber(settings(server, close_timeout_seconds=0.05), on_batch=on_batch):
            await begun.wait()
        assert ended == ["cancelled"]


async def test_a_batch_may_close_the_client() -> None:
    done: list[int] = []
    closed = asyncio.Event()

    async def on_batch(batch: Batch) -> None:
        await client.close()
        done.extend(one.sequence for one in batch.signals)
        closed.set()

    async with serving(says(signals(1), signals(2))) as server:
        client = Subscriber(settings(server), on_batch=on_batch)
        await client.start()
        await closed.wait()
        with pytest.raises(ClosedError):
            await client.start()
    assert done == [1]


async def test_a_batch_that_found_no_room_can_be_polled_after_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ecp_client.subscriber.thread.BATCHES_MAX", 1)
    async with serving(says(signals(1), signals(2), signals(3))) as server:

        def follow() -> list[int]:
            with SubscriberThread(settings(server)) as client:
                client.wait_position(1, 1, WAIT_SECONDS)
                while client.stats.signals < 2:
                    assert client.stats.signals > 0
            seen: list[int] = []
            try:
                while (batch := client.poll()) is not None:
                    seen += [one.sequence for one in batch.signals]
            except ClosedError:
                return seen
            raise AssertionError("a closed client has an end")

        assert await asyncio.to_thread(follow) == [1, 2]
