"""One message for many streams: who is sent it, and that nobody is who must be told something else before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived
from h2.settings import SettingCodes

from services.common.h2grpc import OutStream, send_to_each
from services.common.h2grpc.h2_bypass import FrameMaker, ServerConnection
from services.common.h2grpc.messages import prefixed

REQUEST = [(":method", "POST"), (":path", "/a"), (":scheme", "http"), (":authority", "a")]


@dataclass
class Peer:
    """A connection with one stream, as its stream sees it, and the client at its other end."""

    window: int = 65_535
    maker: FrameMaker = field(default_factory=FrameMaker)
    is_paused: bool = False
    waiting: dict[OutStream, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = H2Connection(H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.h2 = ServerConnection(streams_max=10, header_list_bytes_max=16_384)
        self.client.receive_data(self.h2.preface())
        self.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: self.window})
        self.h2.receive_data(self.client.data_to_send())
        self.client.receive_data(self.h2.data_to_send())
        self.client.send_headers(1, REQUEST, end_stream=True)
        self.h2.receive_data(self.client.data_to_send())
        self.transport: Any = self
        self.got: list[bytes] = []
        stream = self.h2.find(1)
        assert stream is not None
        self.out = OutStream(self, stream)
        self.out.send_headers()
        self.out.let_broadcast(True)

    def write(self, data: bytes) -> None:
        self.got += [
            event.data for event in self.client.receive_data(data) if isinstance(event, DataReceived)
        ]

    def flush_h2(self) -> None:
        self.write(self.h2.data_to_send())

    def now(self) -> float:
        return 0.0

    def sending_ended(self, stream_id: int) -> None:
        self.flush_h2()


def test_each_is_sent_the_message_and_no_one_more_than_it_takes() -> None:
    peers = [Peer(), Peer(window=30), Peer()]
    outs = [peer.out for peer in peers]
    assert send_to_each(outs, b"x" * 20) == []
    assert send_to_each(outs, b"y" * 20) == [1]
    assert send_to_each(outs, b"") == []
    assert [peer.got for peer in peers] == [
        [prefixed(b"x" * 20), prefixed(b"y" * 20), prefixed(b"")],
        [prefixed(b"x" * 20), prefixed(b"")],
        [prefixed(b"x" * 20), prefixed(b"y" * 20), prefixed(b"")],
    ]
    assert peers[0].out.allowance_bytes == 65_535 - 25 - 25 - 5
    assert peers[0].h2.sent_frames == 3


def test_a_message_larger_than_a_frame_goes_to_nobody() -> None:
    peer = Peer()
    assert send_to_each([peer.out], b"x" * 16_380) == [0]
    assert send_to_each([peer.out], b"x" * 16_379) == []


def test_nobody_is_sent_what_others_must_come_before() -> None:
    owed, paused, silent, over, gone = (Peer() for _ in range(5))
    peers = [owed, paused, silent, over, gone]
    outs = [peer.out for peer in peers]
    assert send_to_each(outs, b"first") == []
    owed.out.let_broadcast(False)
    paused.is_paused = True
    paused.h2.settle()
    silent.out.send(b"x" * 100_000)
    over.out.finish([(b"grpc-status", b"0")])
    gone.out.close()
    assert send_to_each(outs, b"second") == [0, 1, 2, 3, 4]
    assert all(peer.out.credit == 0 for peer in peers)
    assert b"second" not in b"".join(data for peer in peers for data in peer.got)
