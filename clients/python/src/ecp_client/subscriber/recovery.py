"""What a journal tells a starting client: where it was with each master, and with which books. It writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from ecp_client.account import Account
from ecp_client.books import Book
from ecp_client.copying import Scale
from ecp_client.errors import JournalError
from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.journal import read_journal
from ecp_client.subscriber.journal_format import DEGRADED, WITHHELD, Entry, EntryType, parse_checkpoint
from ecp_client.subscriber.statements import load_statements
from execution.common.v1 import position_pb2
from execution.common.v1.snapshot_pb2 import Snapshot


@dataclass(slots=True)
class Recovered:
    """One master as of the journal's end."""

    checkpoint: Position | None = None
    """Mirror and account are as of here."""
    mirror: Book = field(default_factory=Book)
    account: Account = field(default_factory=Account)
    processed: Position = BEGINNING
    """The last position in the journal."""
    decided: dict[Position, Entry] = field(default_factory=dict)
    """Signals behind the checkpoint, with what was decided."""
    scales: dict[Position, Scale] = field(default_factory=dict)
    """What those opened is scaled by, where that is not the multiplier of the settings."""
    told: list[Entry] = field(default_factory=list)
    """What user and broker did behind the checkpoint."""
    withheld: bool = False
    """A pause withheld signals, and no full sync has made up for them."""
    degraded_at: Position | None = None
    """A gap ended here, and no full sync has healed it."""


def recover(folder: Path) -> dict[int, Recovered]:
    """What the journal in `folder` says about each master; empty when there is none.

    Raises:
        JournalError: it is damaged.
    """
    return recover_entries(read_journal(folder))


def recover_entries(entries: Iterable[Entry]) -> dict[int, Recovered]:
    """The same from entries, oldest first."""
    masters: dict[int, Recovered] = {}
    for entry in entries:
        known = masters.setdefault(entry.master_id, Recovered())
        if entry.entry_type is EntryType.CHECKPOINT:
            _take_checkpoint(known, entry)
        elif entry.entry_type in (EntryType.CLOSED_BY_USER, EntryType.REFUSED_BY_BROKER):
            known.told.append(entry)
        elif entry.entry_type is EntryType.SCALE:
            known.scales[entry.position] = _scale(entry)
        elif entry.entry_type in (EntryType.SIGNAL, EntryType.GAP, EntryType.PROGRESS, EntryType.SNAPSHOT):
            known.processed = max(known.processed, entry.position)
            if entry.entry_type is EntryType.SIGNAL:
                known.decided[entry.position] = entry
            elif entry.entry_type is EntryType.GAP:
                _take_gap(known, entry)
            elif entry.entry_type is EntryType.SNAPSHOT:
                _take_snapshot(known, entry)
    return masters


def _take_gap(known: Recovered, entry: Entry) -> None:
    if entry.kind == position_pb2.GAP_REASON_WITHHELD:
        known.withheld = True
    else:
        known.degraded_at = max(known.degraded_at or BEGINNING, entry.position)


def _take_snapshot(known: Recovered, entry: Entry) -> None:
    known.withheld = False
    if known.degraded_at is not None and entry.position >= known.degraded_at:
        known.degraded_at = None


def _take_checkpoint(known: Recovered, entry: Entry) -> None:
    try:
        serialized, account, statements = parse_checkpoint(entry.body)
        known.mirror = Book.from_snapshot(Snapshot.FromString(serialized))
        load_statements(known.mirror, statements)
        known.account = Account.from_json(account)
    except (DecodeError, ValueError) as error:
        raise JournalError(f"the checkpoint of master {entry.master_id} cannot be read: {error}") from error
    known.withheld = bool(entry.kind & WITHHELD)
    known.degraded_at = entry.previous if entry.kind & DEGRADED else None
    known.checkpoint = entry.position
    known.processed = max(known.processed, entry.position)
    known.decided.clear()
    known.scales.clear()
    known.told.clear()


def _scale(entry: Entry) -> Scale:
    try:
        return Scale.from_text(entry.body.decode("ascii"))
    except ValueError as error:
        raise JournalError(f"a scale of master {entry.master_id} cannot be read: {error}") from error
