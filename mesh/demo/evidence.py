"""Gathers all books for the reconciliation: the masters' and subscribers' own files, and the stores."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ecp_client.copying import Action, Reason
from ecp_client.subscriber.journal import read_journal
from ecp_client.subscriber.journal_format import Entry, EntryType
from execution.common.v1 import signal_pb2, snapshot_pb2
from mesh.demo.provision import MasterCredentials, SubscriberCredentials
from mesh.demo.reconcile import Evidence, MasterBook, Position, SubscriberBook, ToldGap
from mesh.demo.replay import Holdings
from mesh.demo.stores import LogContent, Stores
from mesh.errors import MeshError

ARCHIVE_SECONDS_MAX = 120.0
# The promise is one second; the rest is for a machine that also runs everything else.
PAUSE_REACHES_US_MAX = 5_000_000
ARCHIVE_POLL_SECONDS = 0.2
# Any other reason to skip an opening, such as signals missing, must not occur; it shows as a mismatched position.
PROTECTIONS = frozenset({Reason.SLIPPAGE, Reason.LATENCY, Reason.NOT_HELD, Reason.VOLUME_MIN})
OPENING = frozenset(
    {signal_pb2.SIGNAL_KIND_OPEN, signal_pb2.SIGNAL_KIND_PENDING_PLACE, signal_pb2.SIGNAL_KIND_PENDING_FILL}
)


async def collect(
    stores: Stores, folder: Path, masters: list[MasterCredentials], subscribers: list[SubscriberCredentials]
) -> Evidence:
    """Reads everything, after waiting until the archive has caught up with the log.

    Raises:
        MeshError: a book is missing or damaged.
    """
    master_ids = [master.master_id for master in masters]
    log = await stores.read_log(master_ids)
    await _until_archived(stores, log, master_ids)
    archive = {master_id: await stores.read_archive(master_id) for master_id in master_ids}
    paused = await stores.paused_users([one.user_id for one in subscribers])
    balanced = await stores.is_balanced()
    snapshots = {master_id: await stores.stored_snapshot(master_id) for master_id in master_ids}
    return Evidence(
        masters=[_master_book(folder / "masters", one) for one in masters],
        log=log.signals,
        log_gaps=log.gaps,
        archive=archive,
        snapshots=snapshots,
        subscribers=[
            await asyncio.to_thread(
                _subscriber_book, folder / "subscribers", one, paused.get(one.user_id), log
            )
            for one in subscribers
        ],
        ledger_balanced=balanced,
    )


async def _until_archived(stores: Stores, log: LogContent, master_ids: list[int]) -> None:
    """Waits for the archive, however it ends: if it never catches up, the comparison will say what is missing."""
    logged = sum(len(entries) for entries in log.signals.values())
    try:
        async with asyncio.timeout(ARCHIVE_SECONDS_MAX):
            while await stores.archived_count(master_ids) < logged:  # noqa: ASYNC110  # only the database knows
                await asyncio.sleep(ARCHIVE_POLL_SECONDS)
    except TimeoutError:
        return


def _master_book(folder: Path, master: MasterCredentials) -> MasterBook:
    book = _read_json(folder / f"{master.master_id}.json")
    return MasterBook(
        master_id=master.master_id,
        name=master.role.name,
        acknowledged={int(sequence): bytes.fromhex(digest) for sequence, digest in book["digests"].items()},
        declared_gaps=frozenset(book["refused"]),
        account=snapshot_pb2.Snapshot.FromString(base64.b64decode(book["account"])),
    )


def _subscriber_book(
    folder: Path, subscriber: SubscriberCredentials, paused_at_us: int | None, log: LogContent
) -> SubscriberBook:
    name = subscriber.role.name
    received: dict[int, list[Position]] = {master_id: [] for master_id in subscriber.master_ids}
    refused: defaultdict[int, set[Position]] = defaultdict(set)
    gaps: list[ToldGap] = []
    full_syncs: list[ToldGap] = []
    late_openings = 0
    too_late = _openings_after(log, subscriber, paused_at_us)
    for entry in read_journal(folder / name / "journal"):
        at: Position = (entry.position.epoch, entry.position.sequence)
        if entry.entry_type is EntryType.SIGNAL:
            received[entry.master_id].append(at)
            late_openings += (entry.master_id, at) in too_late
            if is_refusal(entry):
                refused[entry.master_id].add(at)
        elif entry.entry_type is EntryType.GAP:
            after = (entry.previous.epoch, entry.previous.sequence + 1)
            gaps.append(ToldGap(entry.master_id, after, at, entry.kind))
        elif entry.entry_type is EntryType.SNAPSHOT:
            after = (entry.previous.epoch, entry.previous.sequence + 1)
            full_syncs.append(ToldGap(entry.master_id, after, at, 0))
    holdings = _read_json(folder / name / "holdings.json")
    return SubscriberBook(
        name=name,
        user_id=subscriber.user_id,
        volume_percent=subscriber.role.volume_percent,
        was_paused=paused_at_us is not None,
        late_openings=late_openings,
        received=received,
        refused={master_id: frozenset(positions) for master_id, positions in refused.items()},
        gaps=gaps,
        full_syncs=full_syncs,
        holdings={master_id: _holdings(holdings[str(master_id)]) for master_id in subscriber.master_ids},
    )


def is_refusal(entry: Entry) -> bool:
    """Whether a protection kept the account from opening or enlarging what the signal did.

    Of a refused enlargement the stops are followed, so it is a RESIZE, with the protection as its reason.
    """
    if entry.kind not in OPENING or entry.reason not in PROTECTIONS:
        return False
    return entry.action == Action.SKIP or (
        entry.action == Action.RESIZE and entry.reason != Reason.VOLUME_MIN
    )


def _openings_after(
    log: LogContent, subscriber: SubscriberCredentials, paused_at_us: int | None
) -> set[tuple[int, Position]]:
    """What the log took so long after the pause that fanout must have known of it."""
    if paused_at_us is None:
        return set()
    return {
        (master_id, entry.position)
        for master_id in subscriber.master_ids
        for entry in log.signals.get(master_id, ())
        if entry.signal.kind in OPENING and entry.logged_at_us > paused_at_us + PAUSE_REACHES_US_MAX
    }


def _holdings(book: dict[str, Any]) -> Holdings:
    def by_ticket(rows: list[list[int]]) -> dict[int, tuple[int, int]]:
        return {ticket: (side, volume) for ticket, side, volume in rows}

    return Holdings(by_ticket(book["positions"]), by_ticket(book["orders"]))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeshError(f"a book is missing or damaged: {path}: {error}") from error
