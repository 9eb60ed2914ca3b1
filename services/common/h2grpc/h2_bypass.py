"""The one place that reaches inside h2: DATA frames are made here, and h2's own windows are kept in step.

`H2Connection.send_data` costs about 20 µs a message, nearly all of it in building objects and checking states that
cannot change between two messages of an open stream. What it does to its state is little: it subtracts the frame's
length from `outbound_flow_control_window` of the stream and of the connection. `ReadyStream` does the same to the same
two numbers, so there is one account and WINDOW_UPDATE, SETTINGS and RST_STREAM go on being h2's work. Everything that
is used beyond h2's documented interface is in this module; `H2_VERSIONS` are those that its tests passed with.
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

H2_VERSIONS: Final = ((4, 4), (4, 5))
"""At least the first, below the second."""

MESSAGE_PREFIX_BYTES: Final = 5
_FRAME_AND_PREFIX: Final = struct.Struct(">HBBBIBI")
_FRAME: Final = struct.Struct(">HBBBI")
_CACHED_MESSAGE_BYTES_MAX: Final = 4_096
_CACHED_FRAMES_MAX: Final = 64
_WINDOW_MAX: Final = 2**31 - 1
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
    """Finds the method for a frame; h2 makes a dict of bound methods for each connection, a kilobyte."""

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
}


class ServerConnection(H2Connection):
    """h2's connection for a server, with bounds that it lacks, and GOAWAY that lets open streams finish."""

    MAX_CLOSED_STREAMS = 256

    def __init__(self, *, streams_max: int, header_list_bytes_max: int) -> None:
        super().__init__(_CONFIGURATION)
        self._streams_max = streams_max
        self._header_list_bytes_max = header_list_bytes_max
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
        self._frame_dispatch_table = _Dispatch(self)  # type: ignore[assignment]  # it is only subscripted

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
        return super()._receive_settings_frame(frame)


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


class FrameMaker:
    """Makes DATA frames of one whole message each, once for all streams of the same number.

    A message goes to many connections at once, and most of them have one stream, number 1.
    """

    __slots__ = ("_frames", "_message")

    def __init__(self) -> None:
        self._message = b""
        self._frames: dict[int, bytes] = {}

    def frame(self, stream_id: int, message: bytes) -> bytes:
        """The frame; `message` with its prefix must fit in one."""
        if message is self._message:
            known = self._frames.get(stream_id)
            if known is not None:
                return known
        length = len(message)
        size = length + MESSAGE_PREFIX_BYTES
        frame = _FRAME_AND_PREFIX.pack(size >> 8, size & 0xFF, 0, 0, stream_id, 0, length) + message
        if length <= _CACHED_MESSAGE_BYTES_MAX:
            if message is not self._message:
                self._message = message
                self._frames.clear()
            if len(self._frames) < _CACHED_FRAMES_MAX:
                self._frames[stream_id] = frame
        return frame


class ReadyStream:
    """Makes the DATA frames of one stream and accounts for them in h2's windows. The caller writes them, in order."""

    __slots__ = ("_connection", "_maker", "_stream")

    def __init__(self, connection: ServerConnection, stream: H2Stream, maker: FrameMaker) -> None:
        self._connection = connection
        self._stream = stream
        self._maker = maker

    @property
    def allowance_bytes(self) -> int:
        """How much the peer takes now; negative after it has lowered its window."""
        return min(self._stream.outbound_flow_control_window, self._connection.outbound_flow_control_window)

    def whole(self, message: bytes) -> bytes | None:
        """The frame that carries the whole message with its prefix; None if the peer does not take all of it now.

        Raises:
            StreamClosedError: the stream is not open for sending.
        """
        stream, connection = self._stream, self._connection
        size = len(message) + MESSAGE_PREFIX_BYTES
        if (
            size > stream.outbound_flow_control_window
            or size > connection.outbound_flow_control_window
            or size > connection.max_outbound_frame_size
        ):
            return None
        state = stream.state_machine.state
        if state is not StreamState.HALF_CLOSED_REMOTE and state is not StreamState.OPEN:
            raise StreamClosedError(stream.stream_id)
        stream.outbound_flow_control_window -= size
        connection.outbound_flow_control_window -= size
        return self._maker.frame(stream.stream_id, message)

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
        header = _FRAME.pack(size >> 8, size & 0xFF, 0, 0, self._stream.stream_id)
        return header + payload[:size], size


def _is_sendable(stream: H2Stream) -> bool:
    return stream.state_machine.state in (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)
