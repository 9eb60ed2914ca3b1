"""What h2 finds wrong, answered with RFC 9113's codes, and by the end of a stream where that is enough.

h2 ends the connection for nearly everything, as the RFC allows (5.4.1). But behind a proxy a connection carries the
streams of many clients, and a malformed request of one of them must not end those of all. Like `h2_bypass` this uses
h2 beyond its documented interface; the conformance tests tell when an upgrade of h2 changes what it rests on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import (
    FrameDataMissingError,
    InvalidBodyLengthError,
    ProtocolError,
    StreamClosedError,
    StreamIDTooLowError,
)
from h2.frame_buffer import FrameBuffer
from h2.stream import StreamClosedBy
from hpack import Decoder, HeaderTuple, HPACKError, OversizedHeaderListError
from hyperframe.exceptions import HyperframeError, InvalidPaddingError
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    HeadersFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

_FRAME_HEADER_BYTES: Final = 9
_NUMBER_MASK: Final = 2**31 - 1
_ACK: Final = 0x1
_PRIORITY_BYTES: Final = 5

Outcome = tuple[list[Frame], list[Event]]


class CompressionError(ProtocolError):
    """A header block that cannot be decoded: the tables of both sides may differ from now on."""

    error_code = ErrorCodes.COMPRESSION_ERROR


class IdleStreamError(ProtocolError):
    """A frame of a stream that was never opened."""


class StreamFault(Frame):
    """Takes the place of a frame that is wrong in a way that concerns its stream alone."""

    def __init__(self, stream_id: int, error_code: ErrorCodes) -> None:
        super().__init__(stream_id)
        self.error_code = error_code

    def _body_repr(self) -> str:
        return self.error_code.name


class HeaderDecoder(Decoder):
    """HPACK's decoder, whose failures say what they are."""

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """The headers of a block.

        Raises:
            CompressionError: it cannot be decoded.
            OversizedHeaderListError: it holds more than it may.
        """
        try:
            return super().decode(data, raw)
        except OversizedHeaderListError:
            raise
        except (HPACKError, IndexError) as error:
            raise CompressionError(f"header block: {error}") from error


class FrameReader(FrameBuffer):
    """h2's reader of frames, which finds some wrong that are not, and others more wrong than they are."""

    def __next__(self) -> Frame:
        try:
            return super().__next__()
        except (ProtocolError, InvalidPaddingError) as error:
            found = error if isinstance(error, InvalidPaddingError) else error.__cause__
            # Within a block of headers every other frame ends the connection, whatever it says.
            if self._headers_buffer or not isinstance(found, HyperframeError):
                raise
            frame = self._judged(error)
            read = self._update_header_buffer(frame)
            return self.__next__() if read is None else read

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        if (
            isinstance(f, HeadersFrame)
            and "PRIORITY" in f.flags
            and f.pad_length > f.body_len - _PRIORITY_BYTES
        ):
            raise ProtocolError("the padding is longer than what it pads")
        return super()._update_header_buffer(f)

    def _judged(self, error: Exception) -> Frame:
        data = self._data
        length, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
        stream_id = int.from_bytes(data[5:_FRAME_HEADER_BYTES], "big") & _NUMBER_MASK
        body = bytes(data[_FRAME_HEADER_BYTES : _FRAME_HEADER_BYTES + length])
        frame: Frame | None = None
        if kind == PriorityFrame.type and stream_id:
            frame = StreamFault(stream_id, ErrorCodes.FRAME_SIZE_ERROR)
        elif kind == WindowUpdateFrame.type and length == 4:
            frame = _window_update(stream_id, int.from_bytes(body, "big") & _NUMBER_MASK)
        elif isinstance(error, InvalidPaddingError) and kind == HeadersFrame.type and length == 1 + body[0]:
            frame = HeadersFrame(stream_id)  # of padding alone
            frame.parse_flags(flags)
        elif kind == AltSvcFrame.type:  # says nothing to a server, whatever it says
            frame = ExtensionFrame(kind, stream_id)
        elif kind == SettingsFrame.type and flags & _ACK and not stream_id:
            raise FrameDataMissingError("an acknowledgement of SETTINGS says nothing") from error
        if frame is None:
            raise error
        del data[: _FRAME_HEADER_BYTES + length]
        return frame


def _window_update(stream_id: int, increment: int) -> Frame | None:
    """What a WINDOW_UPDATE means whose first bit, which is reserved, is left out; None if it ends the connection."""
    if increment:
        return WindowUpdateFrame(stream_id, window_increment=increment)
    return StreamFault(stream_id, ErrorCodes.PROTOCOL_ERROR) if stream_id else None


