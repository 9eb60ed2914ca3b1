"""Runs of the signal log as the archive takes them: parsed and checked; pure, it reads no log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from google.protobuf.message import DecodeError

from execution.ingest.v1 import log_pb2
from services.ledger.domain.fields import INT64_MAX, SEQUENCE_MAX

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RECEIVED_US_MIN: Final = 946_684_800_000_000
"""Start of the year 2000."""
_RECEIVED_US_MAX: Final = 7_258_118_400_000_000
"""Start of the year 2200."""


class RunKind(StrEnum):
    """What a run is; the values are the names of the contract's fields."""

    BATCH = "batch"
    GAP = "gap"
    EPOCH_START = "epoch_start"


@dataclass(frozen=True, slots=True)
class Run:
    """A checked run: positions (epoch, first) to (epoch, last) of one master, at one place of the log."""

    entry_id: str
    number: int
    kind: RunKind
    message: log_pb2.LogRun

    @property
    def master_id(self) -> int:
        """The master."""
        return self.message.master_id

    @property
    def epoch(self) -> int:
        """Epoch of all its positions."""
        return self.message.epoch

    @property
    def first(self) -> int:
        """First sequence; of a start of an epoch the position that it sets."""
        return self.message.first_sequence

    @property
    def last(self) -> int:
        """Last sequence."""
        return self.message.last_sequence

    @property
    def end(self) -> tuple[int, int]:
        """The last position."""
        return self.epoch, self.last

    @property
    def predecessor(self) -> tuple[int, int]:
        """The position that it follows in the log."""
        if self.kind is RunKind.EPOCH_START:
            previous = self.message.epoch_start.previous
            return previous.epoch, previous.sequence
        return self.epoch, self.first - 1

    @property
    def received_at(self) -> datetime:
        """When the front door had checked it."""
        return _EPOCH + timedelta(microseconds=self.message.received_at_us)

    @property
    def row_count(self) -> int:
        """How many signals it holds."""
        return len(self.message.batch.signals) if self.kind is RunKind.BATCH else 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """What cannot be archived as it came, with its bytes; run_number -1 stands for the whole entry."""

    entry_id: str
    run_number: int
    reason: str
    detail: str
    payload: bytes


def parse(entry_id: str, payload: bytes) -> tuple[list[Run], list[Refusal]]:
    """The runs of one entry that concern the archive, and what of it cannot be understood."""
    try:
        batch = log_pb2.LogBatch.FromString(payload)
    except DecodeError as error:
        return [], [Refusal(entry_id, -1, "UNPARSABLE", str(error)[:200], payload)]
    runs: list[Run] = []
    refusals: list[Refusal] = []
    for number, message in enumerate(batch.runs):
        kind = message.WhichOneof("record")
        if kind == "snapshot":
            continue
        wrong = "; ".join(_faults(message, kind))
        if wrong:
            refusals.append(refusal_of(entry_id, number, message, "INVALID_RUN", wrong))
        else:
            runs.append(Run(entry_id, number, RunKind(str(kind)), message))
    return runs, refusals


def refusal_of(entry_id: str, number: int, message: log_pb2.LogRun, reason: str, detail: str) -> Refusal:
    """The refusal of one run."""
    return Refusal(entry_id, number, reason, detail, message.SerializeToString())


def _faults(run: log_pb2.LogRun, kind: str | None) -> Iterator[str]:
    if not 1 <= run.master_id <= INT64_MAX:
        yield f"master_id {run.master_id}"
    if not 1 <= run.epoch <= INT64_MAX:
        yield f"epoch {run.epoch}"
    if run.last_sequence > SEQUENCE_MAX:
        yield f"last_sequence {run.last_sequence}"
    if not _RECEIVED_US_MIN <= run.received_at_us < _RECEIVED_US_MAX:
        yield f"received_at_us {run.received_at_us}"
    first, last = run.first_sequence, run.last_sequence
    match kind:
        case "batch":
            if first < 1 or last - first + 1 != len(run.batch.signals) or not run.batch.signals:
                yield f"{len(run.batch.signals)} signals for sequences {first} to {last}"
        case "gap":
            if not 1 <= first <= last:
                yield f"a gap from {first} to {last}"
        case "epoch_start":
            previous = run.epoch_start.previous
            if first != last or previous.epoch >= run.epoch or previous.sequence > last:
                yield f"a start of epoch {run.epoch} at {first} to {last} after {previous.epoch}/{previous.sequence}"
        case _:
            yield "a record of a kind that is not known here"
