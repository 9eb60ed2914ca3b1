"""gRPC's wire format: what is encoded comes out again however the bytes are cut, and other bytes break nothing."""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import pairwise
from urllib.parse import unquote_to_bytes

import grpc
from hypothesis import example, given
from hypothesis import strategies as st

from services.common.h2grpc.guard import PREFACE, AbuseError, FrameGuard
from services.common.h2grpc.messages import (
    MessageDecoder,
    StatusError,
    metadata_headers,
    metadata_of,
    prefixed,
    status_headers,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(
    messages=st.lists(st.binary(max_size=200), max_size=10),
    places=st.lists(st.integers(0, 1_000), max_size=20),
)
def test_messages_come_out_whole_however_they_are_cut(messages: list[bytes], places: list[int]) -> None:
    decoder = MessageDecoder(message_bytes_max=200)
    found: list[bytes] = []
    for part in cut(b"".join(map(prefixed, messages)), places):
        decoder.receive_data(part)
        while (message := decoder.next_message()) is not None:
            found.append(message)
    assert found == messages
    assert decoder.buffered_bytes == 0


@given(data=st.binary(max_size=100))
def test_any_bytes_are_a_message_an_error_or_too_few(data: bytes) -> None:
    decoder = MessageDecoder(message_bytes_max=50)
    decoder.receive_data(data)
    code = None
    try:
        while (message := decoder.next_message()) is not None:
            assert len(message) <= 50
    except StatusError as error:
        code = error.code
    assert code in (None, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED)


@given(message=st.text(max_size=200))
@example("100 % déjà vu\n\0")
def test_a_status_message_is_printable_and_decodes_to_itself(message: str) -> None:
    headers = dict(status_headers(5, message))
    assert headers[b"grpc-status"] == b"5"
    encoded = headers.get(b"grpc-message", b"")
    assert re.fullmatch(rb"[ -~]*", encoded)
    assert unquote_to_bytes(encoded).decode() == message


@given(
    text=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=50),
    data=st.binary(max_size=50),
)
def test_metadata_comes_back_as_it_was(text: str, data: bytes) -> None:
    metadata = (("some-key", text), ("other-bin", data))
    assert metadata_of(metadata_headers(metadata)) == metadata


def frame(kind: int, flags: int, length: int) -> bytes:
    return length.to_bytes(3, "big") + bytes([kind, flags]) + b"\0\0\0\1" + b"x" * length


@given(
    frames=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 255), st.integers(0, 300)), max_size=60),
    places=st.lists(st.integers(0, 3_000), max_size=20),
)
def test_the_guard_judges_the_same_however_the_bytes_are_cut(
    frames: list[tuple[int, int, int]], places: list[int]
) -> None:
    data = PREFACE + b"".join(frame(*one) for one in frames)

    def judge(parts: list[bytes]) -> str:
        guard = FrameGuard(header_block_bytes_max=1_000)
        try:
            for part in parts:
                guard.receive_data(part, 0.0, 0)
        except AbuseError as error:
            return error.limit
        return "fine"

    assert judge([data]) == judge(cut(data, places)) == judge([bytes([byte]) for byte in data])


@given(data=st.binary(min_size=1, max_size=200))
def test_the_guard_survives_any_bytes(data: bytes) -> None:
    for begin in (b"", PREFACE):
        with suppress(AbuseError):
            FrameGuard(header_block_bytes_max=1_000).receive_data(begin + data, 0.0, 0)