class JudgingConnection(H2Connection):
    """A server's h2 connection. Every stream that it resets is told as a `StreamReset` that is not `remote_reset`."""

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.incoming_buffer = FrameReader(server=True)
        self.decoder = HeaderDecoder()

    def _receive_fault(self, frame: StreamFault) -> Outcome:
        if frame.stream_id not in self.streams:
            self._refuse_if_idle(frame.stream_id)
            return [], [_reset_by_us(frame.stream_id, frame.error_code)]
        return self._end_stream(frame.stream_id, frame.error_code)

    def _receive_headers_frame(self, frame: HeadersFrame) -> Outcome:
        stream = self.streams.get(frame.stream_id)
        # h2 forgets it at the trailers.
        expected = None if stream is None else stream._expected_content_length
        try:
            outcome = super()._receive_headers_frame(frame)
        except (StreamClosedError, StreamIDTooLowError) as error:
            return self._receive_stray(error)
        except ProtocolError as error:
            # Its subclasses are about the connection; so is a stream that could not be opened.
            if type(error) is not ProtocolError or frame.stream_id not in self.streams:
                raise
            return self._end_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
        if "END_STREAM" in frame.flags:
            stream = self.streams[frame.stream_id]
            expected = stream._expected_content_length if expected is None else expected
            if expected is not None and expected != stream._actual_content_length:
                return self._end_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
        return outcome

    def _receive_data_frame(self, frame: DataFrame) -> Outcome:
        try:
            return super()._receive_data_frame(frame)
        except InvalidBodyLengthError:
            _, events = self._end_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
            closed = StreamClosedError(frame.stream_id)
            closed.error_code = ErrorCodes.PROTOCOL_ERROR
            closed._events = events
            # Resets the stream, and gives back what the frame took of the connection's window.
            return self._handle_data_on_closed_stream([], closed, frame)

    def _handle_data_on_closed_stream(
        self, events: list[Event], exc: StreamClosedError, frame: DataFrame
    ) -> Outcome:
        frames, events = super()._handle_data_on_closed_stream(events, exc, frame)
        if exc._events:
            return frames, events
        if self._stream_closed_by(frame.stream_id) is StreamClosedBy.SEND_RST_STREAM:
            # It was under way when the stream was reset: RFC 9113, 5.4.2 has one RST_STREAM for a stream.
            return [one for one in frames if not isinstance(one, RstStreamFrame)], events
        return frames, [*events, _reset_by_us(frame.stream_id, ErrorCodes.STREAM_CLOSED)]

    def _receive_naked_continuation(self, frame: ContinuationFrame) -> None:
        # h2 asks first how the stream was closed; RFC 9113, 6.10 does not.
        raise ProtocolError("CONTINUATION of no block")

    def _receive_rst_stream_frame(self, frame: RstStreamFrame) -> Outcome:
        self._refuse_if_idle(frame.stream_id)
        return super()._receive_rst_stream_frame(frame)

    def _refuse_if_idle(self, stream_id: int) -> None:
        if stream_id > self.highest_inbound_stream_id or stream_id % 2 == 0:
            raise IdleStreamError(f"stream {stream_id} was never opened")

    def _receive_stray(self, error: StreamClosedError | StreamIDTooLowError) -> Outcome:
        """HEADERS of a stream that is closed; they are decoded already."""
        stream_id, closed_by = error.stream_id, self._stream_closed_by(error.stream_id)
        was_closed_just_now = isinstance(error, StreamClosedError) and error._events
        if not was_closed_just_now and closed_by is StreamClosedBy.SEND_RST_STREAM:
            return [], []
        if not was_closed_just_now and closed_by is StreamClosedBy.RECV_RST_STREAM:
            reset = RstStreamFrame(stream_id, error_code=ErrorCodes.STREAM_CLOSED)
            return [reset], [_reset_by_us(stream_id, ErrorCodes.STREAM_CLOSED)]
        raise error

    def _end_stream(self, stream_id: int, error_code: ErrorCodes) -> Outcome:
        stream = self.streams[stream_id]
        frames: list[Frame] = []
        if not stream.closed:
            frames = stream.reset_stream(error_code)
        elif stream.closed_by is None:  # by what it cannot take in its state
            stream.state_machine.stream_closed_by = StreamClosedBy.SEND_RST_STREAM
            frames = [RstStreamFrame(stream_id, error_code=error_code)]
        return frames, [_reset_by_us(stream_id, error_code)]


def _reset_by_us(stream_id: int, error_code: ErrorCodes) -> StreamReset:
    return StreamReset(stream_id=stream_id, error_code=error_code, remote_reset=False)
