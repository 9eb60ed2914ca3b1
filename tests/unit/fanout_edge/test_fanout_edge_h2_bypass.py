"""What our use of h2's insides rests on."""

from __future__ import annotations

import h2
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, RequestReceived, TrailersReceived
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame

from services.common.h2grpc.h2_bypass import H2_VERSIONS, FrameMaker, Frames, ReadyStream, ServerConnection
from services.common.h2grpc.messages import prefixed

REQUEST = [(":method", "POST"), (":path", "/a"), (":scheme", "http"), (":authority", "a")]


def connected() -> tuple[H2Connection, ServerConnection]:
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    server = ServerConnection(streams_max=10, header_list_bytes_max=16_384)
    client.receive_data(server.preface())
    server.receive_data(client.data_to_send())
    return client, server


def test_the_installed_h2_is_one_that_these_tests_are_meant_for() -> None:
    first, beyond = H2_VERSIONS
    assert first <= tuple(int(part) for part in h2.__version__.split(".")[:2]) < beyond


def test_the_peer_is_told_our_limits_before_anything_else() -> None:
    client, _ = connected()
    assert client.remote_settings.max_concurrent_streams == 10
    assert client.remote_settings.max_header_list_size == 16_384


def test_streams_go_on_after_the_peers_goaway() -> None:
    client, server = connected()
    client.send_headers(1, REQUEST, end_stream=True)
    server.receive_data(client.data_to_send())
    (event,) = server.receive_data(GoAwayFrame(0).serialize())
    assert isinstance(event, ConnectionTerminated)
    server.send_headers(1, [(":status", "200")])
    stream = server.find(1)
    assert stream is not None
    frame = ReadyStream(server, stream).whole(Frames(b"late"))
    assert frame is not None
    events = client.receive_data(server.data_to_send() + frame)
    assert events[-1].data == prefixed(b"late")


def test_our_goaway_lets_open_streams_finish() -> None:
    client, server = connected()
    client.send_headers(1, REQUEST, end_stream=True)
    server.receive_data(client.data_to_send())
    goaway = server.goaway(ErrorCodes.NO_ERROR, note=b"bye")
    (event,) = client.receive_data(goaway)
    assert (event.last_stream_id, event.additional_data) == (1, b"bye")
    server.send_headers(1, [(":status", "200")], end_stream=True)
    assert server.data_to_send()


def test_unknown_settings_are_not_kept() -> None:
    _, server = connected()
    before = len(server.remote_settings)
    server.receive_data(SettingsFrame(0, settings=dict.fromkeys(range(100, 130), 7)).serialize())
    assert len(server.remote_settings) == before


def test_settings_apply_after_several_changes() -> None:
    client, server = connected()
    for window in (1_000, 2_000, 0, 70_000):
        client.update_settings(
            {SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.HEADER_TABLE_SIZE: window}
        )
        server.receive_data(client.data_to_send())
        assert server.remote_settings.initial_window_size == window
        client.receive_data(server.data_to_send())


@pytest.mark.parametrize(
    "sizes",
    [(65_536, 100), (100, 100), (100, 4_096), (4_096, 0, 4_096), (0, 65_536, 50), (2_000, 2_000, 1_000)],
)
def test_a_header_table_that_is_resized_several_times_is_announced_as_the_peer_must_take_it(
    sizes: tuple[int, ...],
) -> None:
    """RFC 7541, 4.2: the smallest size in between and the last one, and none that is larger than the last."""
    client, server = connected()
    for stream_id in (1, 3):
        client.send_headers(stream_id, REQUEST, end_stream=True)
        server.receive_data(client.data_to_send())
        # h2's client takes any acknowledgement for that of its oldest change.
        client.receive_data(server.data_to_send())
        server.send_headers(stream_id, [(":status", "200"), ("kept", "in the table" * 10)])
        for size in sizes:
            client.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
            server.receive_data(client.data_to_send())
        server.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
        received = client.receive_data(server.data_to_send())
        (trailers,) = [event for event in received if isinstance(event, TrailersReceived)]
        assert list(trailers.headers) == [(b"grpc-status", b"0")]


