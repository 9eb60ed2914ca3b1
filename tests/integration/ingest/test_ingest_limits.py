"""Peers that are too many, too large, too slow or too silent; each is told why, counted, and costs nobody else."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import REGISTRY

from execution.common.v1 import signal_pb2
from execution.ingest.v1 import frames_pb2 as pb
from services.common.clock import now_us
from services.ingest.app import Running
from tests.integration.ingest.cuts import cut, rejected
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, framed


async def test_a_frame_that_is_too_large_is_refused_at_its_length(ingest: Running):
    before = rejected("TOO_LARGE")
    async with logged_in(ingest.port) as master:
        master.send_signals(1)
        await master.acknowledged_up_to(1)
        master.send_bytes((65_537).to_bytes(4, "big") + b"x" * 1_000)
        (frame,) = await master.ended()
        assert frame.reject.code == pb.REJECT_CODE_TOO_LARGE
        assert frame.reject.expected_sequence == 2
    assert rejected("TOO_LARGE") == before + 1


async def test_the_largest_frame_is_taken(ingest: Running):
    async with logged_in(ingest.port) as master:
        one = master.keys.signals(1, [])
        room = 65_536 - 100
        frame = pb.ClientFrame(bye=pb.Bye(reason="x" * room))
        assert one.ByteSize() < frame.ByteSize() <= 65_536
        master.send(frame)
        assert [frame.WhichOneof("frame") for frame in await master.ended()] == ["bye"]


async def test_a_stranger_may_send_only_a_little(redis_url: str, ledger: StandInLedger):
    before = cut("unauthenticated_bytes")
    async with (
        ingest_running(redis_url, ledger.port, unauthenticated_bytes_max=1_024) as ingest,
        connected(ingest.port) as stranger,
    ):
        stranger.send_bytes((60_000).to_bytes(4, "big") + b"x" * 2_000)
        (frame,) = await stranger.ended()
        assert frame.reject.code == pb.REJECT_CODE_TOO_LARGE
    assert cut("unauthenticated_bytes") == before + 1


async def test_a_stranger_may_stay_only_a_moment(redis_url: str, ledger: StandInLedger):
    before = cut("unauthenticated_seconds")
    async with (
        ingest_running(redis_url, ledger.port, unauthenticated_seconds_max=0.2) as ingest,
        connected(ingest.port) as silent,
        connected(ingest.port) as half_way,
    ):
        await half_way.greet()
        for one in (silent, half_way):
            (frame,) = await one.ended()
            assert frame.reject.code == pb.REJECT_CODE_UNAUTHENTICATED
        await until(lambda: ingest.front_door.connections == 0)
    assert cut("unauthenticated_seconds") == before + 2


async def test_a_byte_now_and_then_does_not_hold_a_connection(redis_url: str, ledger: StandInLedger):
    before = cut("slow_frame")
    async with (
        ingest_running(redis_url, ledger.port, frame_seconds_max=0.3, heartbeat_seconds=1) as ingest,
        logged_in(ingest.port) as master,
    ):
        frame = framed(master.keys.signals(1, []).SerializeToString())
        ending = asyncio.create_task(master.ended())
        for byte in frame[:-1]:
            if ending.done():
                break
            master.send_bytes(bytes([byte]))
            await asyncio.sleep(0.02)
        frames = await ending
        assert frames[-1].reject.code == pb.REJECT_CODE_MALFORMED
    assert cut("slow_frame") == before + 1


async def test_a_frame_is_not_slow_while_we_do_not_read(ingest: Running):
    """What the log's being behind costs is not the client's fault."""
    async with logged_in(ingest.port) as master:
        (connection,) = ingest.front_door._connections.places.all()
        frame = framed(pb.ClientFrame(ping=pb.Ping(id=5)).SerializeToString())
        master.send_bytes(frame[:3])
        await until(lambda: connection._decoder.pending_bytes == 3)
        begun_at = time.monotonic()
        connection.pause("held")
        await asyncio.sleep(0.05)
        connection.resume("held")
        # The rest may only be read in a later turn of the loop; until then the time begins anew.
        connection.tick(now_us(), begun_at + ingest.door.settings.frame_seconds_max + 0.02)
        master.send_bytes(frame[3:])
        assert (await master.expect("pong")).pong.id == 5


async def test_a_session_in_which_nothing_is_heard_is_ended(redis_url: str, ledger: StandInLedger):
    before = cut("idle")
    async with (
        ingest_running(redis_url, ledger.port, heartbeat_seconds=0.1, silent_heartbeats_max=3) as ingest,
        logged_in(ingest.port) as master,
    ):
        kinds = []
        while (frame := await master.receive_any()) is not None:
            kinds.append(frame.WhichOneof("frame"))
        assert kinds[-1] == "bye"
        assert set(kinds[:-1]) == {"ping"}
    assert cut("idle") == before + 1


async def test_a_session_that_answers_pings_lives_on(redis_url: str, ledger: StandInLedger):
    async with (
        ingest_running(redis_url, ledger.port, heartbeat_seconds=0.1, silent_heartbeats_max=3) as ingest,
        logged_in(ingest.port) as master,
    ):
        for _ in range(10):
            frame = await master.receive_any()
            assert frame.WhichOneof("frame") == "ping"
            master.send(pb.ClientFrame(pong=pb.Pong(id=frame.ping.id)))
        master.send_signals(1)
        await master.acknowledged_up_to(1)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"connections_per_address_max": 3}, "address"),
        ({"connections_max": 3}, "connections"),
        ({"unauthenticated_connections_max": 3}, "unauthenticated"),
    ],
)
async def test_too_many_connections_are_told_so(
    redis_url: str, ledger: StandInLedger, limit: dict[str, int], reason: str
):
    before = cut(reason)
    async with (
        ingest_running(redis_url, ledger.port, **limit) as ingest,
        connected(ingest.port) as one,
        connected(ingest.port) as two,
        connected(ingest.port) as three,
    ):
        await three.greet()
        async with connected(ingest.port) as fourth:
            (frame,) = await fourth.ended()
            assert frame.reject.code == pb.REJECT_CODE_TOO_MANY_CONNECTIONS
            assert frame.reject.retryable
        assert cut(reason) == before + 1
        await one.close()
        await two.close()
        await until(lambda: ingest.front_door.connections == 1)
        async with logged_in(ingest.port):
            pass


async def test_a_peer_that_does_not_read_is_cut_and_others_do_not_notice(
    redis_url: str, ledger: StandInLedger
):
    ledger.add(Credentials(master_id=2))
    before = cut("slow_reader")
    async with (
        ingest_running(
            redis_url,
            ledger.port,
            output_bytes_max=16_384,
            output_seconds_max=0.3,
            unauthenticated_seconds_max=2,
        ) as ingest,
        connected(ingest.port, limit=1_024) as slow,
        logged_in(ingest.port, Credentials(master_id=2)) as other,
    ):
        await slow.log_in()
        slow.reader._transport.pause_reading()
        ping = framed(pb.ClientFrame(ping=pb.Ping(id=2**60)).SerializeToString())
        sequence = 0
        while cut("slow_reader") == before:
            if not slow.writer.transport.is_closing() and (
                slow.writer.transport.get_write_buffer_size() < 1_000_000
            ):
                slow.send_bytes(ping * 10_000)
            sequence += 1
            other.send_signals(sequence)
            await other.acknowledged_up_to(sequence)
            await asyncio.sleep(0.01)
        await until(lambda: ingest.front_door.connections == 1)


async def test_no_more_than_the_output_buffer_waits_for_a_peer_that_does_not_read(
    redis_url: str, ledger: StandInLedger
):
    """Reading from it stops long before; this is for what is sent to it unasked."""
    before = cut("slow_reader")
    async with (
        ingest_running(redis_url, ledger.port, output_bytes_max=65_536, output_seconds_max=300) as ingest,
        connected(ingest.port, limit=1_024) as slow,
    ):
        await slow.log_in()
        slow.reader._transport.pause_reading()
        port = ingest.door.sessions.find(1).port
        request = pb.ServerFrame(snapshot_request=pb.SnapshotRequest(reason="x" * 10_000))
        written = 0
        while cut("slow_reader") == before:
            port.write([request.SerializeToString()])
            written += 10_000
            # Never mind what the kernel takes: the process itself keeps no more than it may.
            assert port._transport.get_write_buffer_size() <= 65_536 + 11_000
            assert written < 100_000_000
            await asyncio.sleep(0)
        await until(lambda: ingest.front_door.connections == 0)


async def test_a_slow_log_holds_masters_back_instead_of_filling_memory(redis_url: str, ledger: StandInLedger):
    before = REGISTRY.get_sample_value("ingest_backpressure_pauses_total")
    async with (
        ingest_running(
            redis_url,
            ledger.port,
            outstanding_bytes_max=131_072,
            session_outstanding_bytes_max=65_536,
            flush_bytes_max=65_536,
        ) as ingest,
        logged_in(ingest.port) as master,
    ):
        count, batch = 4_000, 40
        for first in range(1, count, batch):
            master.send_signals(first, batch, comment="x" * 60)
        await master.acknowledged_up_to(count)
    assert REGISTRY.get_sample_value("ingest_backpressure_pauses_total") > before


async def test_a_master_may_not_send_faster_than_its_rate(redis_url: str, ledger: StandInLedger):
    ledger.signals_per_second_max[1] = 10
    async with ingest_running(redis_url, ledger.port, rate_burst_seconds=1) as ingest:
        async with logged_in(ingest.port) as master:
            assert master.welcome.signals_per_second_max == 10
            master.send_signals(1, 12)
            reject = await master.rejected_with(pb.REJECT_CODE_RATE_LIMITED)
            assert reject.sequence == 11
        # A new session does not begin with a new allowance.
        async with logged_in(ingest.port) as master:
            master.send_signals(11, 5)
            reject = await master.rejected_with(pb.REJECT_CODE_RATE_LIMITED)
            assert reject.sequence <= 14


async def test_closes_are_taken_at_any_rate(redis_url: str, ledger: StandInLedger):
    ledger.signals_per_second_max[1] = 10
    before = rejected("RATE_LIMITED")
    async with (
        ingest_running(redis_url, ledger.port, rate_burst_seconds=1) as ingest,
        logged_in(ingest.port) as master,
    ):
        master.send_signals(1, 300, kind=signal_pb2.SIGNAL_KIND_CLOSE)
        await master.acknowledged_up_to(300)
        # They did not use up what the others may have, either.
        master.send_signals(301, 12)
        reject = await master.rejected_with(pb.REJECT_CODE_RATE_LIMITED)
        assert reject.sequence == 311
        assert reject.retry_after_ms > 0
        master.send_signals(311, kind=signal_pb2.SIGNAL_KIND_CLOSE)
        await master.acknowledged_up_to(311)
    assert rejected("RATE_LIMITED") == before + 1


async def test_hundreds_of_silent_connections_do_not_disturb_a_master(redis_url: str, ledger: StandInLedger):
    async with (
        ingest_running(
            redis_url, ledger.port, connections_per_address_max=1_000, unauthenticated_seconds_max=300
        ) as ingest,
        logged_in(ingest.port) as master,
    ):
        silent = [await asyncio.open_connection("127.0.0.1", ingest.port) for _ in range(300)]
        try:
            for sequence in range(1, 50):
                master.send_signals(sequence)
                await master.acknowledged_up_to(sequence)
            assert ingest.front_door.connections == 301
        finally:
            for _, writer in silent:
                writer.close()
