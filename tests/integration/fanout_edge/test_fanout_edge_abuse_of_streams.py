"""Attacks by way of streams: made resets, endless and enormous requests, windows that never open; others go on."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest
from grpc_reflection.v1alpha import reflection_pb2
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from prometheus_client import REGISTRY

from services.common.h2grpc.messages import prefixed
from tests.integration.fanout_edge.attacker import attacking, headers, hung_up, repeated
from tests.integration.fanout_edge.conformance import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    block,
    number,
    opened,
    raw,
    requested,
)
from tests.integration.fanout_edge.counting_service import Edge, count, counting_edge
from tests.waiting import until

ENDLESS = 1_000_000
RESOURCE_EXHAUSTED = "8"


class RawFrame(Frame):
    """A frame of a kind that nobody knows."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._raw = data

    def serialize(self) -> bytes:
        return self._raw


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with counting_edge(http2_stall_seconds_max=0.4, http2_request_bytes_max=200_000) as edge:
        yield edge


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def overflow(stream_id: int) -> list[Frame]:
    return [WindowUpdateFrame(stream_id, window_increment=2**31 - 1)] * 2


def data_after_the_end(stream_id: int) -> list[Frame]:
    return [DataFrame(stream_id, data=b"more than was said")]


def headers_after_the_end(stream_id: int) -> list[Frame]:
    return [HeadersFrame(stream_id, data=b"\x82", flags=["END_HEADERS"])]


def increment_of_nothing(stream_id: int) -> list[Frame]:
    return [WindowUpdateFrame(stream_id)]


@pytest.mark.parametrize(
    "provoke", [overflow, data_after_the_end, headers_after_the_end, increment_of_nothing]
)
@pytest.mark.usefixtures("others")
async def test_provoking_resets_is_no_better_than_resetting(
    edge: Edge, provoke: Callable[[int], list[Frame]]
) -> None:
    """CVE-2025-8671, MadeYouReset: the server resets, but its handlers must not pile up."""
    async with attacking(edge.port) as attacker:
        for stream_id in range(1, 1_201, 2):
            await attacker.send(attacker.request(stream_id, ENDLESS), *provoke(stream_id))
        goaway = await attacker.goaway()
    assert goaway.error_code != ErrorCodes.NO_ERROR
    await until(lambda: edge.counting.running <= 3)


@pytest.mark.parametrize(
    "sent",
    [
        b"".join(opened(number, ("UPPER", "case")) for number in range(1, 2_001, 2)),
        requested(1, ENDLESS) + raw(RST_STREAM, 0, 1, number(8)) + opened(1) * 1_000,
        requested(1, ENDLESS) + raw(RST_STREAM, 0, 1, number(8)) + raw(DATA, 0, 1, b"x" * 20) * 1_000,
        opened(1) + raw(PRIORITY, 0, 1) * 150,
    ],
    ids=["malformed requests", "headers after a reset", "data after a reset", "priority of no bytes"],
)
@pytest.mark.usefixtures("others")
async def test_a_flood_of_what_makes_us_reset_streams_is_answered_by_goaway(edge: Edge, sent: bytes) -> None:
    before = sample("http2_abuse_total", limit="rapid_reset")
    async with attacking(edge.port) as attacker:
        await attacker.send(sent)
        assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert sample("http2_abuse_total", limit="rapid_reset") == before + 1


async def test_what_was_under_way_to_a_stream_that_we_reset_is_dropped_without_a_word(edge: Edge) -> None:
    """RFC 9113, 5.1 and 5.4.2; the connection's window is given back for it."""
    async with attacking(edge.port) as attacker:
        await attacker.send(opened(1, *headers(), ("content-length", "1")), raw(DATA, 0, 1, b"xx"))
        assert (await attacker.reset(1)).error_code == ErrorCodes.PROTOCOL_ERROR
        await attacker.send(*[raw(DATA, 0, 1, b"x" * 600)] * 100)
        await attacker.send(raw(HEADERS, END_HEADERS | END_STREAM, 1, block(("known", "then"))))
        opened_again = await attacker.until(WindowUpdateFrame)
        assert opened_again.stream_id == 0
        await attacker.send(requested(3, 2))
        assert (await attacker.answer(3)).status == "0"
    assert sum(isinstance(frame, RstStreamFrame) for frame in attacker.received) == 1


@pytest.mark.parametrize(
    ("limit", "frame"),
    [
        ("goaway", GoAwayFrame(0)),
        ("reset", RstStreamFrame(1, error_code=8)),
        ("unknown", RawFrame(b"\0\0\4\x20\0\0\0\0\0what")),
        ("window_update", WindowUpdateFrame(1, window_increment=1)),
        ("empty_data", DataFrame(1, data=b"", flags=["PADDED"], pad_length=3)),
    ],
)
@pytest.mark.usefixtures("others")
async def test_a_flood_of_what_is_rarely_sent_is_answered_by_goaway(
    edge: Edge, limit: str, frame: Frame
) -> None:
    before = sample("http2_abuse_total", limit=limit)
    async with attacking(edge.port) as attacker:
        await attacker.send(attacker.request(1, is_complete=False))
        sending = asyncio.create_task(attacker.send(*repeated(frame, 20_000)))
        assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        await sending
    assert sample("http2_abuse_total", limit=limit) == before + 1


