"""Acknowledgements and states on their way to the ledger, and what operators see."""

from __future__ import annotations

import asyncio
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from tests.integration.fanout.fanout_service import (
    WAIT_SECONDS,
    Fanout,
    after,
    from_now,
    from_snapshot,
    metadata,
    place,
)
from tests.integration.fanout.stand_in_ledger import OPERATOR_TOKEN, StandInLedger, User
from tests.integration.fanout.written_log import WrittenLog


def acknowledge(*positions: tuple[int, int, int]) -> pb.AcknowledgeRequest:
    return pb.AcknowledgeRequest(
        positions=[
            position_pb2.MasterPosition(
                master_id=master, position=position_pb2.StreamPosition(epoch=epoch, sequence=sequence)
            )
            for master, epoch, sequence in positions
        ]
    )


async def until_recorded(ledger: StandInLedger, user: User, master: int, condition) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition(ledger.recorded.get((user.user_id, master), [])):
            await ledger.next_record()


async def test_acknowledged_positions_reach_the_ledger_and_the_operators_list(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1, 2)
    await log.signals(1, 5)
    async with fanout.subscribe("token", after(1, 0, 0), from_now(2), client="tester 1") as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
        await fanout.stub.Acknowledge(acknowledge((1, 1, 3), (2, 1, 0)), metadata=metadata("token"))
        await fanout.stub.Acknowledge(acknowledge((1, 1, 2)), metadata=metadata("token"))
        await until_recorded(
            ledger, user, 1, lambda got: any(place(one.acknowledged) == (1, 3) for one in got)
        )
        listed = await fanout.stub.ListStreams(pb.ListStreamsRequest(), metadata=metadata(OPERATOR_TOKEN))
        (one,) = listed.streams
        assert (one.user_id, one.client) == (user.user_id, "tester 1")
        cursor = next(cursor for cursor in one.cursors if cursor.master_id == 1)
        assert place(cursor.sent) == (1, 5)
        assert place(cursor.acknowledged) == (1, 3)
        assert cursor.lag == 0


async def test_a_position_beyond_the_log_is_refused(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fanout.stub.Acknowledge(acknowledge((1, 1, 6)), metadata=metadata("token"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_lists_come_in_pages(fanout: Fanout, ledger: StandInLedger) -> None:
    ledger.add_user("token", 1)
    subscribers = [fanout.subscribe("token", from_now(1)) for _ in range(5)]
    try:
        for one in subscribers:
            await one.begun()
        found: list[int] = []
        request = pb.ListStreamsRequest(page_size=2)
        while True:
            page = await fanout.stub.ListStreams(request, metadata=metadata(OPERATOR_TOKEN))
            found += [one.stream_id for one in page.streams]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert len(found) == 5
        assert found == sorted(set(found))
    finally:
        for one in subscribers:
            await one.__aexit__()


async def test_a_full_sync_is_recorded_from_its_beginning_to_its_end(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1)
    await log.signals(1, 5)
    await log.snapshot(1)
    async with fanout.subscribe("token", from_snapshot(1)):
        await until_recorded(
            ledger, user, 1, lambda got: got and got[-1].sync_state == ledger_pb.SYNC_STATE_SYNCED
        )


async def test_a_hole_degrades_until_a_full_sync(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await log.signals(1, 2)
        await log.gap(1, 1)
        await until_recorded(
            ledger, user, 1, lambda got: got and got[-1].sync_state == ledger_pb.SYNC_STATE_DEGRADED_GAP
        )
    # Resuming does not heal it; the stream says so.
    async with fanout.subscribe("token", after(1, 1, 3)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).states == [pb.SUBSCRIPTION_STATE_DEGRADED_GAP])
    await log.snapshot(1)
    async with fanout.subscribe("token", from_snapshot(1)):
        await until_recorded(ledger, user, 1, lambda got: got[-1].sync_state == ledger_pb.SYNC_STATE_SYNCED)
    async with fanout.subscribe("token", after(1, 1, 3)) as subscriber:
        await subscriber.until(lambda: subscriber.progress >= 3)
        assert subscriber.of(1).states == []


async def test_what_waits_is_recorded_before_the_process_ends(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    from tests.integration.fanout.fanout_service import fanout_running, fanout_settings

    user = ledger.add_user("token", 1)
    await log.signals(1, 5)
    async with fanout_running(fanout_settings(redis_url, ledger, record_interval_seconds=10)) as fanout:
        await fanout.stub.Acknowledge(acknowledge((1, 1, 5)), metadata=metadata("token"))
        assert (user.user_id, 1) not in ledger.recorded
    assert place(ledger.recorded[user.user_id, 1][-1].acknowledged) == (1, 5)


async def test_prometheus_hears_in_which_states_subscriptions_are(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1, 2)

    async def states() -> dict[str, float]:
        text = await asyncio.to_thread(metrics_text, fanout.running.admin_port)
        families = text_string_to_metric_families(text)
        (family,) = [one for one in families if one.name == "fanout_subscriptions"]
        return {one.labels["state"]: one.value for one in family.samples if one.value}

    assert await states() == {}
    async with fanout.subscribe("token", from_now(1), from_now(2)) as subscriber:
        await subscriber.begun()
        assert await states() == {"SYNCED": 2}
        await log.gap(1, 1)
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_DEGRADED_GAP in subscriber.of(1).states)
        await ledger.pause(user, 2, license_pb.PAUSE_SCOPE_ALL)
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_PAUSED_ALL in subscriber.of(2).states)
        assert await states() == {"DEGRADED_GAP": 1, "PAUSED_ALL": 1}


def metrics_text(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_SECONDS) as answer:
        return str(answer.read(), "utf-8")
