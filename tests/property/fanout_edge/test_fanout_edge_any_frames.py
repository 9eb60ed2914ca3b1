"""Whatever frames come, the edge's HTTP/2 says what is wrong with them in HTTP/2's words, and fails in no other way."""

from __future__ import annotations

from h2.events import RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from hpack import Encoder
from hyperframe.frame import GoAwayFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st

from services.common.h2grpc.guard import PREFACE, AbuseError, FrameGuard
from services.common.h2grpc.h2_bypass import ServerConnection

REQUEST = [(":method", "POST"), (":path", "/a"), (":scheme", "http"), (":authority", "a")]
BLOCK = Encoder().encode(REQUEST)
BROKEN_BLOCKS = (
    Encoder().encode([*REQUEST, ("UPPER", "x")]),
    Encoder().encode(REQUEST[1:]),
    b"\xff\xff",
    b"\x80",
)

NUMBERS = [b"\0" * 4, b"\0\0\0\1", b"\0\0\0\x08", b"\x7f\xff\xff\xff", b"\xff" * 4]

# By kind: what makes sense or nearly does.
likely = {
    0: ([0, 1, 8], [b"", b"abc", b"\2abc", b"\x09abc"]),
    1: ([4, 4, 5, 0, 0xC, 0x24], [BLOCK, BLOCK, *BROKEN_BLOCKS, b"\0\0\0\0\1" + BLOCK, b"\2\0\0"]),
    2: ([0], [b"\0\0\0\0\1", b"\0\0\0\1\1", b"", b"\0" * 6]),
    3: ([0], [*NUMBERS, b"\0"]),
    4: ([0, 1], [b"", b"\0\4\0\0\0\0", b"\0\4\0\1\0\0", b"\0\1\0\0\0\0", b"\0\5\0\0\0\0"]),
    6: ([0, 1], [b"12345678", b"short"]),
    7: ([0], [b"\0" * 8, b"\0" * 3]),
    8: ([0], NUMBERS),
    9: ([0, 4], [BLOCK[3:], b""]),
    10: ([0], [b"\0\0", b"x"]),
}


def raw(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def of_kind(kind: int) -> st.SearchStrategy[bytes]:
    flags, payloads = likely[kind]
    stream_ids = [0] if kind in (4, 6, 7) else [1, 1, 3, 3, 5]
    return st.builds(
        raw, st.just(kind), st.sampled_from(flags), st.sampled_from(stream_ids), st.sampled_from(payloads)
    )


wild = st.builds(
    raw,
    st.integers(0, 255),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 7, 2**31 - 1, 2**32 - 1]),
    st.binary(max_size=20),
)
usual = st.sampled_from([0, 1, 1, 2, 3, 8]).flatmap(of_kind)
frames = st.one_of(usual, usual, usual, st.sampled_from(sorted(likely)).flatmap(of_kind), wild)


@given(st.lists(frames, max_size=25), st.integers(1, 200))
def test_any_frames_are_understood_or_refused_in_http2s_words(sent: list[bytes], cut: int) -> None:
    guard = FrameGuard(header_block_bytes_max=65_536)
    server = ServerConnection(streams_max=10, header_list_bytes_max=16_384)
    server.preface()
    data = PREFACE + SettingsFrame(0).serialize() + b"".join(sent)
    told: list[int] = []
    for start in range(0, len(data), cut):
        piece = data[start : start + cut]
        try:
            guard.receive_data(piece, 0.0, 0)
            events = server.receive_data(piece)
        except AbuseError:
            return
        except ProtocolError:
            assert (
                GoAwayFrame(0, last_stream_id=server.highest_inbound_stream_id).serialize()[3:13]
                in server.data_to_send()
            )
            return
        requested = [event.stream_id for event in events if isinstance(event, RequestReceived)]
        told += requested
        assert len(set(told)) == len(told)
        for stream_id in requested:
            if stream_id != 1 and server.find(stream_id) is not None:
                server.send_headers(stream_id, [(":status", "200")], end_stream=True)
        resets = [
            event.stream_id for event in events if isinstance(event, StreamReset) and not event.remote_reset
        ]
        written = server.data_to_send()
        # Of what the user is not told, nothing is written.
        assert written.count(b"\0\0\4\3\0") <= len(resets)
        # A stream that is ended takes nothing more.
        assert all(server.find(stream_id) is None for stream_id in resets)
        assert server.inbound_flow_control_window <= 65_535