def test_a_peer_cannot_make_us_keep_a_large_header_table() -> None:
    client, server = connected()
    client.update_settings({SettingCodes.HEADER_TABLE_SIZE: 2**31})
    server.receive_data(client.data_to_send())
    client.receive_data(server.data_to_send())
    for number in range(200):
        stream_id = 2 * number + 1
        client.send_headers(stream_id, REQUEST, end_stream=True)
        server.receive_data(client.data_to_send())
        server.send_headers(stream_id, [(":status", "200"), ("message", f"{number}" * 100)], end_stream=True)
        client.receive_data(server.data_to_send())
    kept = server.encoder.header_table.dynamic_entries
    assert sum(len(name) + len(value) + 32 for name, value in kept) <= 4_096


def test_few_closed_streams_are_remembered() -> None:
    client, server = connected()
    for stream_id in range(1, 2_001, 2):
        client.send_headers(stream_id, REQUEST, end_stream=True)
        server.receive_data(client.data_to_send())
        server.send_headers(stream_id, [(":status", "200")], end_stream=True)
        client.receive_data(server.data_to_send())
    assert len(server._closed_streams) <= 256
    assert len(server.streams) <= 2


def test_streams_a_little_beyond_the_limit_are_ours_to_refuse() -> None:
    client, server = connected()
    client.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
    client.remote_settings.acknowledge()
    for stream_id in range(1, 41, 2):
        client.send_headers(stream_id, REQUEST)
    events = server.receive_data(client.data_to_send())
    assert sum(isinstance(event, RequestReceived) for event in events) == 20


@pytest.mark.parametrize("length", [0, 1, 300, 5_000, 16_379])
def test_a_frame_is_made_once_for_all_streams_of_a_number(length: int) -> None:
    maker, message = FrameMaker(), b"m" * length
    first = maker.frames(message)[1]
    assert first[9:] == prefixed(message)
    assert int.from_bytes(first[:3], "big") == length + 5 == maker.frames(message).flow_bytes
    assert int.from_bytes(first[5:9], "big") == 1
    assert maker.frames(message)[1] is first
    other = maker.frames(message)[3]
    assert int.from_bytes(other[5:9], "big") == 3
    assert maker.frames(b"other")[1][9:] == prefixed(b"other")
    assert maker.frames(message)[1] == first


def test_few_frames_of_a_message_are_kept() -> None:
    frames = Frames(b"message")
    for stream_id in range(1, 2_001, 2):
        assert int.from_bytes(frames[stream_id][5:9], "big") == stream_id
    assert len(frames) == 64


def two_streams() -> tuple[ServerConnection, ReadyStream, ReadyStream]:
    """Two streams of a connection whose windows are those of HTTP/2's start, 65,535 bytes each."""
    client, server = connected()
    for stream_id in (1, 3):
        client.send_headers(stream_id, REQUEST, end_stream=True)
    server.receive_data(client.data_to_send())
    streams = [server.find(1), server.find(3)]
    return server, *(ReadyStream(server, stream) for stream in streams if stream is not None)


def test_credit_of_one_stream_leaves_the_others_theirs() -> None:
    server, one, other = two_streams()
    assert one.draw_credit(100)
    assert one.credit == 16_384
    assert other.allowance_bytes == 65_535
    assert one.credit == 0
    for _ in range(3):
        assert other.whole(Frames(b"x" * 16_379)) is not None
    assert one.draw_credit(16_383)
    assert other.draw_credit(16_383), "what one stream does not use is there for the next"
    assert not other.draw_credit(16_384)
    assert (one.credit, other.credit) == (0, 0)
    assert server.outbound_flow_control_window == 65_535 - 3 * 16_384


def test_credit_is_given_back_before_the_peer_is_heard() -> None:
    server, one, other = two_streams()
    assert one.draw_credit(100)
    one.credit -= 100
    one.credit_frames += 2
    server.receive_data(b"")
    assert (one.credit, one.credit_frames, len(server.lent)) == (0, 0, 0)
    assert server.outbound_flow_control_window == one.allowance_bytes == 65_435
    assert other.allowance_bytes == 65_435
    assert server.sent_frames == 2
