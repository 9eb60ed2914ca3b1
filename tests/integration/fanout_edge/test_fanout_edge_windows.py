"""DATA and windows in both directions: no byte beyond them, none lost, and what one stream does stops no other."""

from __future__ import annotations

import pytest
from grpc_reflection.v1alpha import reflection_pb2
from h2.errors import ErrorCodes
from hyperframe.frame import (
    DataFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from services.common.h2grpc.messages import prefixed
from tests.integration.fanout_edge.attacker import Attacker, attacking, body, headers, opening, sequences
from tests.integration.fanout_edge.counting_service import LARGE_EVERY, Edge

OK = "0"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
A_QUESTION = prefixed(reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString())


async def test_a_request_may_come_byte_by_byte(peer: Attacker) -> None:
    await peer.send(opening(peer, 1))
    for byte in body(2):
        await peer.send(DataFrame(1, data=bytes([byte])))
    await peer.send(DataFrame(1, flags=["END_STREAM"]))
    assert (await peer.answer(1)).status == OK


async def test_padding_is_given_back_to_the_windows(peer: Attacker) -> None:
    for stream_id in (1, 3, 5):
        padded = DataFrame(stream_id, data=b"", flags=["PADDED"], pad_length=255)
        await peer.send(opening(peer, stream_id), *[padded] * 150)
        await peer.send(DataFrame(stream_id, data=body(1), flags=["END_STREAM"]))
        assert (await peer.answer(stream_id)).status == OK
    # More than the connection's first window came in all.
    assert 3 * 150 * 256 > 65_535


async def test_a_window_that_opens_a_few_bytes_at_a_time_lets_everything_through_in_order(edge: Edge) -> None:
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as peer:
        await peer.send(peer.request(1, 20))
        await peer.until(HeadersFrame)
        opened = 0
        while 1 not in peer.ended:
            opened += 7
            await peer.send(WindowUpdateFrame(1, window_increment=7), PingFrame(0, opaque_data=b"12345678"))
            # Its answer comes behind all that the server had to say to the window.
            await peer.until(PingFrame)
            assert len(peer.answers[1].data) <= opened
        answer = await peer.answer(1)
    assert (answer.status, sequences(answer.messages)) == (OK, list(range(1, 21)))


async def test_a_window_that_is_taken_back_is_heeded(edge: Edge) -> None:
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 1_000}) as peer:
        await peer.send(peer.request(1, 100))
        assert await peer.data(900) <= 1_000
        await peer.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
        # A ping's answer comes behind all that the server had to say before.
        await peer.send(PingFrame(0, opaque_data=b"12345678"))
        await peer.until(PingFrame)
        held = len(peer.answers[1].data)
        # The window is below nothing by what was sent: this only pays the debt.
        await peer.send(WindowUpdateFrame(1, window_increment=held), PingFrame(0, opaque_data=b"12345678"))
        await peer.until(PingFrame)
        assert len(peer.answers[1].data) == held
        await peer.send(WindowUpdateFrame(1, window_increment=100_000))
        assert sequences((await peer.answer(1)).messages) == list(range(1, 101))


async def test_a_window_that_settings_make_larger_is_used_behind_their_acknowledgement(edge: Edge) -> None:
    """A peer holds what it has not seen acknowledged against the window before: gRPC ends the stream."""
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 1_000}) as peer:
        await peer.send(peer.request(1, 100))
        while not (answer := peer.answers.get(1)) or len(answer.data) < 1_000:
            await peer.until(DataFrame)
        seen = len(peer.received)
        await peer.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 60_000}))
        assert sequences((await peer.answer(1)).messages) == list(range(1, 101))
        first = peer.received[seen]
        assert isinstance(first, SettingsFrame), first
        assert "ACK" in first.flags


async def test_streams_that_wait_for_the_connections_window_all_go_on_when_it_opens(edge: Edge) -> None:
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 2**30}) as peer:
        await peer.send(*(peer.request(stream_id, 700) for stream_id in (1, 3, 5)))
        assert await peer.data(65_535) == 65_535
        await peer.send(WindowUpdateFrame(0, window_increment=2**30))
        for stream_id in (1, 3, 5):
            answer = await peer.answer(stream_id)
            assert (answer.status, sequences(answer.messages)) == (OK, list(range(1, 701)))


