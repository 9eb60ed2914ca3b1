"""Cutting a byte stream into frames."""

from __future__ import annotations

import pytest

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.frames import (
    FRAME_BYTES_MAX,
    FrameDecoder,
    FrameError,
    ack_payload,
    encode_frame,
    encode_frames,
    varint,
)


def pulled(decoder: FrameDecoder) -> list[bytes]:
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    return frames


def test_frames_come_out_as_they_went_in():
    decoder = FrameDecoder()
    decoder.receive_data(encode_frames([b"one", b"two", b"x" * FRAME_BYTES_MAX]))
    assert pulled(decoder) == [b"one", b"two", b"x" * FRAME_BYTES_MAX]
    assert decoder.pending_bytes == 0


def test_a_frame_may_come_byte_by_byte():
    decoder = FrameDecoder()
    frames = []
    for byte in encode_frame(b"slow") + encode_frame(b"er"):
        decoder.receive_data(bytes([byte]))
        frames += pulled(decoder)
    assert frames == [b"slow", b"er"]


def test_an_incomplete_frame_stays_pending():
    decoder = FrameDecoder()
    decoder.receive_data(encode_frame(b"whole") + b"\0\0")
    assert pulled(decoder) == [b"whole"]
    assert decoder.pending_bytes == 2


def test_the_frames_before_a_bad_length_are_not_lost():
    decoder = FrameDecoder(length_bytes_max=10)
    decoder.receive_data(encode_frame(b"good") + encode_frame(b"much too long") + encode_frame(b"never"))
    assert decoder.next_frame() == b"good"
    for _ in range(2):
        with pytest.raises(FrameError) as caught:
            decoder.next_frame()
        assert caught.value.code == pb.REJECT_CODE_TOO_LARGE


def test_a_frame_has_at_least_one_byte():
    decoder = FrameDecoder()
    decoder.receive_data(b"\0\0\0\0")
    with pytest.raises(FrameError) as caught:
        decoder.next_frame()
    assert caught.value.code == pb.REJECT_CODE_MALFORMED


def test_a_length_is_refused_before_its_bytes_are_awaited():
    decoder = FrameDecoder()
    decoder.receive_data((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(FrameError):
        decoder.next_frame()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**32, 2**53 - 1, 2**64 - 1])
def test_varints_are_those_of_protobuf(value: int):
    assert varint(value) == pb.Ping(id=value).SerializeToString()[1:] or (value == 0 and varint(0) == b"\0")


@pytest.mark.parametrize("sequence", [0, 1, 300, 2**53 - 1])
@pytest.mark.parametrize("credits", [0, 1, 4_096, 1_000_000])
def test_the_quick_ack_is_the_one_that_protobuf_makes(sequence: int, credits: int):
    ack = pb.Ack(sequence=sequence, durability=2, credits=credits)
    assert ack_payload(sequence, 2, credits) == pb.ServerFrame(ack=ack).SerializeToString()
