"""The one place that reaches inside h2: DATA frames are made here, and h2's own windows are kept in step.

`H2Connection.send_data` costs about 20 µs a message, nearly all of it in building objects and checking states that
cannot change between two messages of an open stream. What it does to its state is little: it subtracts the frame's
length from `outbound_flow_control_window` of the stream and of the connection. `ReadyStream` does the same to the same
two numbers, so there is one account and WINDOW_UPDATE, SETTINGS and RST_STREAM go on being h2's work. A stream that is
sent many small messages draws a frame's worth of both windows at a time, as credit, and sends from that; before h2
hears anything of the peer, all credit is given back. Everything that is used beyond h2's documented interface is in
this module and in `h2_verdicts`; `H2_VERSIONS` are those that their tests passed with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream, StreamState
from hyperframe.frame import Frame, GoAwayFrame, SettingsFrame

from services.common.h2grpc.h2_verdicts import JudgingConnection, StreamFault
from services.common.h2grpc.messages import MESSAGE_PREFIX_BYTES, prefixed

H2_VERSIONS: Final = ((4, 4), (4, 5))
"""At least the first, below the second."""

_FRAME_AND_PREFIX: Final = struct.Struct(">HBBBIBI")
_FRAME: Final = struct.Struct(">HBBBI")
_CACHED_FRAMES_MAX: Final = 64
_WINDOW_MAX: Final = 2**31 - 1
# HTTP/2's default.
_HEADER_TABLE_BYTES_MAX: Final = 4_096
# Streams that a client opens before it has read our limit are refused one by one; beyond this the connection ends.
_STREAMS_UNREAD_LIMIT: Final = 1_000

_CONFIGURATION: Final = H2Configuration(client_side=False, header_encoding=None)


class _Values(list[int]):
    """The values of one setting; a deque, which h2 uses, costs 700 bytes more, twelve times per connection."""

    __slots__ = ()

    def popleft(self) -> int:
        """Takes the oldest."""
        return self.pop(0)


class _Entries(list[tuple[bytes, bytes]]):
    """The newest headers of an HPACK table, for the same reason."""

    __slots__ = ()

    def appendleft(self, entry: tuple[bytes, bytes]) -> None:
        """Adds the newest."""
        self.insert(0, entry)


class _Dispatch:
    """Finds the method for a frame; h2 makes a dict of bound methods for each connection, a kilobyte in a circle."""

    __slots__ = ("_connection",)

    def __init__(self, connection: H2Connection) -> None:
        self._connection = connection

    def __getitem__(self, frame_class: type[Frame]) -> Callable[[Frame], tuple[list[Frame], list[Event]]]:
        handle: Callable[[Frame], tuple[list[Frame], list[Event]]] = getattr(
            self._connection, _METHOD_NAMES[frame_class]
        )
        return handle


# The names that h2 gives them, whatever they will be.
_METHOD_NAMES: Final[dict[type[Frame], str]] = {
    frame_class: method.__name__ for frame_class, method in H2Connection()._frame_dispatch_table.items()
} | {StreamFault: JudgingConnection._receive_fault.__name__}


class ServerConnection(JudgingConnection):
    """h2's connection for a server, with bounds that it lacks, and GOAWAY that lets open streams finish."""

    MAX_CLOSED_STREAMS = 256

    def __init__(self, *, streams_max: int, header_list_bytes_max: int) -> None:
        super().__init__(_CONFIGURATION)
        self._streams_max = streams_max
        self._header_list_bytes_max = header_list_bytes_max
        self.lent: dict[ReadyStream, None] = {}
        """The streams that hold credit."""
        self.sent_frames = 0
        """DATA frames, without those that were sent from credit that is not given back yet."""
        # Never changed after they were told, so that all connections share them.
        self.local_settings = _local_settings(streams_max, 4 * header_list_bytes_max)
        self.decoder.max_header_list_size = 4 * header_list_bytes_max
        self._slim()

    def _slim(self) -> None:
        """Makes the state of a connection that does little take 3 KiB instead of 14."""
        values = self.remote_settings._settings
        for code in values:
            values[code] = _Values(values[code])  # type: ignore[assignment]  # it has what is used
        for table in (self.encoder.header_table, self.decoder.header_table):
            table.dynamic_entries = _Entries()  # type: ignore[assignment]  # it has what is used

    @property  # type: ignore[override]  # h2 only subscripts it
    def _frame_dispatch_table(self) -> _Dispatch:
        return _Dispatch(self)

    @_frame_dispatch_table.setter
    def _frame_dispatch_table(self, table: object) -> None:
        """What h2 makes is not kept."""

    def settle(self) -> None:
        """Takes back all credit: the windows are what the peer was not sent."""
        for stream in tuple(self.lent):
            stream.give_back()

    def receive_data(self, data: bytes) -> list[Event]:  # type: ignore[override]  # nobody has other buffers
        """Takes what the peer sent; returns what it means."""
        self.settle()
        return super().receive_data(data)

    def preface(self) -> bytes:
        """What the server says first: limits a little below those that h2 enforces."""
        self.initiate_connection()
        self.clear_outbound_data_buffer()
        return SettingsFrame(
            0,
            settings={
                SettingCodes.MAX_CONCURRENT_STREAMS: self._streams_max,
                SettingCodes.MAX_HEADER_LIST_SIZE: self._header_list_bytes_max,
            },
        ).serialize()

    def goaway(
        self, error_code: ErrorCodes, *, last_stream_id: int | None = None, note: bytes = b""
    ) -> bytes:
        """A GOAWAY frame to write; h2's own would forbid every further frame, here open streams go on."""
        last = self.highest_inbound_stream_id if last_stream_id is None else last_stream_id
        return GoAwayFrame(0, last_stream_id=last, error_code=error_code, additional_data=note).serialize()

    def find(self, stream_id: int) -> H2Stream | None:
        """The stream, if it is open for sending."""
        stream = self.streams.get(stream_id)
        if stream is None or not _is_sendable(stream):
            return None
        return stream

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        # h2 takes this for the end of everything; a client that closes gracefully still reads its open streams.
        event = ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]

    def _receive_settings_frame(self, frame: SettingsFrame) -> tuple[list[Frame], list[Event]]:
        # h2 would keep a value for each of 65,536 unknown codes; RFC 9113, 6.5.2 has them ignored.
        frame.settings = {code: value for code, value in frame.settings.items() if code in _KNOWN_SETTINGS}
        wanted = frame.settings.get(SettingCodes.HEADER_TABLE_SIZE, 0)
        if wanted > _HEADER_TABLE_BYTES_MAX:
            # A table may be smaller than the peer allows; one that it may fill with what it has us answer must be.
            frame.settings[SettingCodes.HEADER_TABLE_SIZE] = _HEADER_TABLE_BYTES_MAX
        answer = super()._receive_settings_frame(frame)
        self._settle_table_size()
        return answer

    def _settle_table_size(self) -> None:
        """What the next headers announce: hpack would say every size since the last ones, or none of them.

        RFC 7541, 4.2 has the smallest and the last; one that is larger than the last is an error to the peer.
        """
        encoder = self.encoder
        if encoder.table_size_changes:
            smallest, last = min(encoder.table_size_changes), encoder.header_table_size
            encoder.table_size_changes = [smallest, last] if smallest < last else [last]
            encoder.header_table.resized = True


