"""What a subscriber sees of a live stream."""

from __future__ import annotations

import grpc

from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2 as license_pb
from services.fanout import metrics
from tests.integration.fanout.fanout_service import Fanout, after, from_now, from_snapshot
from tests.integration.fanout.stand_in_ledger import StandInLedger
from tests.integration.fanout.written_log import WrittenLog


async def test_live_signals_come_once_and_in_order(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1, 2)
    async with fanout.subscribe("token", from_now(1), from_now(2)) as subscriber:
        await subscriber.begun()
        await log.signals(1, 50)
        await log.signals(2, 50, per_entry=7)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 50)
        await subscriber.until(lambda: len(subscriber.of(2).signals) == 50)
        assert subscriber.of(1).sequences == list(range(1, 51))
        assert subscriber.of(2).sequences == list(range(1, 51))


async def test_progress_comes_without_signals(fanout: Fanout, ledger: StandInLedger) -> None:
    ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.until(lambda: subscriber.progress >= 3)
        assert subscriber.of(1).held == (1, 0)


async def test_resume_after_a_position_gives_the_rest(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 20)
    async with fanout.subscribe("token", after(1, 1, 5)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 15)
        assert subscriber.of(1).sequences == list(range(6, 21))


async def test_what_a_stream_missed_before_it_was_opened_is_not_counted_as_late(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 20)
    counted = metrics.LATENCY_MS.count
    async with fanout.subscribe("token", after(1, 1, 5)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 15)
        assert metrics.LATENCY_MS.count == counted
        await log.signals(1, 1)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 16)
        assert metrics.LATENCY_MS.count == counted + 1


async def test_the_zero_position_begins_with_the_first(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 5)
    async with fanout.subscribe("token", after(1, 0, 0)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)


async def test_a_hole_is_told_exactly(fanout: Fanout, ledger: StandInLedger, log: WrittenLog) -> None:
    ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await log.signals(1, 2)
        await log.gap(1, 3)
        await log.signals(1, 2)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 4)
        (gap,) = subscriber.of(1).gaps
        assert (getattr(gap, "from").sequence, gap.to.sequence) == (3, 5)
        assert gap.reason == position_pb2.GAP_REASON_REJECTED
        assert subscriber.of(1).sequences == [1, 2, 6, 7]


async def test_a_new_epoch_is_told_with_what_was_lost(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await log.signals(1, 10)
        await log.epoch_start(1, 15)
        await log.signals(1, 2)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 12)
        (gap,) = subscriber.of(1).gaps
        assert (getattr(gap, "from").epoch, getattr(gap, "from").sequence) == (1, 11)
        assert (gap.to.epoch, gap.to.sequence) == (1, 15)
        assert (gap.resume_after.epoch, gap.resume_after.sequence) == (2, 15)
        assert subscriber.of(1).places[-2:] == [(2, 16), (2, 17)]
        # A state follows the messages that brought it about.
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_DEGRADED_GAP in subscriber.of(1).states)


async def test_a_snapshot_comes_first_and_then_everything_after_it(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    ledger.add_user("token", 1)
    await log.signals(1, 10)
    await log.snapshot(1)
    await log.signals(1, 5)
    async with fanout.subscribe("token", from_snapshot(1)) as subscriber:
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
        assert subscriber.of(1).snapshots[0].snapshot.as_of.sequence == 10
        assert subscriber.of(1).sequences == list(range(11, 16))
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_SYNCED in subscriber.of(1).states)
        assert subscriber.of(1).states[0] == pb.SUBSCRIPTION_STATE_RESYNCING


async def test_a_pause_reaches_the_live_stream_and_withheld_signals_are_named(
    fanout: Fanout, ledger: StandInLedger, log: WrittenLog
) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await log.signals(1, 2)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 2)
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_CLOSE_ONLY)
        await subscriber.until(lambda: pb.SUBSCRIPTION_STATE_PAUSED_CLOSE_ONLY in subscriber.of(1).states)
        await log.signals(1, 3)
        await subscriber.until(lambda: subscriber.of(1).held == (1, 5))
        assert len(subscriber.of(1).signals) == 2
        assert all(gap.reason == position_pb2.GAP_REASON_WITHHELD for gap in subscriber.of(1).gaps)
        await ledger.pause(user, 1, license_pb.PAUSE_SCOPE_UNSPECIFIED)
        await subscriber.until(lambda: len(subscriber.of(1).states) == 3)
        await log.signals(1, 2)
        await subscriber.until(lambda: subscriber.of(1).sequences == [1, 2, 6, 7])


async def test_a_cancelled_subscription_ends_the_stream(fanout: Fanout, ledger: StandInLedger) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await ledger.cancel(user, 1)
        error = await subscriber.ended()
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert subscriber.of(1).states[-1] == pb.SUBSCRIPTION_STATE_CANCELLED


async def test_a_revoked_license_ends_the_stream(fanout: Fanout, ledger: StandInLedger) -> None:
    user = ledger.add_user("token", 1)
    async with fanout.subscribe("token", from_now(1)) as subscriber:
        await subscriber.begun()
        await ledger.revoke(user)
        error = await subscriber.ended()
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
