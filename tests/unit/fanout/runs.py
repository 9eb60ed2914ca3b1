"""Short ways to write runs of the log and to read what a stream says."""

from __future__ import annotations

from collections.abc import Iterable

from execution.common.v1 import position_pb2, signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ingest.v1 import frames_pb2, log_pb2
from services.fanout.domain.codec import Message
from services.fanout.domain.cursor import Cursor, Piece
from services.fanout.domain.intake import Intake
from services.fanout.domain.position import Position
from services.fanout.domain.ring import MasterLog, Ring, Slice
from services.fanout.domain.runs import Run, runs_of

OPEN = signal_pb2.SIGNAL_KIND_OPEN
CLOSE = signal_pb2.SIGNAL_KIND_CLOSE
MODIFY = signal_pb2.SIGNAL_KIND_MODIFY


def signals_run(
    first: int,
    count: int = 1,
    *,
    master: int = 1,
    epoch: int = 1,
    kind: signal_pb2.SignalKind.ValueType = OPEN,
    received_at_us: int = 1_000,
) -> log_pb2.LogRun:
    made = [signal_pb2.Signal(kind=kind, position_id=first + index) for index in range(count)]
    return given_run(first, made, master=master, epoch=epoch, received_at_us=received_at_us)


def given_run(
    first: int,
    signals: Iterable[signal_pb2.Signal],
    *,
    master: int = 1,
    epoch: int = 1,
    received_at_us: int = 1_000,
) -> log_pb2.LogRun:
    listed = list(signals)
    return log_pb2.LogRun(
        master_id=master,
        epoch=epoch,
        first_sequence=first,
        last_sequence=first + len(listed) - 1,
        received_at_us=received_at_us,
        batch=frames_pb2.SignalBatch(first_sequence=first, sent_at_us=900, signals=listed),
    )


def gap_run(first: int, last: int, *, master: int = 1, epoch: int = 1) -> log_pb2.LogRun:
    return log_pb2.LogRun(
        master_id=master,
        epoch=epoch,
        first_sequence=first,
        last_sequence=last,
        gap=log_pb2.GapMarker(reason=position_pb2.GAP_REASON_REJECTED, note="stale"),
    )


def epoch_run(
    epoch: int,
    resume: int,
    previous: tuple[int, int],
    *,
    master: int = 1,
    reason: position_pb2.GapReason.ValueType = position_pb2.GAP_REASON_LOG_LOST,
) -> log_pb2.LogRun:
    return log_pb2.LogRun(
        master_id=master,
        epoch=epoch,
        first_sequence=resume,
        last_sequence=resume,
        epoch_start=log_pb2.EpochStart(
            previous=position_pb2.StreamPosition(epoch=previous[0], sequence=previous[1]), reason=reason
        ),
    )


def sound(*runs: log_pb2.LogRun) -> list[Run]:
    """As the log holds them, looked at."""
    return runs_of(log_pb2.LogBatch(runs=runs).SerializeToString())[0]


class Logs:
    """A ring and what feeds it."""

    def __init__(self, *, records_max: int = 1_000, memory_bytes_max: int = 10_000_000) -> None:
        self.ring = Ring(records_per_master_max=records_max, memory_bytes_max=memory_bytes_max)
        self.intake = Intake(self.ring, tracked_positions_max=100)

    def take(self, *runs: log_pb2.LogRun) -> list[MasterLog]:
        return self.intake.apply(sound(*runs))[0]

    def log(self, master: int = 1) -> MasterLog:
        return self.ring.open(master)


def event(message: Message) -> pb.SubscribeResponse:
    return pb.SubscribeResponse.FromString(message.data)


def events(messages: Iterable[Message]) -> list[pb.SubscribeResponse]:
    return [event(message) for message in messages]


def names(messages: Iterable[Message]) -> list[str | None]:
    """The kind of each event."""
    return [one.WhichOneof("event") for one in events(messages)]


def sequences(messages: Iterable[Message]) -> list[int]:
    """Of all signals in the messages."""
    return [one.sequence for response in events(messages) for one in response.signals.signals]


def gap_places(message: Message) -> tuple[Position, Position, Position]:
    """(from, to, resume_after)"""
    gap = event(message).gap
    first = getattr(gap, "from")
    return (
        Position(first.epoch, first.sequence),
        Position(gap.to.epoch, gap.to.sequence),
        Position(gap.resume_after.epoch, gap.resume_after.sequence),
    )


def take_all(cursor: Cursor) -> list[Piece]:
    """Everything that a cursor has to give now."""
    pieces: list[Piece] = []
    while cursor.has_next:
        piece = cursor.take(10_000, 100)
        if piece is not None:
            pieces.append(piece)
    return pieces


def told(pieces: Iterable[Piece]) -> list[int | str]:
    """Sequences of signals, and `GAP` for each Gap."""
    out: list[int | str] = []
    for piece in pieces:
        if isinstance(piece, Slice):
            out.extend(sequences([piece.message]))
        else:
            out.append("GAP")
    return out
