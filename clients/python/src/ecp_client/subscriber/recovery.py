"""What a journal tells a starting client: where it was with each master, and with which books. It writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ecp_client.account import Account
from ecp_client.books import Book
from ecp_client.errors import JournalError
from ecp_client.positions import BEGINNING, Position
from ecp_client.subscriber.journal import read_journal
from ecp_client.subscriber.journal_format import Entry, EntryType, parse_checkpoint
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
    withheld: bool = False
    """A pause withheld signals behind the checkpoint, or before it."""


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
        elif entry.entry_type in (EntryType.SIGNAL, EntryType.GAP, EntryType.PROGRESS, EntryType.SNAPSHOT):
            known.processed = max(known.processed, entry.position)
            if entry.entry_type is EntryType.SIGNAL:
                known.decided[entry.position] = entry
    return masters


def _take_checkpoint(known: Recovered, entry: Entry) -> None:
    serialized, account = parse_checkpoint(entry.body)
    try:
        known.mirror = Book.from_snapshot(Snapshot.FromString(serialized))
        known.account = Account.from_json(account)
    except ValueError as error:
        raise JournalError(f"the checkpoint of master {entry.master_id} cannot be read: {error}") from error
    known.checkpoint = entry.position
    known.processed = max(known.processed, entry.position)
    known.decided.clear()
