"""Signals and gaps as rows of the archive, and back; pure, and exact both ways."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, TypeAlias

from google.protobuf.unknown_fields import UnknownFieldSet

from execution.common.v1 import position_pb2, signal_pb2
from execution.ledger.v1 import archive_service_pb2
from services.ledger.domain.log_runs import Run, RunKind

Row: TypeAlias = "tuple[Any, ...]"

PLACE_COLUMNS: Final = (
    "received_at",
    "master_id",
    "epoch",
    "sequence",
    "sent_at_us",
    "session_epoch",
    "key_id",
)
SIGNAL_COLUMNS: Final = (
    "kind",
    "position_id",
    "symbol",
    "side",
    "volume_lots_e8",
    "price_e8",
    "stop_loss_e8",
    "take_profit_e8",
    "occurred_at_us",
    "order_id",
    "order_type",
    "stop_limit_price_e8",
    "expires_at_us",
    "opposite_position_id",
    "comment",
    "magic",
    "raw",
)
COLUMNS: Final = PLACE_COLUMNS + SIGNAL_COLUMNS
"""The order of the values in a Row."""
SEQUENCE_INDEX: Final = PLACE_COLUMNS.index("sequence")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TWO_63: Final = 2**63
_TWO_64: Final = 2**64


class Columns(Protocol):
    """A row whose values are found by the names of their columns."""

    def __getitem__(self, name: str, /) -> Any:
        """The value of one column."""
        ...


@dataclass(frozen=True, slots=True)
class GapRow:
    """Sequences `first` to `last` of `previous_epoch` are missing (none when first > last); `end` is behind them.

    A hole was found by the archiver: what it covers may still come in, and then counts.
    """

    master_id: int
    epoch: int
    last: int
    first: int
    previous_epoch: int
    reason: int
    note: str
    session_epoch: int
    key_id: str
    received_at: datetime
    is_hole: bool = False

    @property
    def end(self) -> tuple[int, int]:
        """The position that a reader holds after it."""
        return self.epoch, self.last

    @property
    def predecessor(self) -> tuple[int, int]:
        """The last position before it."""
        return self.previous_epoch, self.first - 1


def rows_of(run: Run, first: int, last: int) -> list[Row]:
    """The rows of the run's signals with sequences `first` to `last`."""
    message, batch = run.message, run.message.batch
    received_at, sent_at_us = run.received_at, batch.sent_at_us or None
    session_epoch, key_id = _signed(message.session_epoch), _text(message.key_id)
    master_id, epoch, start = message.master_id, message.epoch, message.first_sequence
    return [
        (received_at, master_id, epoch, sequence, sent_at_us, session_epoch, key_id, *signal_values(signal))
        for sequence, signal in enumerate(batch.signals[first - start : last - start + 1], first)
    ]


def signal_values(signal: signal_pb2.Signal) -> Row:
    """The values of SIGNAL_COLUMNS: zero and empty become None, numbers from 2^63 on become negative.

    `raw` holds the whole signal where the other columns cannot: fields that only a newer contract knows, and zero
    bytes, which PostgreSQL's text cannot hold.
    """
    symbol, comment = signal.symbol, signal.comment
    raw = None
    if len(UnknownFieldSet(signal)) or "\0" in comment or "\0" in symbol:
        raw = signal.SerializeToString(deterministic=True)
        symbol, comment = symbol.replace("\0", ""), comment.replace("\0", "")
    return (
        signal.kind or None,
        _signed(signal.position_id),
        symbol or None,
        signal.side or None,
        signal.volume_lots_e8 or None,
        signal.price_e8 or None,
        signal.stop_loss_e8 or None,
        signal.take_profit_e8 or None,
        signal.occurred_at_us or None,
        _signed(signal.order_id),
        signal.order_type or None,
        signal.stop_limit_price_e8 or None,
        signal.expires_at_us or None,
        _signed(signal.opposite_position_id),
        comment or None,
        _signed(signal.magic),
        raw,
    )


