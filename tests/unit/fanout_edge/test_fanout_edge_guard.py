"""How many frames of a kind a peer may send, and how fast its budget comes back."""

from __future__ import annotations

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

from services.common.h2grpc.guard import PREFACE, AbuseError, FrameGuard

FLOODS: list[tuple[str, Frame]] = [
    ("settings", SettingsFrame(0)),
    ("settings", SettingsFrame(0, flags=["ACK"])),
    ("ping", PingFrame(0, opaque_data=b"12345678")),
    ("empty_data", DataFrame(1)),
    ("empty_data", DataFrame(1, data=b"x")),
    ("priority", PriorityFrame(1, depends_on=0)),
    ("reset", RstStreamFrame(1)),
    ("window_update", WindowUpdateFrame(1, window_increment=1)),
]


def guard() -> FrameGuard:
    made = FrameGuard(header_block_bytes_max=65_536)
    made.receive_data(PREFACE + SettingsFrame(0).serialize(), 0.0, 0)
    return made


@pytest.mark.parametrize(("limit", "frame"), FLOODS)
def test_a_flood_ends_the_connection_and_a_slow_stream_of_the_same_does_not(limit: str, frame: Frame) -> None:
    flooded = guard()
    with pytest.raises(AbuseError) as caught:
        flooded.receive_data(frame.serialize() * 6_000, 0.0, 0)
    assert caught.value.limit == limit
    assert caught.value.error_code is ErrorCodes.ENHANCE_YOUR_CALM
    patient = guard()
    for second in range(6_000):
        patient.receive_data(frame.serialize(), float(second), 0)


@pytest.mark.parametrize(
    "frame", [PingFrame(0, opaque_data=b"12345678"), WindowUpdateFrame(0, window_increment=1)]
)
def test_what_answers_our_own_frames_is_no_flood(frame: Frame) -> None:
    made = guard()
    for sent in range(20_000):
        made.receive_data(frame.serialize(), 0.0, sent)


def test_the_last_data_of_a_request_may_be_empty() -> None:
    made = guard()
    for _ in range(5_000):
        made.receive_data(DataFrame(1, flags=["END_STREAM"]).serialize(), 0.0, 0)


def test_a_header_block_is_bounded_in_bytes_and_in_frames() -> None:
    made = guard()
    made.receive_data(HeadersFrame(1, data=b"x" * 16_000).serialize(), 0.0, 0)
    with pytest.raises(AbuseError, match="header_block"):
        made.receive_data(ContinuationFrame(1, data=b"x" * 16_000).serialize() * 10, 0.0, 0)
    made = guard()
    made.receive_data(HeadersFrame(1, data=b"x").serialize(), 0.0, 0)
    with pytest.raises(AbuseError, match="continuation"):
        made.receive_data(ContinuationFrame(1, data=b"").serialize() * 50, 0.0, 0)


def test_each_header_block_has_its_own_budget() -> None:
    made = guard()
    for stream_id in range(1, 401, 2):
        block = HeadersFrame(stream_id, data=b"x" * 16_000).serialize()
        made.receive_data(block + ContinuationFrame(stream_id, data=b"x" * 16_000).serialize(), 0.0, 0)


def test_a_frame_that_is_too_large_is_refused_by_its_header() -> None:
    with pytest.raises(AbuseError) as caught:
        guard().receive_data((16_385).to_bytes(3, "big") + b"\0\0\0\0\0\1", 0.0, 0)
    assert caught.value.error_code is ErrorCodes.FRAME_SIZE_ERROR


def test_other_protocols_are_told_apart_by_their_first_byte() -> None:
    for data in (b"G", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/1"):
        with pytest.raises(AbuseError, match="preface"):
            FrameGuard(header_block_bytes_max=1).receive_data(data, 0.0, 0)


def test_one_settings_frame_holds_few_settings() -> None:
    many = SettingsFrame(0, settings=dict.fromkeys(range(100, 140), 1))
    with pytest.raises(AbuseError, match="settings"):
        guard().receive_data(many.serialize(), 0.0, 0)


def test_a_connection_has_begun_with_its_first_settings() -> None:
    made = FrameGuard(header_block_bytes_max=65_536)
    made.receive_data(PREFACE, 0.0, 0)
    assert not made.has_begun
    made.receive_data(SettingsFrame(0).serialize(), 0.0, 0)
    assert made.has_begun


@pytest.mark.parametrize(
    "frame",
    [SettingsFrame(0, flags=["ACK"]), PingFrame(0, opaque_data=b"12345678"), HeadersFrame(1), DataFrame(1)],
)
def test_another_frame_than_settings_is_no_beginning(frame: Frame) -> None:
    with pytest.raises(AbuseError, match="first_frame") as caught:
        FrameGuard(header_block_bytes_max=65_536).receive_data(PREFACE + frame.serialize(), 0.0, 0)
    assert caught.value.error_code is ErrorCodes.PROTOCOL_ERROR