@pytest.mark.usefixtures("others")
async def test_headers_without_end_are_answered_by_goaway_before_much_of_them_is_kept(edge: Edge) -> None:
    before = sample("http2_abuse_total", limit="header_block")
    async with attacking(edge.port) as attacker:
        await attacker.send(HeadersFrame(1, data=b"\x40\x01x\x7f" + b"y" * 16_000))
        flood = repeated(ContinuationFrame(1, data=b"y" * 16_000), 100)
        sending = asyncio.create_task(attacker.send(*flood))
        assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        await sending
    assert sample("http2_abuse_total", limit="header_block") == before + 1


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([HeadersFrame(1, data=b"\x82"), PingFrame(0, opaque_data=b"12345678")], ErrorCodes.PROTOCOL_ERROR),
        ([HeadersFrame(1, data=b"\x82"), ContinuationFrame(3, data=b"x")], ErrorCodes.PROTOCOL_ERROR),
        ([PushPromiseFrame(1, promised_stream_id=2, data=b"\x82", flags=["END_HEADERS"])], None),
        ([RstStreamFrame(99, error_code=8)], ErrorCodes.PROTOCOL_ERROR),
        ([SettingsFrame(0, settings={4: 2**31})], ErrorCodes.FLOW_CONTROL_ERROR),
        ([SettingsFrame(0, settings={5: 100})], ErrorCodes.PROTOCOL_ERROR),
        ([SettingsFrame(0, settings={2: 7})], ErrorCodes.PROTOCOL_ERROR),
        ([b"\0\0\5\4\0\0\0\0\0\0\0\0\0\0"], ErrorCodes.FRAME_SIZE_ERROR),
        ([b"\0\0\6\4\0\0\0\0\1\0\3\0\0\0\1"], ErrorCodes.PROTOCOL_ERROR),
        ([WindowUpdateFrame(99, window_increment=5)], ErrorCodes.PROTOCOL_ERROR),
        ([b"\0\0\1\0\0\0\0\0\0x"], ErrorCodes.PROTOCOL_ERROR),
        ([b"\0\x40\x01\0\0\0\0\0\1"], ErrorCodes.FRAME_SIZE_ERROR),
        ([DataFrame(99, data=b"x" * 100)], ErrorCodes.PROTOCOL_ERROR),
        ([PingFrame(0, opaque_data=b"12345678").serialize()[:-1].replace(b"\x08\x06", b"\x07\x06")], None),
        ([HeadersFrame(2, data=b"\x82", flags=["END_HEADERS"])], ErrorCodes.PROTOCOL_ERROR),
        ([HeadersFrame(1, data=b"\xff\xff\xff\xff\xff", flags=["END_HEADERS"])], None),
        ([ContinuationFrame(1, data=b"x")], ErrorCodes.PROTOCOL_ERROR),
        ([WindowUpdateFrame(0, window_increment=2**31 - 1)] * 2, ErrorCodes.FLOW_CONTROL_ERROR),
        ([b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0"], ErrorCodes.PROTOCOL_ERROR),
    ],
    ids=[
        "ping within headers",
        "continuation of another stream",
        "push",
        "reset of an idle stream",
        "window beyond 2^31-1",
        "frames too small",
        "push that is neither on nor off",
        "settings cut short",
        "settings of a stream",
        "window of an idle stream",
        "data of no stream",
        "frame size",
        "idle stream",
        "short ping",
        "even stream",
        "hpack",
        "continuation",
        "window",
        "increment 0",
    ],
)
@pytest.mark.usefixtures("others")
async def test_what_the_protocol_forbids_ends_that_connection_alone(
    edge: Edge, frames: list[Frame | bytes], code: ErrorCodes | None
) -> None:
    async with attacking(edge.port) as attacker:
        await attacker.send(*frames)
        goaway = await attacker.goaway()
    assert goaway.error_code != ErrorCodes.NO_ERROR
    assert code is None or goaway.error_code == code


