"""Whatever bytes come in whatever pieces, the decoder gives the frames or one lasting error, and keeps little."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.frames import FrameDecoder, FrameError, encode_frames
from services.ingest.domain.session import Session
from services.ingest.domain.values import Limits
from tests.unit.ingest.dialogue import Dialogue

LENGTH_MAX = 64
payloads = st.lists(st.binary(min_size=1, max_size=LENGTH_MAX), max_size=20)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def pull(decoder: FrameDecoder) -> tuple[list[bytes], FrameError | None]:
    frames: list[bytes] = []
    try:
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    except FrameError as error:
        return frames, error
    return frames, None


@given(payloads, st.lists(st.integers(min_value=0), max_size=30))
def test_frames_do_not_depend_on_how_the_bytes_were_cut(sent: list[bytes], cuts: list[int]):
    decoder = FrameDecoder(LENGTH_MAX)
    received: list[bytes] = []
    for piece in cut(encode_frames(sent), cuts):
        decoder.receive_data(piece)
        frames, error = pull(decoder)
        assert error is None
        received += frames
        assert decoder.pending_bytes < LENGTH_MAX + 4
    assert received == sent
    assert decoder.pending_bytes == 0


@given(st.binary(max_size=2_000), st.lists(st.integers(min_value=0), max_size=30))
def test_any_bytes_give_the_same_frames_and_the_same_error_however_cut(data: bytes, cuts: list[int]):
    whole = FrameDecoder(LENGTH_MAX)
    whole.receive_data(data)
    expected, expected_error = pull(whole)
    decoder = FrameDecoder(LENGTH_MAX)
    received: list[bytes] = []
    error: FrameError | None = None
    for piece in cut(data, cuts):
        if error is None:
            decoder.receive_data(piece)
        frames, error = pull(decoder)
        received += frames
    assert received == expected
    assert (error and error.code) == (expected_error and expected_error.code)


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_no_bytes_break_a_session_that_is_not_open(frames: list[bytes]):
    session = Session(Limits(), b"n" * 32, 0.0)
    for payload in frames:
        session.receive_payload(payload, 1, 0.0)
    for answer in session.data_to_send(0.0):
        assert pb.ServerFrame.FromString(answer).WhichOneof("frame") in ("challenge", "reject", "bye")
    assert session.intake is None
    assert session.take_commands() == []


@given(st.data())
def test_no_mutation_of_a_signed_frame_is_taken(data: st.DataObject):
    dialogue = Dialogue().open()
    frame = dialogue.batch(1, 2)
    payload = bytearray(frame.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(payload) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                payload[index] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del payload[index]
            case "insert":
                payload.insert(index, data.draw(st.integers(0, 255)))
        if not payload:
            break
    dialogue.session.receive_payload(bytes(payload), dialogue.now_us, dialogue.now_seconds)
    for run in dialogue.session.intake.take_runs():
        # The envelope may carry more than we know; what was signed may not differ by one bit.
        assert frame.signals.body in run.data