def sequenced_of(row: Columns) -> signal_pb2.SequencedSignal:
    """The signal with its place, as the log had it, from a row that has all COLUMNS."""
    return signal_pb2.SequencedSignal(
        master_id=row["master_id"],
        epoch=row["epoch"],
        sequence=row["sequence"],
        previous_epoch=row["epoch"],
        previous_sequence=row["sequence"] - 1,
        signal=_signal_of(row),
        sent_at_us=row["sent_at_us"] or 0,
        received_at_us=(row["received_at"] - _EPOCH) // timedelta(microseconds=1),
    )


def _signal_of(row: Columns) -> signal_pb2.Signal:
    if row["raw"] is not None:
        return signal_pb2.Signal.FromString(row["raw"])
    return signal_pb2.Signal(
        kind=signal_pb2.SignalKind.ValueType(row["kind"] or 0),
        position_id=_unsigned(row["position_id"]),
        symbol=row["symbol"] or "",
        side=signal_pb2.Side.ValueType(row["side"] or 0),
        volume_lots_e8=row["volume_lots_e8"] or 0,
        price_e8=row["price_e8"] or 0,
        stop_loss_e8=row["stop_loss_e8"] or 0,
        take_profit_e8=row["take_profit_e8"] or 0,
        occurred_at_us=row["occurred_at_us"] or 0,
        order_id=_unsigned(row["order_id"]),
        order_type=signal_pb2.OrderType.ValueType(row["order_type"] or 0),
        stop_limit_price_e8=row["stop_limit_price_e8"] or 0,
        expires_at_us=row["expires_at_us"] or 0,
        opposite_position_id=_unsigned(row["opposite_position_id"]),
        comment=row["comment"] or "",
        magic=_unsigned(row["magic"]),
    )


def gap_row_of(run: Run) -> GapRow:
    """The row of a gap or of a start of an epoch."""
    message = run.message
    previous_epoch, before = run.predecessor
    starts = run.kind is RunKind.EPOCH_START
    return GapRow(
        master_id=message.master_id,
        epoch=message.epoch,
        last=message.last_sequence,
        first=before + 1,
        previous_epoch=previous_epoch,
        reason=message.epoch_start.reason if starts else message.gap.reason,
        note="" if starts else message.gap.note.replace("\0", ""),
        session_epoch=_signed(message.session_epoch) or 0,
        key_id=_text(message.key_id) or "",
        received_at=run.received_at,
    )


def hole_row_of(run: Run, after: tuple[int, int]) -> GapRow:
    """The row that stands for what is missing between the position `after` and the run."""
    epoch, last = run.predecessor
    return GapRow(
        master_id=run.master_id,
        epoch=epoch,
        last=last,
        first=after[1] + 1,
        previous_epoch=after[0],
        reason=position_pb2.GAP_REASON_TRIMMED,
        note="the log no longer held it when it was to be archived",
        session_epoch=0,
        key_id="",
        received_at=run.received_at,
        is_hole=True,
    )


def gap_to_pb(gap: GapRow, first: int) -> archive_service_pb2.ArchivedGap:
    """The gap as message, told from sequence `first` on."""
    message = archive_service_pb2.ArchivedGap(
        master_id=gap.master_id,
        to=position_pb2.StreamPosition(epoch=gap.previous_epoch, sequence=gap.last),
        reason=position_pb2.GapReason.ValueType(gap.reason),
        resume_after=position_pb2.StreamPosition(epoch=gap.epoch, sequence=gap.last),
    )
    # `from` is a word of Python.
    getattr(message, "from").CopyFrom(position_pb2.StreamPosition(epoch=gap.previous_epoch, sequence=first))
    return message


def _signed(number: int) -> int | None:
    return (number if number < _TWO_63 else number - _TWO_64) or None


def _unsigned(number: int | None) -> int:
    return 0 if number is None else number % _TWO_64


def _text(text: str) -> str | None:
    return text.replace("\0", "") or None
