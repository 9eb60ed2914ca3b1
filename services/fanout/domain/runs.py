"""What an entry of the log holds, looked at once: its sound runs, and where each lies; it makes no records.

Reading a field of a protobuf message costs ten times as much as reading an attribute, and several ask for the same.
"""

from __future__ import annotations

from typing import Final, Literal, cast

from execution.ingest.v1 import log_pb2
from services.fanout.domain.position import SEQUENCE_MAX, Position

Kind = Literal["batch", "gap", "epoch_start", "snapshot"]

_MARKS: Final = frozenset({"epoch_start", "snapshot"})


class Run:
    """Places of one master in a row, from behind `before` to `last`, or a mark at one place.

    `kind` is the name of the message's record.
    """

    __slots__ = ("before", "kind", "last", "master_id", "message")

    def __init__(
        self, kind: Kind, master_id: int, before: Position, last: Position, message: log_pb2.LogRun
    ) -> None:
        self.kind = kind
        self.master_id = master_id
        self.before = before
        self.last = last
        self.message = message


def runs_of(payload: bytes) -> tuple[list[Run], int]:
    """The runs that an entry of the log holds, without those that cannot be, and how many those are.

    Raises:
        DecodeError: it is no batch at all.
    """
    messages = log_pb2.LogBatch.FromString(payload).runs
    runs = [run for message in messages if (run := _sound(message)) is not None]
    return runs, len(messages) - len(runs)


def _sound(message: log_pb2.LogRun) -> Run | None:
    kind = message.WhichOneof("record")
    master_id, epoch = message.master_id, message.epoch
    first, last = message.first_sequence, message.last_sequence
    if master_id == 0 or not 0 < epoch <= SEQUENCE_MAX or last > SEQUENCE_MAX:
        return None
    length = last - first + 1
    before = Position(epoch, first - 1)
    if kind == "batch":
        is_sound = first >= 1 and length == len(message.batch.signals) > 0
    elif kind == "gap":
        is_sound = first >= 1 and length > 0
    else:
        is_sound = kind in _MARKS and length == 1
        if kind == "epoch_start":
            previous = message.epoch_start.previous
            before = Position(previous.epoch, previous.sequence)
    return Run(cast(Kind, kind), master_id, before, Position(epoch, last), message) if is_sound else None
