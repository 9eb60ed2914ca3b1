"""Each attack is answered by GOAWAY or RST_STREAM, is counted, and the streams of others go on without a hole."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import grpc
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from prometheus_client import REGISTRY

from services.common.h2grpc import Http2Settings
from tests.integration.fanout_edge.attacker import (
    PREFACE,
    Attacker,
    attacking,
    connected,
    headers,
    hung_up,
    repeated,
)
from tests.integration.fanout_edge.counting_service import Edge, count, counting_edge
from tests.waiting import until


def abuse(limit: str) -> float:
    return REGISTRY.get_sample_value("http2_abuse_total", {"limit": limit}) or 0.0


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("http2_streams_refused_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("limit", "frame"),
    [
        ("settings", SettingsFrame(0, settings={4: 65_535})),
        ("settings", SettingsFrame(0, flags=["ACK"])),
        ("ping", PingFrame(0, opaque_data=b"ping-pon")),
        ("ping", PingFrame(0, opaque_data=b"ping-pon", flags=["ACK"])),
        ("priority", PriorityFrame(1, depends_on=0, stream_weight=3)),
        ("window_update", WindowUpdateFrame(0, window_increment=1)),
        ("empty_data", DataFrame(1)),
    ],
)
@pytest.mark.usefixtures("others")
async def test_a_flood_is_answered_by_goaway(edge: Edge, limit: str, frame: Frame) -> None:
    before = abuse(limit)
    async with attacking(edge.port) as attacker:
        await attacker.send(attacker.request(1, is_complete=False))
        sending = asyncio.create_task(attacker.send(*repeated(frame, 20_000)))
        assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        await sending
    assert abuse(limit) == before + 1


@pytest.mark.usefixtures("others")
async def test_rapid_reset_is_answered_by_goaway(edge: Edge) -> None:
    before = abuse("rapid_reset")
    async with attacking(edge.port) as attacker:
        for stream_id in range(1, 801, 2):
            await attacker.send(
                attacker.request(stream_id, 1_000_000), RstStreamFrame(stream_id, error_code=8)
            )
        assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert abuse("rapid_reset") == before + 1
    await until(lambda: edge.counting.running <= 3)


@pytest.mark.parametrize("is_secret", [False, True], ids=["plaintext", "TLS"])
async def test_many_requests_at_once_do_not_keep_others_waiting(tmp_path: Path, is_secret: bool) -> None:
    """What a peer has sent is read in turns with what others have."""
    async with (
        counting_edge(tmp_path if is_secret else None, http2_read_bytes_max=1_024) as edge,
        connected(edge) as attacker,
        connected(edge) as other,
    ):
        for peer in (attacker, other):
            await peer.send(PREFACE, SettingsFrame(0), PingFrame(0, opaque_data=b"ready?--"))
            await peer.until(PingFrame)
        before = refused("unimplemented")
        fields = headers("/no.Such/Method")
        requests = [
            HeadersFrame(
                stream_id, data=attacker.encoder.encode(fields), flags=["END_HEADERS", "END_STREAM"]
            ).serialize()
            for stream_id in range(1, 3_801, 2)
        ]
        attacker.writer.write(b"".join(requests))
        await other.send(other.request(1, 1))
        assert (await other.answer(1)).status == "0"
        assert refused("unimplemented") < before + len(requests)
        assert (await attacker.answer(3_799)).status == "12"
        assert refused("unimplemented") == before + len(requests)


@pytest.mark.usefixtures("others")
async def test_endless_continuations_are_answered_by_goaway(edge: Edge) -> None:
    before = abuse("continuation")
    async with attacking(edge.port) as attacker:
        await attacker.send(HeadersFrame(1, data=attacker.encoder.encode(headers())))
        await attacker.send(*repeated(ContinuationFrame(1), 1_000))
        assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert abuse("continuation") == before + 1


@pytest.mark.usefixtures("others")
async def test_a_header_bomb_is_answered_by_goaway(edge: Edge) -> None:
    """A few bytes on the wire, each an index of a long entry of the table."""
    before = abuse("header_list")
    async with attacking(edge.port) as attacker:
        block = attacker.encoder.encode([*headers(), ("bomb", "b" * 3_000)])
        index = attacker.encoder.encode([("bomb", "b" * 3_000)])
        assert len(index) < 3
        await attacker.send(HeadersFrame(1, data=block + index * 1_000, flags=["END_HEADERS"]))
        assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert abuse("header_list") == before + 1


async def test_metadata_a_little_too_large_costs_the_call_and_not_the_connection(edge: Edge) -> None:
    async with edge.channel(("grpc.max_metadata_size", 100_000)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/C")(b"", metadata=(("key", "x" * 20_000),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await count(channel, 3) == 3


async def test_a_stream_whose_window_overflows_is_reset_and_the_connection_goes_on(edge: Edge) -> None:
    async with attacking(edge.port, {4: 0}) as attacker:
        await attacker.send(attacker.request(1, 10), WindowUpdateFrame(1, window_increment=2**31 - 1))
        await attacker.send(WindowUpdateFrame(1, window_increment=2**31 - 1))
        assert (await attacker.reset(1)).error_code == ErrorCodes.FLOW_CONTROL_ERROR
        await attacker.send(attacker.request(3, 10), WindowUpdateFrame(3, window_increment=1_000))
        assert await attacker.data(200) >= 200


async def test_streams_beyond_the_limit_are_refused_one_by_one() -> None:
    async with counting_edge(http2_streams_per_connection_max=5) as edge, attacking(edge.port) as attacker:
        before = refused("streams")
        for stream_id in range(1, 13, 2):
            await attacker.send(attacker.request(stream_id, is_complete=False))
        assert (await attacker.reset(11)).error_code == ErrorCodes.REFUSED_STREAM
        assert refused("streams") == before + 1


async def test_a_storm_of_connections_is_accepted_in_portions(edge: Edge) -> None:
    """Between them the streams that are open have their turn."""

    def accepted() -> float:
        return REGISTRY.get_sample_value("http2_connections_accepted_total") or 0.0

    with ExitStack() as stack:
        before = last = accepted()
        for _ in range(500):
            stack.enter_context(socket.create_connection(("127.0.0.1", edge.port)))
        async with asyncio.timeout(20):
            while last < before + 500:
                await asyncio.sleep(0)
                assert accepted() - last <= 64
                last = accepted()


async def test_connections_beyond_the_limit_are_told_to_go() -> None:
    async with counting_edge(http2_connections_max=2) as edge, AsyncExitStack() as stack:
        first = [await stack.enter_async_context(attacking(edge.port)) for _ in range(2)]
        third = await stack.enter_async_context(attacking(edge.port))
        assert (await third.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        await first[0].send(first[0].request(1, 10))
        assert await first[0].data(200) >= 200


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 50051\r\n" + PREFACE,
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12) + PREFACE,
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(32),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\0",
    ],
    ids=["HTTP/1.1", "almost", "h2c upgrade", "PROXY 1", "PROXY 2", "TLS", "SSH", "zero"],
)
@pytest.mark.usefixtures("others")
async def test_other_protocols_are_hung_up_on(edge: Edge, said: bytes) -> None:
    before = abuse("preface")
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(said)
    await hung_up(reader)
    writer.close()
    assert abuse("preface") == before + 1


async def test_who_never_says_hello_is_dropped() -> None:
    async with counting_edge(http2_handshake_seconds_max=0.2) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        await hung_up(reader)
        writer.close()


async def test_a_request_that_never_ends_is_given_up() -> None:
    async with counting_edge(http2_request_seconds_max=0.2) as edge, attacking(edge.port) as attacker:
        await attacker.send(attacker.request(1, is_complete=False))
        assert (await attacker.reset(1)).error_code == ErrorCodes.NO_ERROR
        assert any(isinstance(frame, HeadersFrame) for frame in attacker.received)


async def test_a_dead_peer_is_noticed_by_its_silence() -> None:
    async with (
        counting_edge(http2_keepalive_seconds=0.1, http2_keepalive_timeout_seconds=0.3) as edge,
        attacking(edge.port) as dead,
        edge.channel() as channel,
    ):
        await dead.send(dead.request(1, 1))
        # Others answer pings and stay.
        assert await count(channel, 1_500, slowly=True) == 1_500
        await hung_up(dead.reader)


async def starve(
    edge: Edge, peers: int, open_one: Callable[[Attacker], Awaitable[None]], **options: object
) -> float:
    """Bytes that each of so many bad readers costs the server."""
    async with AsyncExitStack() as stack:
        attackers = [await stack.enter_async_context(attacking(edge.port, **options)) for _ in range(peers)]
        tracemalloc.start()
        for attacker in attackers:
            await open_one(attacker)
        await until(lambda: edge.counting.running >= peers)
        await asyncio.sleep(0.5)
        cost = tracemalloc.get_traced_memory()[0] / peers
        tracemalloc.stop()
    return cost


@pytest.mark.usefixtures("others")
async def test_a_peer_that_never_opens_its_window_costs_little(edge: Edge) -> None:
    async def open_one(attacker: Attacker) -> None:
        await attacker.send(attacker.request(1, 1_000_000))

    assert await starve(edge, 30, open_one, settings={4: 0}) < 100 * 1_024


@pytest.mark.usefixtures("others")
async def test_a_peer_that_opens_its_window_and_never_reads_costs_little(edge: Edge) -> None:
    async def open_one(attacker: Attacker) -> None:
        attacker.writer.transport.pause_reading()
        await attacker.send(WindowUpdateFrame(0, window_increment=2**30), attacker.request(1, 1_000_000))

    cost = await starve(edge, 20, open_one, settings={4: 2**30}, receive_buffer_bytes=4_096)
    # The kernel keeps twice what it was told, at most.
    assert cost + 2 * Http2Settings.model_fields["http2_send_buffer_bytes"].default < 200 * 1_024


async def test_a_peer_that_pings_and_never_reads_is_cut_off() -> None:
    options = {
        "http2_output_bytes_high": 8_192,
        "http2_output_bytes_max": 16_384,
        "http2_send_buffer_bytes": 4_096,
    }
    async with counting_edge(**options) as edge:
        before = abuse("output")
        async with attacking(edge.port, {4: 2**30}, receive_buffer_bytes=4_096) as attacker:
            attacker.writer.transport.pause_reading()
            await attacker.send(WindowUpdateFrame(0, window_increment=2**30), attacker.request(1, 1_000_000))
            await until(lambda: edge.counting.running)
            block = attacker.encoder.encode([("x", "y")])
            for stream_id in range(3, 1_601, 2):
                await attacker.send(HeadersFrame(stream_id, data=block, flags=["END_HEADERS"]))
            for stream_id in range(1_603, 2_401, 2):
                await attacker.send(attacker.request(stream_id, is_complete=True))
            await until(lambda: abuse("output") > before or not edge.counting.running)
