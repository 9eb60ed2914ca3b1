"""What HTTP/2 and gRPC allow a peer, the edge understands; what it answers is what they ask for, byte by byte."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator

import grpc
import pytest
from h2.errors import ErrorCodes
from hpack import Decoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from services.common.h2grpc.messages import prefixed
from tests.integration.fanout_edge.attacker import (
    Attacker,
    attacking,
    body,
    headers,
    opening,
    sequences,
)
from tests.integration.fanout_edge.counting_service import (
    LICENSE,
    SERVICE_TOKEN,
    UNTIL_DRAINED,
    Edge,
    count,
    counting_edge,
)

OK, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAUTHENTICATED = (
    "0",
    "4",
    "8",
    "12",
    "13",
    "16",
)
ENDLESS = 1_000_000


async def until_running(edge: Edge, count: int) -> None:
    async with asyncio.timeout(20):
        while edge.counting.running != count:  # noqa: ASYNC110  # handlers set no event
            await asyncio.sleep(0.005)


# HPACK, HEADERS, CONTINUATION


async def test_headers_may_come_in_many_frames(peer: Attacker) -> None:
    block = peer.encoder.encode(headers())
    pieces = [block[start : start + 20] for start in range(0, len(block), 20)]
    await peer.send(HeadersFrame(1, data=pieces[0]))
    for piece in pieces[1:-1]:
        await peer.send(ContinuationFrame(1, data=piece))
    await peer.send(
        ContinuationFrame(1, data=pieces[-1], flags=["END_HEADERS"]),
        DataFrame(1, data=body(3), flags=["END_STREAM"]),
    )
    answer = await peer.answer(1)
    assert (answer.status, sequences(answer.messages)) == (OK, [1, 2, 3])


async def test_padding_priority_and_trailers_of_a_request_change_nothing(peer: Attacker) -> None:
    opened = HeadersFrame(
        1,
        data=peer.encoder.encode(headers()),
        flags=["END_HEADERS", "PADDED", "PRIORITY"],
        pad_length=100,
        depends_on=0,
        stream_weight=7,
    )
    trailers = HeadersFrame(1, data=peer.encoder.encode([("x", "y")]), flags=["END_HEADERS", "END_STREAM"])
    await peer.send(opened, DataFrame(1, data=body(2), flags=["PADDED"], pad_length=255), trailers)
    answer = await peer.answer(1)
    assert (answer.status, sequences(answer.messages)) == (OK, [1, 2])


async def test_a_peer_without_a_header_table_gets_headers_that_need_none(edge: Edge) -> None:
    async with attacking(edge.port, {SettingsFrame.HEADER_TABLE_SIZE: 0}) as peer:
        for stream_id in (1, 3, 5):
            # A decoder that has seen nothing before: nothing may refer to the table.
            peer.decoder = Decoder()
            peer.decoder.header_table_size = peer.decoder.max_allowed_table_size = 0
            await peer.send(peer.request(stream_id, 2))
            assert (await peer.answer(stream_id)).status == OK


async def test_header_tables_stay_the_same_on_both_sides_when_entries_are_evicted(edge: Edge) -> None:
    async with edge.channel(("grpc.max_metadata_size", 100_000)) as channel:
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        for number in range(100):
            metadata = (*LICENSE, (f"key-{number % 7}", f"{number}" * 700), ("known", "always"))
            stream = stub.Subscribe(pb.SubscribeRequest(client="1"), metadata=metadata)
            assert [response.signals.signals[0].sequence async for response in stream] == [1]


# PING, SETTINGS, GOAWAY, RST_STREAM


async def test_a_ping_is_answered_with_what_it_said_and_settings_are_acknowledged(peer: Attacker) -> None:
    await peer.send(peer.request(1, ENDLESS), PingFrame(0, opaque_data=b"what-say"))
    answer = await peer.until(PingFrame)
    assert isinstance(answer, PingFrame)
    assert (answer.opaque_data, set(answer.flags)) == (b"what-say", {"ACK"})
    assert any(isinstance(frame, SettingsFrame) and "ACK" in frame.flags for frame in peer.received)


async def test_a_peer_that_says_goodbye_still_reads_its_open_stream_and_then_the_connection_ends(
    peer: Attacker,
) -> None:
    masters = [pb.MasterStart(master_id=1)]
    slow = prefixed(pb.SubscribeRequest(client="200", masters=masters).SerializeToString())
    await peer.send(opening(peer, 1), DataFrame(1, data=slow, flags=["END_STREAM"]))
    await peer.data(1)
    await peer.send(GoAwayFrame(0, last_stream_id=0))
    answer = await peer.answer(1)
    assert (answer.status, sequences(answer.messages)) == (OK, list(range(1, 201)))
    async with asyncio.timeout(20):
        assert [frame async for frame in peer.frames() if isinstance(frame, GoAwayFrame)] == []


async def test_a_reset_ends_the_handler_and_the_connections_other_streams_go_on(
    edge: Edge, peer: Attacker
) -> None:
    until_drained = prefixed(pb.SubscribeRequest(client=UNTIL_DRAINED).SerializeToString())
    for stream_id in (1, 3):
        await peer.send(
            opening(peer, stream_id), DataFrame(stream_id, data=until_drained, flags=["END_STREAM"])
        )
    await until_running(edge, 2)
    await peer.send(RstStreamFrame(1, error_code=ErrorCodes.CANCEL))
    await until_running(edge, 1)
    await peer.send(peer.request(5, 4))
    assert sequences((await peer.answer(5)).messages) == [1, 2, 3, 4]
    assert edge.counting.running == 1


# gRPC


async def test_an_answer_is_headers_messages_and_trailers(peer: Attacker) -> None:
    await peer.send(peer.request(1, 1))
    first, last = (await peer.answer(1)).blocks
    assert first == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-accept-encoding": "identity",
    }
    assert last == {"grpc-status": OK}


async def test_a_refusal_is_one_block_with_the_status_and_its_details(peer: Attacker) -> None:
    block = peer.encoder.encode([header for header in headers() if header[0] != "authorization"])
    await peer.send(
        HeadersFrame(1, data=block, flags=["END_HEADERS"]), DataFrame(1, data=body(), flags=["END_STREAM"])
    )
    (only,) = (await peer.answer(1)).blocks
    assert (only[":status"], only["grpc-status"]) == ("200", UNAUTHENTICATED)
    assert only["grpc-message"]
    assert only["grpc-status-details-bin"]


@pytest.mark.parametrize("content_type", ["application/json", ""])
async def test_what_is_not_grpc_is_answered_as_http(peer: Attacker, content_type: str) -> None:
    changed = dict(headers()) | {"content-type": content_type}
    block = peer.encoder.encode(list(changed.items()))
    await peer.send(HeadersFrame(1, data=block, flags=["END_HEADERS", "END_STREAM"]))
    assert (await peer.answer(1)).blocks == [{":status": "415"}]


async def test_a_deadline_that_the_peer_does_not_look_after_is_the_servers_affair(
    edge: Edge, peer: Attacker
) -> None:
    until_drained = prefixed(pb.SubscribeRequest(client=UNTIL_DRAINED).SerializeToString())
    await peer.send(
        opening(peer, 1, grpc_timeout="100m"), DataFrame(1, data=until_drained, flags=["END_STREAM"])
    )
    answer = await peer.answer(1)
    assert (answer.status, sequences(answer.messages)) == (DEADLINE_EXCEEDED, [1])
    await until_running(edge, 0)


async def test_a_call_that_ends_within_a_message_ends_after_it(edge: Edge) -> None:
    """Clients report a stream that ends within a message as broken, whatever its status."""
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 10}) as peer:
        await peer.send(
            opening(peer, 1, grpc_timeout="100m"), DataFrame(1, data=body(ENDLESS), flags=["END_STREAM"])
        )
        assert await peer.data(10) == 10
        await until_running(edge, 0)
        assert 1 not in peer.ended
        await peer.send(WindowUpdateFrame(1, window_increment=10_000))
        answer = await peer.answer(1)
    assert (answer.status, sequences(answer.messages)) == (DEADLINE_EXCEEDED, [1])


async def test_a_call_that_ends_before_a_message_was_begun_ends_without_it(edge: Edge) -> None:
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as peer:
        await peer.send(
            opening(peer, 1, grpc_timeout="100m"), DataFrame(1, data=body(ENDLESS), flags=["END_STREAM"])
        )
        answer = await peer.answer(1)
    assert (answer.status, answer.data) == (DEADLINE_EXCEEDED, b"")


async def test_who_does_not_take_the_rest_of_a_last_message_is_reset_after_a_while() -> None:
    async with (
        counting_edge(http2_last_message_seconds_max=0.3) as edge,
        attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 10}) as peer,
    ):
        await peer.send(
            opening(peer, 1, grpc_timeout="100m"), DataFrame(1, data=body(ENDLESS), flags=["END_STREAM"])
        )
        # Taking a byte now and then does not put it off.
        taking = asyncio.create_task(take_slowly(peer))
        # gRPC's clients tell their user RESOURCE_EXHAUSTED for it.
        assert (await peer.reset(1)).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        taking.cancel()
        assert edge.counting.running == 0


async def take_slowly(peer: Attacker) -> None:
    while True:
        await peer.send(WindowUpdateFrame(1, window_increment=1))
        # The server looks at its connections once in a second or two; 14 bytes are to last longer than that.
        await asyncio.sleep(0.4)


async def test_an_encoding_that_is_not_spoken_is_refused_with_those_that_are(peer: Attacker) -> None:
    await peer.send(
        opening(peer, 1, grpc_encoding="gzip"), DataFrame(1, data=b"\1\0\0\0\1x", flags=["END_STREAM"])
    )
    (only,) = (await peer.answer(1)).blocks
    assert (only["grpc-status"], only["grpc-accept-encoding"]) == (UNIMPLEMENTED, "identity")


@pytest.mark.parametrize("encoding", [{}, {"grpc_encoding": "identity"}], ids=["none", "identity"])
async def test_a_message_that_says_it_is_compressed_with_nothing_is_a_broken_one(
    peer: Attacker, encoding: dict[str, str]
) -> None:
    await peer.send(opening(peer, 1, **encoding), DataFrame(1, data=b"\1\0\0\0\1x", flags=["END_STREAM"]))
    answer = await peer.answer(1)
    assert answer.status == INTERNAL
    assert "ompressed" in answer.blocks[-1]["grpc-message"]


async def test_a_message_that_would_be_too_large_is_refused_by_its_length_alone(peer: Attacker) -> None:
    await peer.send(opening(peer, 1), DataFrame(1, data=b"\0\xff\xff\xff\xff"))
    assert (await peer.answer(1)).status == RESOURCE_EXHAUSTED


# Many


async def test_more_calls_than_a_connection_may_carry_wait_for_their_turn_in_a_stock_client() -> None:
    async with counting_edge(http2_streams_per_connection_max=5) as edge, edge.channel() as channel:
        assert await asyncio.gather(*(count(channel, 30, slowly=True) for _ in range(40))) == [30] * 40


@pytest.mark.timeout(300)
async def test_thousands_of_connections_each_hold_an_open_stream(edge: Edge) -> None:
    until_drained = prefixed(pb.SubscribeRequest(client=UNTIL_DRAINED).SerializeToString())
    peers: list[Attacker] = []
    # Both ends of each connection are in this process.
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    contexts = [attacking(edge.port) for _ in range(min(2_000, (files_max - 200) // 2))]
    try:
        for context in contexts:
            peer = await context.__aenter__()
            peers.append(peer)
            await peer.send(opening(peer, 1), DataFrame(1, data=until_drained, flags=["END_STREAM"]))
        await until_running(edge, len(peers))
        for peer in peers:
            assert await peer.data(1)
        async with edge.channel() as channel:
            assert await count(channel, 100) == 100
    finally:
        await asyncio.gather(*(context.__aexit__(None, None, None) for context in contexts[: len(peers)]))
    await until_running(edge, 0)


async def test_health_reflection_acknowledgements_and_the_operators_rpcs_answer_on_the_same_connection(
    edge: Edge,
) -> None:
    async with edge.channel() as channel:
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        stream = stub.Subscribe(pb.SubscribeRequest(client=UNTIL_DRAINED), metadata=LICENSE)
        assert (await stream.read()).signals
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListStreams(pb.ListStreamsRequest(), metadata=LICENSE)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        service = (("authorization", f"Bearer {SERVICE_TOKEN}"),)
        assert (await stub.ListStreams(pb.ListStreamsRequest(), metadata=service)).next_page_token == "1"
        assert await stub.Acknowledge(pb.AcknowledgeRequest(), metadata=LICENSE) is not None
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x01"
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")

        async def list_services() -> AsyncIterator[bytes]:
            yield b"\x3a\x00"

        (listed,) = [answer async for answer in reflect(list_services())]
        assert b"execution.fanout.v1.FanoutService" in listed
        stream.cancel()
