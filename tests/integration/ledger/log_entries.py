"""Entries of the signal log for the tests, and what is read from the archive in short."""

from __future__ import annotations

from collections.abc import Iterable

from execution.common.v1 import signal_pb2
from execution.ingest.v1 import log_pb2
from execution.ledger.v1 import archive_service_pb2
from services.common import clock


def signal(number: int, **fields: object) -> signal_pb2.Signal:
    values = {
        "kind": signal_pb2.SIGNAL_KIND_OPEN,
        "position_id": number,
        "symbol": "EURUSD",
        "side": signal_pb2.SIDE_BUY,
        "volume_lots_e8": 10_000_000,
        "price_e8": 107_140_000 + number,
        "occurred_at_us": 1_790_000_000_000_000 + number,
    }
    return signal_pb2.Signal(**(values | fields))


def run(
    master_id: int,
    first: int,
    signals: Iterable[signal_pb2.Signal] | int = 1,
    *,
    epoch: int = 1,
    **fields: object,
) -> log_pb2.LogRun:
    """A run of signals, or of so many signals."""
    if isinstance(signals, int):
        signals = [signal(first + index) for index in range(signals)]
    signals = list(signals)
    values = {"received_at_us": clock.now_us(), "session_epoch": 3, "key_id": "k1"}
    made = log_pb2.LogRun(
        master_id=master_id,
        epoch=epoch,
        first_sequence=first,
        last_sequence=first + len(signals) - 1,
        **(values | fields),
    )
    made.batch.first_sequence, made.batch.sent_at_us = first, 1_790_000_000_000_500
    made.batch.signals.extend(signals)
    return made


def gap(
    master_id: int, first: int, last: int, *, epoch: int = 1, reason: int = 1, note: str = ""
) -> log_pb2.LogRun:
    made = log_pb2.LogRun(
        master_id=master_id,
        epoch=epoch,
        first_sequence=first,
        last_sequence=last,
        received_at_us=clock.now_us(),
    )
    made.gap.reason, made.gap.note = reason, note
    return made


def epoch_start(
    master_id: int, epoch: int, sequence: int, previous: tuple[int, int], *, reason: int = 2
) -> log_pb2.LogRun:
    made = log_pb2.LogRun(
        master_id=master_id,
        epoch=epoch,
        first_sequence=sequence,
        last_sequence=sequence,
        received_at_us=clock.now_us(),
    )
    made.epoch_start.previous.epoch, made.epoch_start.previous.sequence = previous
    made.epoch_start.reason = reason
    return made


def positions(records: Iterable[archive_service_pb2.ArchivedRecord]) -> list[tuple]:
    """Records in short: ("signal", epoch, sequence), or ("gap", from, to, resume_after)."""
    short: list[tuple] = []
    for record in records:
        if record.HasField("signal"):
            short.append(("signal", record.signal.epoch, record.signal.sequence))
        else:
            one = record.gap
            places = (getattr(one, "from"), one.to, one.resume_after)
            short.append(("gap", *((place.epoch, place.sequence) for place in places)))
    return short


def signals(first: int, last: int, epoch: int = 1) -> list[tuple]:
    """What `positions` makes of so many signals."""
    return [("signal", epoch, sequence) for sequence in range(first, last + 1)]
