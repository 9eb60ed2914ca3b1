"""What the subscriber client gives its application, asks of it and reports for it, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Never

import pytest

from ecp_client.account import HoldingState
from ecp_client.copying import Action, CopySettings, Decision, Reason, Scaling
from ecp_client.errors import ClosedError, JournalError, JournalLockedError
from ecp_client.positions import Position
from ecp_client.subscriber import (
    Batch,
    OutcomesDropped,
    OutcomesRefused,
    Report,
    Start,
    StreamEnded,
    Subscriber,
    SubscriberThread,
    SyncState,
)
from execution.common.v1.signal_pb2 import ORDER_TYPE_LIMIT, SIGNAL_KIND_PENDING_PLACE, SequencedSignal
from execution.risk.v1 import risk_service_pb2 as risk_pb
from tests.integration.clients.application import FOREVER, WAIT_SECONDS, App, settings
from tests.integration.clients.scripted_server import (
    says,
    serving,
    signals,
    snapshot,
)
from tests.waiting import until


class TestReports:
    async def test_outcomes_are_repeated_with_the_same_ids_until_they_are_taken(self) -> None:
        app = App()
        async with serving(says(signals(1, 2, 3))) as server:
            server.failing_reports = 2
            server.refused_outcomes = ["1-1-2"]
            given = settings(server, risk_addresses=[server.address])

            def protection(one: SequencedSignal, _: Decision) -> Reason:
                return Reason.PRICE if one.sequence == 3 else Reason.NONE

            async with app.subscriber(given, protection=protection) as client:
                await until(lambda: len(server.outcomes) == 3)
                await until(lambda: client.outcomes_waiting == 0)
            assert server.report_requests == [["1-1-1", "1-1-2", "1-1-3"]] * 3
            kinds = [one.kind for one in server.outcomes]
            executed, protected = risk_pb.OUTCOME_KIND_EXECUTED, risk_pb.OUTCOME_KIND_PROTECTED
            assert kinds == [executed, executed, protected]
            assert server.outcomes[2].reason == risk_pb.PROTECTION_REASON_PRICE
        assert OutcomesRefused((("1-1-2", "told to"),)) in app.events

    async def test_what_waits_is_reported_at_the_end(self) -> None:
        app = App()
        async with serving(says(signals(1))) as server:
            given = settings(server, risk_addresses=[server.address], report_interval_seconds=FOREVER)
            async with app.subscriber(given) as client:
                await client.wait_position(1, 1, WAIT_SECONDS)
            assert [one.event_id for one in server.outcomes] == ["1-1-1"]

    async def test_dropped_reports_are_counted_and_told(self) -> None:
        app = App()
        async with serving(says(signals(1, 2, 3))) as server:
            given = settings(server, risk_addresses=["127.0.0.1:1"], outcomes_max=1, call_timeout_seconds=0.5)
            async with app.subscriber(given):
                await until(lambda: OutcomesDropped(2, 2) in app.events)

    async def test_the_application_reports_what_its_broker_did(self) -> None:
        app = App()
        async with serving(says(signals(1, 2))) as server:
            given = settings(server, risk_addresses=[server.address], report=Report.MANUAL)
            batches: list[Batch] = []
            async with Subscriber(given, on_batch=batches.append, on_event=app.events.append) as client:
                await client.wait_position(1, 2, WAIT_SECONDS)
                first, second = [one for batch in batches for one in batch.signals]
                client.report(first, executed=True, price_e8=5)
                client.report(second, executed=False, reason=Reason.MARGIN)
                await until(lambda: len(server.outcomes) == 2)
                # What is under way when the client closes is sent again.
                await until(lambda: client.outcomes_waiting == 0)
                assert [one.position_id for one in client.copier(1).account.held()] == [1]
            assert [one.price_e8 for one in server.outcomes] == [5, 0]
            assert server.outcomes[1].reason == risk_pb.PROTECTION_REASON_MARGIN


class TestApplication:
    async def test_a_callback_that_fails_is_counted_and_nothing_stops(self) -> None:
        def broken(_batch: Batch) -> None:
            raise ZeroDivisionError

        script = says(signals(1), signals(2))
        async with serving(script) as server, Subscriber(settings(server), on_batch=broken) as client:
            await client.wait_position(1, 2, WAIT_SECONDS)
            await until(lambda: client.stats.callback_errors == 2)

    async def test_what_the_application_is_asked_may_fail_and_nothing_stops(self) -> None:
        """Who cannot tell lets no risk in."""

        def broken(*_: object) -> Never:
            raise ZeroDivisionError

        app = App()
        script = says(snapshot(0), signals(1), signals(2))
        async with serving(script) as server:
            given = settings(server, start=Start.SNAPSHOT)
            async with app.subscriber(given, protection=broken, held_positions=broken) as client:
                await client.wait_position(1, 2, WAIT_SECONDS)
                await until(lambda: app.sequences == [1, 2])
                assert client.stats.callback_errors == 3
                assert not list(client.copier(1).account.held())
        assert [decision.reason for decision in app.decisions] == [Reason.PROTECTION_FAILED] * 2

    @pytest.mark.parametrize("answer", [float("nan"), 1.5, "12"])
    async def test_equity_that_is_no_integer_is_not_known(self, answer: object) -> None:
        app = App()
        copying = CopySettings(scaling=Scaling.EQUITY)
        async with serving(says(signals(1), signals(2))) as server:
            given = settings(server, masters={1: copying})
            async with app.subscriber(given, equity=lambda: answer) as client:
                await client.wait_position(1, 2, WAIT_SECONDS)
                await until(lambda: app.sequences == [1, 2])
                assert client.stats.callback_errors == 2
        assert [decision.reason for decision in app.decisions] == [Reason.NO_EQUITY] * 2

    async def test_an_application_that_takes_its_time_is_not_taken_for_a_silent_stream(self) -> None:
        seen: list[int] = []

        async def slow(batch: Batch) -> None:
            await asyncio.sleep(0.5)
            seen.append(batch.signals[0].sequence)

        async with serving(says(signals(1), signals(2))) as server:
            given = settings(server, silence_seconds_max=0.2)
            async with Subscriber(given, on_batch=slow) as client:
                await until(lambda: seen == [1, 2])
                assert client.stats.streams == 1

    async def test_the_next_message_waits_for_an_async_callback(self) -> None:
        release = asyncio.Event()
        begun: list[int] = []

        async def slow(batch: Batch) -> None:
            begun.append(batch.signals[0].sequence)
            await release.wait()

        script = says(signals(1), signals(2))
        async with serving(script) as server, Subscriber(settings(server), on_batch=slow) as client:
            await until(lambda: begun == [1])
            await asyncio.sleep(0.05)
            assert begun == [1]
            release.set()
            await client.wait_position(1, 2, WAIT_SECONDS)
            await until(lambda: begun == [1, 2])

    async def test_a_full_sync_and_a_reconnect_can_be_asked_for(self) -> None:
        app = App()
        scripts = says(signals(1)), says(signals(2)), says(snapshot(2), signals(3))
        async with serving(*scripts) as server, app.subscriber(settings(server)) as client:
            await client.wait_position(1, 1, WAIT_SECONDS)
            client.disconnect()
            await client.wait_position(1, 2, WAIT_SECONDS)
            client.resync(1)
            await client.wait_position(1, 3, WAIT_SECONDS)
        assert app.sequences == [1, 2, 3]

    async def test_what_the_user_closed_is_remembered(self, tmp_path: Path) -> None:
        app = App()
        async with serving(says(signals(1, 2)), says(snapshot(2))) as server:
            given = settings(server, journal_folder=tmp_path)
            async with app.subscriber(given) as client:
                await client.wait_position(1, 2, WAIT_SECONDS)
                assert client.closed_by_user(1, 1)
                assert not client.order_cancelled_by_user(1, 1)
                assert client.master_ids == [1]
                with pytest.raises(JournalLockedError):
                    app.subscriber(given)
            again = app.subscriber(given)
            assert [one.position_id for one in again.copier(1).account.held()] == [2]
            await again.close()

    async def test_a_journal_that_cannot_be_written_stops_the_client_and_says_so(
        self, tmp_path: Path
    ) -> None:
        app = App()
        async with serving(says(signals(1), signals(2))) as server:
            client = app.subscriber(settings(server, journal_folder=tmp_path))
            assert client._journal is not None

            def full(_entries: bytes) -> None:
                raise JournalError("the disk is full")

            client._journal.append = full
            async with client:
                with pytest.raises(JournalError):
                    await client.wait_position(1, 2, WAIT_SECONDS)
                with pytest.raises(JournalError):
                    await client.wait_position(1, 2, WAIT_SECONDS)
        assert app.sequences == []
        (end,) = [event for event in app.events if isinstance(event, StreamEnded) and event.is_final]
        assert "disk is full" in end.reason

    async def test_waiting_ends_with_the_client(self) -> None:
        async with serving(says(signals(1))) as server:
            client = App().subscriber(settings(server))
            async with client:
                waiting = asyncio.create_task(client.wait_position(1, 99))
                await client.wait_position(1, 1, WAIT_SECONDS)
                with pytest.raises(TimeoutError):
                    await client.wait_position(1, 99, 0.01)
                with pytest.raises(ClosedError):
                    await client.start()
            with pytest.raises(ClosedError):
                await waiting
            await client.close()


async def test_a_plain_thread_polls(tmp_path: Path) -> None:
    async with serving(says(signals(1, 2), signals(3))) as server:
        given = settings(
            server, journal_folder=tmp_path, risk_addresses=[server.address], report=Report.MANUAL
        )

        def follow() -> list[tuple[int, Action]]:
            seen: list[tuple[int, Action]] = []
            threads: set[str] = set()

            def protection(_one: object, _decision: Decision) -> Reason:
                threads.add(threading.current_thread().name)
                return Reason.NONE

            with SubscriberThread(given, protection=protection) as client:
                while len(seen) < 3:
                    batch = client.poll(WAIT_SECONDS)
                    assert batch is not None
                    for one, decision in zip(batch.signals, batch.decisions, strict=True):
                        seen.append((one.sequence, decision.action))
                        client.report(one, executed=True)
                assert client.poll() is None
                assert client.position(1) == Position(1, 3)
                assert client.state(1) is SyncState.SYNCED
                assert client.stats.signals == 3
                client.closed_by_user(1, 2)
                client.set_license_token("another")
                assert client.copier(1).mirror.positions.keys() == {1, 2, 3}
                with pytest.raises(JournalLockedError):
                    SubscriberThread(given)
            assert threads == {"ecp-subscriber"}
            return seen

        seen = await asyncio.to_thread(follow)
        assert seen == [(number, Action.COPY) for number in (1, 2, 3)]
        assert {one.event_id for one in server.outcomes} == {"1-1-1", "1-1-2", "1-1-3"}


async def test_a_plain_thread_can_ask_for_all_that_a_coroutine_can(tmp_path: Path) -> None:
    placed = signals(1)
    one = placed.signals.signals[0].signal
    one.kind, one.order_id, one.position_id = SIGNAL_KIND_PENDING_PLACE, 5, 0
    one.order_type = ORDER_TYPE_LIMIT
    scripts = says(placed), says(signals(2)), says(snapshot(2), signals(3))
    async with serving(*scripts) as server:
        given = settings(server, journal_folder=tmp_path)

        def polled(client: SubscriberThread) -> list[int]:
            batch = client.poll(WAIT_SECONDS)
            assert batch is not None
            return [one.sequence for one in batch.signals]

        def follow() -> None:
            with SubscriberThread(given) as client:
                assert client.master_ids == [1]
                with pytest.raises(KeyError):
                    client.resync(7)
                assert polled(client) == [1]
                client.order_cancelled_by_user(1, 5)
                client.disconnect()
                assert polled(client) == [2]
                assert client.copier(1).account.orders[5].state is HoldingState.CLOSED_BY_USER
                client.resync(1)
                client.wait_position(1, 3, WAIT_SECONDS)
                assert polled(client) == []  # the full sync
                assert polled(client) == [3]
                with pytest.raises(TimeoutError):
                    client.wait_position(1, 99, 0.01)
                assert client.outcomes_waiting == 0
                assert client.server_time_us() > 0
                client.close()

        await asyncio.to_thread(follow)
        assert server.requests[2].masters[0].HasField("from_snapshot")
