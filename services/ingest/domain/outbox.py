"""What a session wants sent, done and counted, until its driver takes it; it sends nothing itself."""

from __future__ import annotations

from typing import Final

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.values import Command

# What breaks framing or identity ends the connection; everything else costs only the frame.
CLOSING: Final = frozenset({
    pb.REJECT_CODE_MALFORMED,
    pb.REJECT_CODE_TOO_LARGE,
    pb.REJECT_CODE_UNSUPPORTED_VERSION,
    pb.REJECT_CODE_BAD_MAC,
    pb.REJECT_CODE_UNAUTHENTICATED,
    pb.REJECT_CODE_LICENSE_EXPIRED,
    pb.REJECT_CODE_LICENSE_REVOKED,
    pb.REJECT_CODE_FENCED,
    pb.REJECT_CODE_CONFLICT,
    pb.REJECT_CODE_TOO_MANY_CONNECTIONS,
})  # fmt: skip

# The same frame may succeed later.
RETRYABLE: Final = frozenset({
    pb.REJECT_CODE_RATE_LIMITED,
    pb.REJECT_CODE_WINDOW_EXCEEDED,
    pb.REJECT_CODE_UNAVAILABLE,
    pb.REJECT_CODE_DRAINING,
    pb.REJECT_CODE_TOO_MANY_CONNECTIONS,
})  # fmt: skip


class Outbox:
    """Frames, commands and counts of one session, in order. `closing` is set by what must be the last frame."""

    __slots__ = ("closing", "commands", "duplicates", "frames", "rejects")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        """Serialized ServerFrames."""
        self.commands: list[Command] = []
        self.rejects: list[pb.RejectCode.ValueType] = []
        self.duplicates = 0
        """Signals acknowledged again since the driver last looked."""
        self.closing = False

    def send(self, frame: pb.ServerFrame) -> None:
        """Adds a frame; nothing goes out behind a closing one."""
        if not self.closing:
            self.frames.append(frame.SerializeToString())

    def reject(
        self,
        code: pb.RejectCode.ValueType,
        message: str,
        *,
        sequence: int = 0,
        expected: int = 0,
        field: str = "",
        retry_after_ms: int = 0,
    ) -> None:
        """Refuses a frame, and ends the session if the code says so."""
        if self.closing:
            return
        self.rejects.append(code)
        self.send(
            pb.ServerFrame(
                reject=pb.Reject(
                    sequence=sequence,
                    code=code,
                    retryable=code in RETRYABLE,
                    expected_sequence=expected,
                    message=message,
                    field=field,
                    retry_after_ms=retry_after_ms,
                )
            )
        )
        if code in CLOSING:
            self.closing = True

    def bye(self, reason: str) -> None:
        """Says goodbye and ends the session."""
        self.send(pb.ServerFrame(bye=pb.Bye(reason=reason)))
        self.closing = True
