"""The bytes of runs as the log holds them, put together around the bytes that the master signed; it stores nothing."""

from __future__ import annotations

from typing import Final

from execution.common.v1.position_pb2 import GapReason
from execution.ingest.v1 import log_pb2
from services.ingest.domain.frames import varint

_BATCH: Final = b"\x42"  # LogRun.batch = 8, length-delimited: a message field and a bytes field look alike
_GAP: Final = b"\x4a"  # LogRun.gap = 9
_RUN: Final = b"\x0a"  # LogBatch.runs = 1


class RunEncoder:
    """Makes the runs of one session; what is the same for all of them is encoded once.

    A run is LogBatch.runs with its tag and length, so joined runs are a serialized LogBatch.
    """

    __slots__ = ("_constant",)

    def __init__(self, *, master_id: int, epoch: int, session_epoch: int, key_id: str) -> None:
        self._constant = log_pb2.LogRun(
            master_id=master_id, epoch=epoch, session_epoch=session_epoch, key_id=key_id
        ).SerializeToString()

    def signals(self, first: int, last: int, received_at: bytes, body: bytes) -> bytes:
        """A run of signals. `body` is a serialized SignalBatch, `received_at` is `varint` of microseconds."""
        return self._run(first, last, received_at, _BATCH, body)

    def gap(self, first: int, last: int, received_at: bytes, reason: GapReason.ValueType, note: str) -> bytes:
        """A run of sequences that will never come."""
        marker = log_pb2.GapMarker(reason=reason, note=note).SerializeToString()
        return self._run(first, last, received_at, _GAP, marker)

    def _run(self, first: int, last: int, received_at: bytes, tag: bytes, record: bytes) -> bytes:
        run = b"".join((
            self._constant, b"\x18", varint(first), b"\x20", varint(last), b"\x28", received_at,
            tag, varint(len(record)), record,
        ))  # fmt: skip
        return _RUN + varint(len(run)) + run