async def test_no_frame_is_larger_than_the_peer_takes(edge: Edge) -> None:
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 2**30}) as peer:
        await peer.send(WindowUpdateFrame(0, window_increment=2**30), peer.request(1, LARGE_EVERY))
        answer = await peer.answer(1)
    lengths = [len(frame.data) for frame in peer.received if isinstance(frame, DataFrame)]
    assert max(lengths) == 16_384
    assert len(answer.messages[-1].SerializeToString()) > 16_384


# Windows and resets at once


@pytest.mark.parametrize(
    "opened",
    [
        WindowUpdateFrame(0, window_increment=10_000_000),
        SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 20_000_000}),
        WindowUpdateFrame(1, window_increment=10_000_000),
    ],
    ids=["connection", "settings", "stream"],
)
@pytest.mark.parametrize("first_window", [10, 10_000_000], ids=["streams wait", "connection waits"])
async def test_a_stream_that_is_reset_as_its_window_opens_stops_no_other(
    edge: Edge, opened: WindowUpdateFrame | SettingsFrame, first_window: int
) -> None:
    """All frames of one read have been seen when the first of them is acted on."""
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: first_window}) as peer:
        await peer.send(peer.request(1, 3_000), peer.request(3, 3_000))
        size = min(2 * first_window, 65_535)
        assert await peer.data(size) == size
        await peer.send(opened.serialize() + RstStreamFrame(1, error_code=ErrorCodes.CANCEL).serialize())
        await peer.send(
            WindowUpdateFrame(0, window_increment=10_000_000),
            WindowUpdateFrame(3, window_increment=10_000_000),
        )
        answer = await peer.answer(3)
    assert (answer.status, sequences(answer.messages)) == (OK, list(range(1, 3_001)))


async def test_what_a_reset_request_left_unread_is_given_back_to_the_connections_window(
    peer: Attacker,
) -> None:
    block = peer.encoder.encode(headers(REFLECTION))
    assert 20 * len(A_QUESTION * 800) > 65_535
    for stream_id in range(1, 41, 2):
        await peer.send(HeadersFrame(stream_id, data=block, flags=["END_HEADERS"]))
        await peer.send(PingFrame(0, opaque_data=b"12345678"))
        await peer.until(PingFrame)
        questions = DataFrame(stream_id, data=A_QUESTION * 800).serialize()
        await peer.send(questions + RstStreamFrame(stream_id, error_code=ErrorCodes.CANCEL).serialize())
        block = peer.encoder.encode(headers(REFLECTION))
    await peer.send(peer.request(41, 3))
    assert sequences((await peer.answer(41)).messages) == [1, 2, 3]


@pytest.mark.parametrize(
    "data",
    [b"\0\xff\xff\xff\xff" + b"x" * 12_000, b"\1\0\0\0\1" + b"x" * 12_000, prefixed(b"") * 2_400],
    ids=["too large", "compressed", "several"],
)
async def test_what_a_refused_request_said_is_given_back_to_the_connections_window(
    peer: Attacker, data: bytes
) -> None:
    for stream_id in range(1, 21, 2):
        await peer.send(opening(peer, stream_id), DataFrame(stream_id, data=data))
        assert (await peer.answer(stream_id)).status != OK
    await peer.send(peer.request(21, 3))
    assert sequences((await peer.answer(21)).messages) == [1, 2, 3]


async def test_a_message_behind_which_a_refused_one_comes_is_given_back_once(peer: Attacker) -> None:
    data = A_QUESTION + b"\1\0\0\0\1" + b"x" * 12_000
    for stream_id in range(1, 21, 2):
        block = peer.encoder.encode(headers(REFLECTION))
        await peer.send(
            HeadersFrame(stream_id, data=block, flags=["END_HEADERS"]), DataFrame(stream_id, data=data)
        )
        assert (await peer.answer(stream_id)).status != OK
    await peer.send(peer.request(21, 3))
    assert sequences((await peer.answer(21)).messages) == [1, 2, 3]
    opened = [
        frame for frame in peer.received if isinstance(frame, WindowUpdateFrame) and not frame.stream_id
    ]
    # What was sent and not more, or the window would grow for ever.
    assert sum(frame.window_increment for frame in opened) <= 10 * len(data)