@cache
def _local_settings(streams_max: int, header_list_bytes_max: int) -> Settings:
    return Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: streams_max + _STREAMS_UNREAD_LIMIT,
            SettingCodes.MAX_HEADER_LIST_SIZE: header_list_bytes_max,
        },
    )


_KNOWN_SETTINGS: Final = frozenset(int(code) for code in SettingCodes)


class Frames(dict[int, bytes]):
    """One message as a DATA frame of its own, by stream number; each is made when it is first asked for.

    A message goes to many connections at once, and most of them have one stream, number 1: they share one frame.
    """

    __slots__ = ("_message", "_payload", "flow_bytes")

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._payload: memoryview | None = None
        self.flow_bytes = len(message) + MESSAGE_PREFIX_BYTES
        """What the frame takes of the windows."""

    @property
    def payload(self) -> memoryview:
        """The message with its prefix, for streams that cannot take all of it in one frame; they share it too."""
        if self._payload is None:
            self._payload = memoryview(prefixed(self._message))
        return self._payload

    def __missing__(self, stream_id: int) -> bytes:
        size, message = self.flow_bytes, self._message
        frame = _FRAME_AND_PREFIX.pack(size >> 8, size & 0xFF, 0, 0, stream_id, 0, len(message)) + message
        if len(self) < _CACHED_FRAMES_MAX:
            self[stream_id] = frame
        return frame


