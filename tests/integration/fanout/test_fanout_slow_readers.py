"""Readers that fall behind: by which limit, what they are told, and that those who are live never wait for them."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from ecp_client.copying import CopySettings
from ecp_client.subscriber import Start, Subscriber, SubscriberSettings
from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from mesh.demo.cable import cable
from services.common import rpc
from services.common.errors import ServiceError
from services.fanout import metrics
from tests.integration.fanout.fanout_service import (
    WAIT_SECONDS,
    Fanout,
    after,
    fanout_running,
    fanout_settings,
    from_now,
    metadata,
)
from tests.integration.fanout.stand_in_ledger import StandInLedger
from tests.integration.fanout.written_log import WrittenLog

FAR = {"lag_signals_max": 10**9, "lag_bytes_max": 10**12, "lag_seconds_max": 10**6}
LIMITS = {
    "signals": {"lag_signals_max": 3_000},
    "bytes": {"lag_bytes_max": 300_000},
    "seconds": {"lag_seconds_max": 2.0},
}


def counted(action: str, limit: str) -> float:
    return metrics.SLOW_READERS.labels(action, limit)._value.get()


class Stalled:
    """A reader that takes nothing until it is told to."""

    def __init__(self, fanout: Fanout, token: str, start: pb.MasterStart) -> None:
        options = [
            ("grpc.http2.lookahead_bytes", 65_536),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.channel = grpc.aio.insecure_channel(fanout.target, options)
        self.call = fanout_service_pb2_grpc.FanoutServiceStub(self.channel).Subscribe(
            pb.SubscribeRequest(masters=[start]), metadata=metadata(token)
        )
        self.sequences: list[int] = []

    async def __aenter__(self) -> Stalled:
        await self.call.wait_for_connection()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self.channel.close()

    async def reads_on(self) -> ServiceError:
        """Reads what there is, up to the end that it was given."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                async for response in self.call:
                    self.sequences += [one.sequence for one in response.signals.signals]
        except grpc.aio.AioRpcError as error:
            return rpc.error_from_rpc(error)
        raise AssertionError("the stream ended well")


