"""One master, two logins: in one process, in two, one after the other and at once."""

from __future__ import annotations

import asyncio

from execution.ingest.v1 import frames_pb2 as pb
from services.common.stream import Redis
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running, read_log, signals_in
from tests.integration.ingest.raw_master import connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.steady_master import check_log, steady
from tests.unit.ingest.signing import Credentials


async def test_a_second_login_fences_the_first_at_once(ingest: Running):
    async with logged_in(ingest.port) as first, logged_in(ingest.port) as second:
        assert second.welcome.session_epoch > first.welcome.session_epoch
        (frame,) = await first.ended()
        assert frame.reject.code == pb.REJECT_CODE_FENCED
        second.send_signals(1)
        await second.acknowledged_up_to(1)


async def test_a_login_at_another_process_fences_the_session_here(
    ingest: Running, redis_url: str, ledger: StandInLedger, log_client: Redis
):
    async with ingest_running(redis_url, ledger.port) as other, logged_in(ingest.port) as first:
        first.send_signals(1, 2)
        await first.acknowledged_up_to(2)
        async with logged_in(other.port) as second:
            assert second.welcome.position.sequence == 2
            first.send_signals(3)
            reject = await first.rejected_with(pb.REJECT_CODE_FENCED)
            assert reject.sequence == 3
            assert await first.receive() is None
            second.send_signals(3, 2)
            await second.acknowledged_up_to(4)
        assert list(signals_in(await read_log(log_client))) == [1, 2, 3, 4]


async def test_the_log_stays_dense_while_one_master_works_through_two_processes(
    ingest: Running, redis_url: str, ledger: StandInLedger, log_client: Redis
):
    async with ingest_running(redis_url, ledger.port) as other:
        ports = [ingest.port, other.port]
        async with steady(lambda: ports[0], Credentials()) as master:
            for _ in range(6):
                await master.acknowledges(40)
                ports.reverse()
                async with logged_in(ports[0]):
                    # An impostor with the same key takes over for a moment.
                    await asyncio.sleep(0.01)
    assert check_log(await read_log(log_client), master) == []
    assert master.logins > 1


async def test_more_connections_of_a_master_than_allowed_are_refused(redis_url: str, ledger: StandInLedger):
    async with (
        ingest_running(redis_url, ledger.port, connections_per_master_max=2, linger_seconds=30) as ingest,
        logged_in(ingest.port) as first,
        logged_in(ingest.port) as second,
    ):
        # The first is fenced and has gone; what counts are those that are still at work.
        assert (await first.ended())[-1].reject.code == pb.REJECT_CODE_FENCED
        async with logged_in(ingest.port):
            assert (await second.ended())[-1].reject.code == pb.REJECT_CODE_FENCED
        async with connected(ingest.port) as stranger:
            await stranger.greet()
            assert ingest.door.sessions.count(1, 0) <= 1