class FrameMaker:
    """Keeps the frames of the last message, for the next stream that is sent the same."""

    __slots__ = ("_frames", "_message")

    def __init__(self) -> None:
        self._message = b""
        self._frames = Frames(b"")

    def frames(self, message: bytes) -> Frames:
        """The frames of a message; `message` with its prefix must fit in one."""
        if message is not self._message:
            self._message, self._frames = message, Frames(message)
        return self._frames


class ReadyStream:
    """Makes the DATA frames of one stream and accounts for them in h2's windows. The caller writes them, in order."""

    __slots__ = ("_connection", "_stream", "credit", "credit_frames", "stream_id")

    def __init__(self, connection: ServerConnection, stream: H2Stream) -> None:
        self._connection = connection
        self._stream = stream
        self.stream_id: int = stream.stream_id
        self.credit = 0
        """Bytes that both windows count as sent already: so much may be sent in whole frames without asking."""
        self.credit_frames = 0
        """Frames that were sent from credit since it was drawn."""

    @property
    def allowance_bytes(self) -> int:
        """How much the peer takes now; negative after it has lowered its window."""
        self._connection.settle()
        return min(self._stream.outbound_flow_control_window, self._connection.outbound_flow_control_window)

    def draw_credit(self, size: int) -> bool:
        """Draws what one frame may carry from both windows; False if the peer takes less than `size` bytes now."""
        self.give_back()
        connection, stream = self._connection, self._stream
        found = min(
            stream.outbound_flow_control_window,
            connection.outbound_flow_control_window,
            connection.max_outbound_frame_size,
        )
        if found < size:
            # Other streams of the connection may have more credit than they use.
            found = min(self.allowance_bytes, connection.max_outbound_frame_size)
        if found < size or not _is_sendable(stream):
            return False
        stream.outbound_flow_control_window -= found
        connection.outbound_flow_control_window -= found
        self.credit = found
        connection.lent[self] = None
        return True

    def give_back(self) -> None:
        """Gives the rest of the credit back."""
        connection = self._connection
        if self in connection.lent:
            del connection.lent[self]
            self._stream.outbound_flow_control_window += self.credit
            connection.outbound_flow_control_window += self.credit
            connection.sent_frames += self.credit_frames
            self.credit = self.credit_frames = 0

    def whole(self, frames: Frames) -> bytes | None:
        """The frame that carries the whole message; None if the peer does not take all of it now.

        Raises:
            StreamClosedError: the stream is not open for sending.
        """
        stream, connection = self._stream, self._connection
        size = frames.flow_bytes
        if size > self.allowance_bytes or size > connection.max_outbound_frame_size:
            return None
        if not _is_sendable(stream):
            raise StreamClosedError(self.stream_id)
        stream.outbound_flow_control_window -= size
        connection.outbound_flow_control_window -= size
        connection.sent_frames += 1
        return frames[self.stream_id]

    def part(self, payload: memoryview) -> tuple[bytes, int]:
        """A frame with as much of the payload as the peer takes now, and how much that is; 0 if nothing.

        Raises:
            StreamClosedError: the stream is not open for sending.
        """
        size = min(len(payload), self.allowance_bytes, self._connection.max_outbound_frame_size)
        if size <= 0:
            return b"", 0
        if not _is_sendable(self._stream):
            raise StreamClosedError(self._stream.stream_id)
        self._stream.outbound_flow_control_window -= size
        self._connection.outbound_flow_control_window -= size
        self._connection.sent_frames += 1
        header = _FRAME.pack(size >> 8, size & 0xFF, 0, 0, self._stream.stream_id)
        return header + payload[:size], size


def _is_sendable(stream: H2Stream) -> bool:
    return stream.state_machine.state in (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)