@pytest.mark.usefixtures("others")
async def test_a_reader_that_takes_nothing_is_reset_after_a_while(edge: Edge) -> None:
    before = sample("http2_streams_reset_total", reason="stall")
    async with attacking(edge.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as attacker:
        await attacker.send(attacker.request(1, ENDLESS))
        assert (await attacker.reset(1)).error_code == ErrorCodes.CANCEL
        # The connection is still good.
        await attacker.send(attacker.request(3, 2), WindowUpdateFrame(3, window_increment=10_000))
        assert (await attacker.answer(3)).status == "0"
    assert sample("http2_streams_reset_total", reason="stall") == before + 1


async def test_messages_that_never_end_may_hold_little_together_within_streams_too(edge: Edge) -> None:
    """Their handlers run already, and need no token."""
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    question = prefixed(reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString())
    async with attacking(edge.port) as attacker:
        for stream_id in range(1, 41, 2):
            block = attacker.encoder.encode(headers(path))
            await attacker.send(
                HeadersFrame(stream_id, data=block, flags=["END_HEADERS"]),
                DataFrame(stream_id, data=question),
            )
            while not (answer := attacker.answers.get(stream_id)) or not answer.data:
                await attacker.until(DataFrame)
            await attacker.send(DataFrame(stream_id, data=b"\0\0\x10\0\0" + b"x" * 12_000))
            await attacker.send(PingFrame(0, opaque_data=b"12345678"))
            await attacker.until(PingFrame)
        # Pings are answered before what came with them.
        await attacker.answer(39)
        assert attacker.ended == set(range(33, 41, 2))
        assert {attacker.answers[stream_id].status for stream_id in attacker.ended} == {RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(
    "metadata", [[("large", "x" * 3_000)] * 3, [("many", "of it")] * 200], ids=["large", "many"]
)
@pytest.mark.usefixtures("others")
async def test_metadata_of_open_calls_may_hold_little_together(
    edge: Edge, metadata: list[tuple[str, str]]
) -> None:
    """On the wire an entry is a byte, once HPACK's table has it; here it is kept as long as the call is open."""
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    async with attacking(edge.port) as attacker:
        for stream_id in range(1, 121, 2):
            fields = attacker.encoder.encode([*headers(path), *metadata])
            await attacker.send(HeadersFrame(stream_id, data=fields, flags=["END_HEADERS"]))
        assert (await attacker.answer(119)).status == RESOURCE_EXHAUSTED
        refused = sorted(attacker.ended)
        assert 2 < len(refused) < 60
        assert {attacker.answers[stream_id].status for stream_id in refused} == {RESOURCE_EXHAUSTED}
        # Calls that are over leave room, and the other calls never noticed.
        await attacker.send(*(RstStreamFrame(stream_id, error_code=8) for stream_id in (1, 3, 5)))
        await attacker.send(raw(HEADERS, END_HEADERS | END_STREAM, 121, block(*headers(path))))
        assert (await attacker.answer(121)).status == "0"
        assert attacker.ended == {*refused, 121}


@pytest.mark.usefixtures("others")
async def test_requests_that_never_end_may_hold_little_together(edge: Edge) -> None:
    before = sample("http2_streams_refused_total", reason="request_bytes")

    async def send_a_part(stream_id: int) -> None:
        """Says that a megabyte comes, and sends a little of it."""
        await attacker.send(attacker.request(stream_id, is_complete=False))
        await attacker.send(DataFrame(stream_id, data=b"\0\0\x10\0\0" + b"x" * 12_000))
        for _ in range(2):
            await attacker.send(PingFrame(0, opaque_data=b"12345678"))
            await attacker.until(PingFrame)

    async with attacking(edge.port) as attacker:
        for stream_id in range(1, 61, 2):
            await send_a_part(stream_id)
        refused = [stream_id for stream_id, answer in attacker.answers.items() if answer.blocks]
        assert {attacker.answers[stream_id].status for stream_id in refused} == {RESOURCE_EXHAUSTED}
        assert refused == list(range(33, 61, 2))
        assert sample("http2_streams_refused_total", reason="request_bytes") == before + len(refused)
        # What is given up is not kept: there is room again.
        await attacker.send(*(RstStreamFrame(stream_id, error_code=8) for stream_id in range(1, 33, 2)))
        await send_a_part(61)
        assert 61 not in attacker.answers


async def test_who_never_ends_its_headers_is_dropped_when_it_does_not_answer_pings() -> None:
    async with (
        counting_edge(http2_keepalive_seconds=0.1, http2_keepalive_timeout_seconds=0.3) as edge,
        attacking(edge.port) as silent,
    ):
        await silent.send(HeadersFrame(1, data=silent.encoder.encode(headers())[:10]))
        await hung_up(silent.reader)


async def test_a_connection_without_calls_is_let_go_after_a_while() -> None:
    async with (
        counting_edge(http2_idle_seconds_max=0.2, http2_keepalive_timeout_seconds=0.3) as edge,
        attacking(edge.port) as idle,
        edge.channel() as channel,
    ):
        reading = asyncio.create_task(count(channel, 1_500, slowly=True))
        assert (await idle.goaway()).error_code == ErrorCodes.NO_ERROR
        assert await reading == 1_500


@pytest.mark.usefixtures("others")
async def test_many_attackers_at_once_leave_nothing_behind(edge: Edge) -> None:
    async def attack(number: int) -> None:
        async with attacking(edge.port) as attacker:
            frame = [
                PingFrame(0, opaque_data=b"ping-pon"),
                SettingsFrame(0, settings={4: 65_535}),
                WindowUpdateFrame(0, window_increment=1),
            ][number % 3]
            await attacker.send(attacker.request(1, ENDLESS))
            sending = asyncio.create_task(attacker.send(*repeated(frame, 20_000)))
            assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
            await sending

    await attack(0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(3):
        await asyncio.gather(*(attack(number) for number in range(9)))
    await until(lambda: edge.counting.running <= 3)
    await asyncio.sleep(0.7)  # the server keeps connections for a moment, so that its GOAWAY can be read
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1_000_000
