"""Licenses and subscriptions that change under live streams and before them."""

from __future__ import annotations

import asyncio

import grpc
from redis.asyncio import Redis

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2 as license_pb
from services.common import stream
from tests.integration.fanout.fanout_service import (
    Fanout,
    after,
    fanout_running,
    fanout_settings,
    from_now,
)
from tests.integration.fanout.stand_in_ledger import StandInLedger, Subscription
from tests.integration.fanout.written_log import WrittenLog, now_us
from tests.waiting import until

PAUSED_ALL = pb.SUBSCRIPTION_STATE_PAUSED_ALL


async def test_a_token_is_looked_up_once_for_many(fanout: Fanout, ledger: StandInLedger) -> None:
    ledger.add_user("token", 1)
    subscribers = [fanout.subscribe("token", from_now(1)) for _ in range(10)]
    try:
        for one in subscribers:
            await one.begun()
    finally:
        for one in subscribers:
            await one.__aexit__()
    assert ledger.authenticate_calls == 1


async def test_a_pause_that_was_announced_before_counts_for_a_new_stream(
    fanout: Fanout, ledger: StandInLedger
) -> None:
    """The token's answer is remembered from before the pause."""
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await subscriber.until(lambda: PAUSED_ALL in subscriber.of(1).states)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.until(lambda: subscriber.of(1).states == [PAUSED_ALL])
    assert ledger.authenticate_calls == 1


async def test_a_subscription_made_meanwhile_counts_at_once(fanout: Fanout, ledger: StandInLedger) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await ledger.subscribe(user, 2, "new")
        # Announcements come in order: once the pause is seen, so is what was before it.
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await subscriber.until(lambda: PAUSED_ALL in subscriber.of(1).states)
    async with fanout.subscribe("token", from_now(2)) as subscriber:
        await subscriber.begun()
    assert ledger.authenticate_calls == 1


async def test_a_subscription_counts_before_its_announcement_is_here(
    redis_url: str, ledger: StandInLedger, log: WrittenLog
) -> None:
    """Of masters that nobody let the user follow the ledger is asked once in a while, however often they are named."""
    user = ledger.add_user("token", 1)
    loaded = fanout_settings(redis_url, ledger, authenticate_refused_seconds=60)
    async with fanout_running(loaded) as fanout:
        async with fanout.subscribe("token", from_now(1)) as subscriber:
            await subscriber.begun()
        user.subscriptions[2] = Subscription("unannounced", 2)
        async with fanout.subscribe("token", from_now(2)) as subscriber:
            await subscriber.begun()
        assert ledger.authenticate_calls == 2
        for _ in range(5):
            async with fanout.subscribe("token", from_now(3)) as subscriber:
                assert (await subscriber.ended()).code() is grpc.StatusCode.PERMISSION_DENIED
        assert ledger.authenticate_calls == 2


async def test_a_cancelled_master_leaves_the_others_streaming(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1, 2)
    async with fanout.subscribe("token", from_now(1), from_now(2)) as subscriber:
        await subscriber.begun()
        await ledger.cancel(user, 1)
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_CANCELLED in subscriber.of(1).states)
        await log.signals(1, 3)
        await log.signals(2, 3)
        await subscriber.until(lambda: subscriber.of(2).sequences == [1, 2, 3])
        assert subscriber.of(1).signals == []
        await ledger.cancel(user, 2)
        assert (await subscriber.ended()).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_one_who_subscribes_again_after_cancelling_is_let_in(
    fanout: Fanout, ledger: StandInLedger
) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        for _ in range(3):
            await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await ledger.cancel(user, 1)
        await subscriber.ended()
    await ledger.subscribe(user, 1, "another")
    # Later than that announcement: once it is seen, so is the other.
    await ledger.subscribe(user, 2, "later")
    for _ in range(200):
        async with fanout.subscribe("token", from_now(2)) as subscriber:
            await subscriber.until(lambda s=subscriber: s.progress or s.error)
            if subscriber.progress:
                break
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await subscriber.until(lambda: PAUSED_ALL in subscriber.of(1).states)


async def test_a_license_that_expires_ends_its_streams(fanout: Fanout, ledger: StandInLedger) -> None:
    ledger.add_user("token", 1, lifetime_us=1_000_000)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_end_that_was_moved_counts(fanout: Fanout, ledger: StandInLedger) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await ledger.expire_at(user, now_us() + 300_000)
        error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        error = await subscriber.ended()
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_only_the_streams_of_the_revoked_license_end(fanout: Fanout, ledger: StandInLedger) -> None:
    user = ledger.add_user("old", 1)
    ledger.add_user("new", 1).user_id = user.user_id
    async with fanout.subscribe("new", from_now(1)) as kept:
        await kept.begun()
        async with fanout.subscribe("old", from_now(1)) as ended:
            await ended.begun()
            await ledger.revoke(user)
            assert (await ended.ended()).code() is grpc.StatusCode.UNAUTHENTICATED
        await kept.until(lambda n=kept.progress: kept.progress > n + 1)


