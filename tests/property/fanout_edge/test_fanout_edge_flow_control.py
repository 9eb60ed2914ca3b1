"""Frames written past h2 leave the same windows and the same bytes as h2's own, whatever the peer does in between."""

from __future__ import annotations

from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.h2grpc.h2_bypass import Frames, ReadyStream, ServerConnection
from services.common.h2grpc.messages import prefixed

STREAMS = (1, 3, 5)
REQUEST = [(":method", "POST"), (":path", "/a"), (":scheme", "http"), (":authority", "a")]
RESPONSE = [(":status", "200")]


class SameAsH2(RuleBasedStateMachine):
    """A client of h2's, h2's server, and ours: both servers hear the same bytes and are asked to send the same."""

    @initialize()
    def connect(self) -> None:
        self.client = H2Connection(H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.theirs = H2Connection(H2Configuration(client_side=False))
        self.ours = ServerConnection(streams_max=10, header_list_bytes_max=16_384)
        self.theirs.initiate_connection()
        self.theirs.clear_outbound_data_buffer()
        self.client.receive_data(self.ours.preface())
        for stream_id in STREAMS:
            self.client.send_headers(stream_id, REQUEST, end_stream=stream_id != 5)
        self.to_servers()
        self.ready = {}
        for stream_id in STREAMS:
            stream = self.ours.find(stream_id)
            assert stream is not None
            self.ready[stream_id] = ReadyStream(self.ours, stream)
            self.theirs.send_headers(stream_id, RESPONSE)
            self.ours.send_headers(stream_id, RESPONSE)
        self.to_client(b"")
        self.open = set(STREAMS)
        self.rest: dict[int, memoryview] = {}

    def to_servers(self) -> None:
        data = self.client.data_to_send()
        self.theirs.receive_data(data)
        self.ours.receive_data(data)

    def to_client(self, written: bytes) -> list[Any]:
        """What each says is the same; the client takes it, and would say so if we went beyond its windows."""
        said = self.ours.data_to_send() + written
        assert said == self.theirs.data_to_send()
        return self.client.receive_data(said)

    @rule(
        stream_id=st.sampled_from(STREAMS), message=st.binary(max_size=300) | st.sampled_from([b"x" * 15_000])
    )
    def send_whole(self, stream_id: int, message: bytes) -> None:
        if stream_id not in self.open or stream_id in self.rest:
            return
        size = len(message) + 5
        frame = self.ready[stream_id].whole(Frames(message))
        if frame is None:
            window = self.theirs.local_flow_control_window(stream_id)
            assert size > window or size > self.theirs.max_outbound_frame_size
            self.rest[stream_id] = memoryview(prefixed(message))
            return
        self.theirs.send_data(stream_id, prefixed(message))
        (received,) = self.to_client(frame)
        assert isinstance(received, DataReceived)
        assert received.data == prefixed(message)

    @rule(stream_id=st.sampled_from(STREAMS), sizes=st.lists(st.integers(0, 6_000), max_size=4))
    def send_from_credit(self, stream_id: int, sizes: list[int]) -> None:
        """As a broadcast does: messages go out as long as there is credit, or more can be drawn."""
        ready = self.ready[stream_id]
        for size in sizes:
            if stream_id not in self.open or stream_id in self.rest:
                return
            message = b"c" * size
            frames = Frames(message)
            if ready.credit < frames.flow_bytes and not ready.draw_credit(frames.flow_bytes):
                assert frames.flow_bytes > self.theirs.local_flow_control_window(stream_id)
                return
            ready.credit -= frames.flow_bytes
            ready.credit_frames += 1
            self.theirs.send_data(stream_id, prefixed(message))
            (received,) = self.to_client(frames[stream_id])
            assert received.data == prefixed(message)

    @rule(stream_id=st.sampled_from(STREAMS))
    def ask(self, stream_id: int) -> None:
        if stream_id in self.open:
            allowed = self.ready[stream_id].allowance_bytes
            assert allowed == self.theirs.local_flow_control_window(stream_id)

    @rule(stream_id=st.sampled_from(STREAMS))
    def send_part(self, stream_id: int) -> None:
        rest = self.rest.get(stream_id)
        if rest is None or stream_id not in self.open:
            return
        frame, size = self.ready[stream_id].part(rest)
        allowed = min(self.theirs.local_flow_control_window(stream_id), self.theirs.max_outbound_frame_size)
        assert size == max(0, min(allowed, len(rest)))
        if size:
            self.theirs.send_data(stream_id, bytes(rest[:size]))
            self.to_client(frame)
        if size == len(rest):
            del self.rest[stream_id]
        else:
            self.rest[stream_id] = rest[size:]

    @rule(stream_id=st.sampled_from([None, *STREAMS]), increment=st.integers(1, 40_000))
    def open_window(self, stream_id: int | None, increment: int) -> None:
        if stream_id is None or stream_id in self.open:
            self.client.increment_flow_control_window(increment, stream_id)
            self.to_servers()

    @rule(window=st.integers(0, 200_000), frame=st.sampled_from([16_384, 20_000, 100_000]))
    def change_settings(self, window: int, frame: int) -> None:
        self.client.update_settings(
            {SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame}
        )
        self.to_servers()
        self.to_client(b"")

    @rule(stream_id=st.sampled_from(STREAMS))
    def reset(self, stream_id: int) -> None:
        if stream_id in self.open:
            self.open.discard(stream_id)
            self.client.reset_stream(stream_id, ErrorCodes.CANCEL)
            self.to_servers()
            try:
                frame = self.ready[stream_id].whole(Frames(b""))
            except StreamClosedError:
                frame = None
            assert frame is None
            assert self.ours.find(stream_id) is None

    @rule(stream_id=st.sampled_from(STREAMS))
    def finish(self, stream_id: int) -> None:
        if stream_id in self.open and stream_id not in self.rest:
            self.open.discard(stream_id)
            for server in (self.theirs, self.ours):
                server.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
            self.to_client(b"")

    @precondition(lambda self: hasattr(self, "ours"))
    @invariant()
    def windows_are_the_same(self) -> None:
        credit = sum(ready.credit for ready in self.ready.values())
        assert self.ours.outbound_flow_control_window + credit == self.theirs.outbound_flow_control_window
        for stream_id in self.open:
            ours, theirs = self.ours.streams[stream_id], self.theirs.streams[stream_id]
            credit = self.ready[stream_id].credit
            assert ours.outbound_flow_control_window + credit == theirs.outbound_flow_control_window


TestSameAsH2 = SameAsH2.TestCase
TestSameAsH2.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
