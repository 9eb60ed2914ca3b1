"""Requests that go on though their answer is complete: they are asked to stop, a moment later; it writes nothing."""

from __future__ import annotations

from h2.errors import ErrorCodes

from services.common.h2grpc.h2_bypass import ServerConnection


class Answered:
    """Those of one connection.

    RFC 9113, 8.1 lets us ask them to stop sending. Clients that still do take that for a failure and lose the status
    that has just come, so they have the time between two calls of `stop` first.
    """

    __slots__ = ("_connection", "_due", "_new")

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._new: list[int] = []
        self._due: list[int] = []

    def note(self, stream_id: int) -> None:
        """The stream's answer is complete; its request may be, too."""
        if self._connection.streams[stream_id].open:
            self._new.append(stream_id)

    def stop(self) -> bool:
        """Resets those that were noted before the last call and still send; returns whether there are any."""
        due, self._due, self._new = self._due, self._new, []
        found = [one for one in map(self._connection.streams.get, due) if one is not None and one.open]
        for stream in found:
            self._connection.reset_stream(stream.stream_id, ErrorCodes.NO_ERROR)
        return bool(found)