async def until_ended(fanout: Fanout, streams: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while len(fanout.running.hub) > streams:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("limit", sorted(LIMITS))
async def test_a_reader_beyond_a_limit_is_told_which_and_where_it_can_resume(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, limit: str
) -> None:
    ledger.add_user("slow", 1)
    warned, ended = counted("warned", limit), counted("ended", limit)
    loaded = fanout_settings(redis_url, ledger, **{**FAR, **LIMITS[limit]})
    async with fanout_running(loaded) as fanout, Stalled(fanout, "slow", from_now(1)) as reader:
        while len(fanout.running.hub) and counted("ended", limit) == ended:
            await log.signals(1, 500, per_entry=500, comment="x" * 60)
            await asyncio.sleep(0.02)
        await until_ended(fanout, 0)
        assert counted("ended", limit) == ended + 1
        if limit == "seconds":
            assert counted("warned", limit) == warned + 1
        error = await reader.reads_on()
        assert (error.reason, error.metadata["limit"]) == ("SLOW_READER", limit)
        last = reader.sequences[-1] if reader.sequences else 0
        assert reader.sequences == list(range(1, last + 1))
        master, epoch, sequence = map(int, error.metadata["positions"].split(":"))
        assert (master, epoch) == (1, 1)
        # What was handed over counts as sent; what of it was received, the reader knows best.
        assert sequence >= last
        head = log.heads[1][1]
        async with fanout.subscribe("slow", after(1, 1, last)) as subscriber:
            await subscriber.until(lambda: subscriber.of(1).held == (1, head))
            assert subscriber.of(1).sequences == list(range(last + 1, head + 1))


async def test_one_who_stops_acknowledging_is_ended_and_one_who_never_does_is_not(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    ledger.add_user("token", 1)
    ledger.add_user("silent", 1)
    limit = "unacknowledged_seconds"
    warned = counted("warned", limit)
    loaded = fanout_settings(redis_url, ledger, unacknowledged_seconds_max=1.0)
    async with fanout_running(loaded) as fanout, fanout.subscribe("silent", from_now(1)) as silent:
        subscriber = fanout.subscribe("token", from_now(1))
        for one in (subscriber, silent):
            await one.begun()
        await log.signals(1, 5)
        await subscriber.until(lambda: len(subscriber.of(1).signals) == 5)
        request = pb.AcknowledgeRequest(
            positions=[
                position_pb2.MasterPosition(
                    master_id=1, position=position_pb2.StreamPosition(epoch=1, sequence=3)
                )
            ]
        )
        await fanout.stub.Acknowledge(request, metadata=metadata("token"))
        error = rpc.error_from_rpc(await subscriber.ended())
        assert (error.reason, error.metadata["limit"]) == ("SLOW_READER", limit)
        assert error.metadata["positions"] == "1:1:5"
        assert counted("warned", limit) == warned + 1
        await log.signals(1, 1)
        await silent.until(lambda: len(silent.of(1).signals) == 6)


async def test_late_joiners_wait_for_a_slow_archive_few_at_a_time_and_nobody_with_them(
    redis_url: str, log: WrittenLog, ledger: StandInLedger
) -> None:
    """The archive answers nothing until the test says so; whoever is live does not notice."""
    ledger.add_user("token", 1)
    ledger.add_user("late", 1)
    await log.signals(1, 400, per_entry=20)
    ledger.archive_signals(1, 1, 400)
    ledger.archive_open.clear()
    await log.trim()
    loaded = fanout_settings(
        redis_url,
        ledger,
        fill_entries_max=0,
        ring_records_per_master_max=16,
        backlog_reads_max=2,
        streams_per_user_max=40,
    )
    async with fanout_running(loaded) as fanout, fanout.subscribe("token", from_now(1)) as live:
        await live.begun()
        late = [fanout.subscribe("late", after(1, 1, 10 * number)) for number in range(1, 21)]
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while ledger.archive_reads < 2:  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.01)
            for _ in range(20):
                await log.signals(1, 5, per_entry=5)
            await live.until(lambda: live.of(1).sequences == list(range(401, 501)))
            assert (ledger.archive_reads, ledger.archive_reads_max) == (2, 2)
            ledger.archive_open.set()
            for number, one in enumerate(late, 1):
                wanted = list(range(10 * number + 1, 501))
                await one.until(lambda one=one, wanted=wanted: one.of(1).sequences == wanted)
            assert ledger.archive_reads_max == 2
        finally:
            for one in late:
                await one.__aexit__()


async def test_a_subscriber_whose_line_is_dead_is_let_go_and_goes_on_where_it_was(
    redis_url: str, log: WrittenLog, ledger: StandInLedger, edge: str
) -> None:
    """No end of the connection reaches either side: the fan-out pings in vain, the client hears nothing any more."""
    if edge == "aio":
        pytest.skip("how often grpc.aio pings is not a setting")
    ledger.add_user("token", 1)
    received: list[int] = []
    loaded = fanout_settings(
        redis_url, ledger, http2_keepalive_seconds=0.3, http2_keepalive_timeout_seconds=0.3
    )
    async with fanout_running(loaded) as fanout, cable(fanout.target) as line:
        settings = SubscriberSettings(
            addresses=[f"127.0.0.1:{line.port}"],
            license_token="token",
            plaintext=True,
            masters={1: CopySettings()},
            start=Start.BEGINNING,
            silence_seconds_max=1.5,
            reconnect_seconds_max=0.2,
        )
        subscriber = Subscriber(
            settings, on_batch=lambda batch: received.extend(one.sequence for one in batch.signals)
        )
        async with subscriber:
            await log.signals(1, 5)
            await subscriber.wait_position(1, 5, timeout_seconds=WAIT_SECONDS)
            line.stall()
            await log.signals(1, 5)
            await until_ended(fanout, 0)
            line.mend()
            await subscriber.wait_position(1, 10, timeout_seconds=WAIT_SECONDS)
        assert received == list(range(1, 11))
        assert subscriber.stats.streams == 2