async def test_changes_whose_announcement_was_lost_are_found_when_that_is_noticed(
    fanout: Fanout, ledger: StandInLedger, redis_client: Redis
) -> None:
    """The announcements' stream went away, and what it had said with it."""
    paused, cancelled, revoked = (ledger.add_user(name, 1) for name in ("paused", "cancelled", "revoked"))
    subscribers = [fanout.subscribe(name, from_now(1)) for name in ("paused", "cancelled", "revoked")]
    for one in subscribers:
        await one.begun()
    await ledger.pause(ledger.add_user("stranger", 1), 1, license_pb.PAUSE_SCOPE_ALL)
    paused.subscriptions[1].pause = license_pb.PAUSE_SCOPE_ALL
    paused.subscriptions[1].version += 1
    del cancelled.subscriptions[1]
    revoked.revoked = True
    await asyncio.sleep(0.1)
    await redis_client.delete(stream.LEDGER_EVENTS)
    await subscribers[0].until(lambda: PAUSED_ALL in subscribers[0].of(1).states)
    assert (await subscribers[1].ended()).code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await subscribers[2].ended()).code() is grpc.StatusCode.UNAUTHENTICATED
    await subscribers[0].__aexit__()


async def test_changes_whose_announcement_was_lost_while_the_ledger_was_away_are_found_when_it_is_back(
    fanout: Fanout, ledger: StandInLedger, redis_client: Redis
) -> None:
    """Redis lost what was announced, and the ledger did not answer when that was noticed."""
    users = [ledger.add_user(f"token {number}", 1) for number in range(40)]
    subscribers = [fanout.subscribe(f"token {number}", from_now(1)) for number in range(40)]
    for one in subscribers:
        await one.begun()
    await ledger.pause(ledger.add_user("stranger", 1), 1, license_pb.PAUSE_SCOPE_ALL)
    for user in users:
        user.revoked = True
    ledger.is_away = True
    # The fan-out looks up 16 at once, and its channel tries each 4 times.
    given_up = ledger.authenticate_calls + 16 * 4
    await asyncio.sleep(0.1)
    await redis_client.delete(stream.LEDGER_EVENTS)
    await until(lambda: ledger.authenticate_calls >= given_up)
    ledger.is_away = False
    for one in subscribers:
        assert (await one.ended()).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_changes_that_nobody_announced_are_found_after_a_while(
    redis_url: str, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1)
    loaded = fanout_settings(redis_url, ledger, refresh_interval_seconds=0.2)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        user.subscriptions[1].pause = license_pb.PAUSE_SCOPE_ALL
        user.subscriptions[1].version += 1
        await subscriber.until(lambda: PAUSED_ALL in subscriber.of(1).states)


async def test_a_ledger_that_was_restored_to_an_earlier_state_is_believed(
    redis_url: str, ledger: StandInLedger, log: WrittenLog
) -> None:
    """The versions of its subscriptions rise anew, from below what was heard."""
    user = ledger.add_user("token", 1)
    loaded = fanout_settings(redis_url, ledger, refresh_interval_seconds=0.2)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        for _ in range(4):
            await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_UNSPECIFIED)
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await subscriber.until(lambda: PAUSED_ALL in subscriber.of(1).states)
        user.subscriptions[1].pause = license_pb.PAUSE_SCOPE_UNSPECIFIED
        user.subscriptions[1].version = 1
        await subscriber.until(lambda: subscriber.of(1).states[-1] != PAUSED_ALL)
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await subscriber.until(lambda: subscriber.of(1).states[-1] == PAUSED_ALL)


async def test_a_stream_does_not_go_on_under_a_subscription_that_replaced_its_own(
    redis_url: str, ledger: StandInLedger, log: WrittenLog
) -> None:
    """Nobody heard that the first was cancelled, nor that the second is paused."""
    user = ledger.add_user("token", 1, 2)
    loaded = fanout_settings(redis_url, ledger, refresh_interval_seconds=0.2)
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1), from_now(2)) as one:
        await one.begun()
        user.subscriptions[1] = Subscription("another", 1, pause=license_pb.PAUSE_SCOPE_ALL)
        await one.until(lambda: pb.SUBSCRIPTION_STATE_CANCELLED in one.of(1).states)
        await log.signals(1, 3)
        await log.signals(2, 3)
        await one.until(lambda: one.of(2).sequences == [1, 2, 3])
        assert one.of(1).signals == []
        async with fanout.subscribe("token", after(1, 1, 0)) as again:
            await again.until(lambda: again.of(1).gaps)
            assert again.of(1).states[0] == PAUSED_ALL
            assert again.of(1).signals == []


async def test_announcements_that_cannot_be_parsed_are_passed_over(
    fanout: Fanout, ledger: StandInLedger, redis_client: Redis
) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await redis_client.xadd(stream.LEDGER_EVENTS, {stream.FIELD: b"\xff\xff"})
        await redis_client.xadd(stream.LEDGER_EVENTS, {b"other": b"1"})
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await subscriber.until(lambda: PAUSED_ALL in subscriber.of(1).states)


async def test_a_refused_token_is_asked_for_again_after_a_moment(
    redis_url: str, ledger: StandInLedger, log: WrittenLog
) -> None:
    loaded = fanout_settings(redis_url, ledger, authenticate_refused_seconds=0)
    async with fanout_running(loaded) as fanout:
        async with fanout.subscribe("token", from_now(1)) as subscriber:
            assert (await subscriber.ended()).code() is grpc.StatusCode.UNAUTHENTICATED
        ledger.add_user("token", 1)
        async with fanout.subscribe("token", from_now(1)) as subscriber:
            await subscriber.begun()
