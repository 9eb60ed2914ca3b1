"""Compares what the masters were promised, what the log and the archive hold, and what each subscriber's own books say.

Pure: it gets the books that mesh/demo/evidence.py read, and never the demo's counters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from mesh.demo.replay import Holdings, follow, replay

DIFFERENCES_SHOWN_MAX = 100
NEVER_WITHHELD = frozenset(
    {
        signal_pb2.SIGNAL_KIND_CLOSE,
        signal_pb2.SIGNAL_KIND_PARTIAL_CLOSE,
        signal_pb2.SIGNAL_KIND_CLOSE_BY,
    }
)

Position = tuple[int, int]
"""(epoch, sequence)."""


@dataclass(frozen=True, slots=True)
class LoggedSignal:
    """One signal as a store holds it; digest is of its content; the archive leaves logged_at_us out."""

    position: Position
    digest: bytes
    signal: signal_pb2.Signal
    logged_at_us: int = 0


@dataclass(frozen=True, slots=True)
class MasterBook:
    """A master's own record: the digest of each sequence it saw acknowledged, and its account at the end."""

    master_id: int
    name: str
    acknowledged: Mapping[int, bytes]
    declared_gaps: frozenset[int]
    account: snapshot_pb2.Snapshot


@dataclass(frozen=True, slots=True)
class ToldGap:
    """A gap as a subscriber was told it; both ends are included."""

    master_id: int
    first: Position
    last: Position
    reason: int

    def covers(self, position: Position) -> bool:
        return self.first <= position <= self.last


@dataclass(frozen=True, slots=True)
class SubscriberBook:
    """A subscriber's own books: what came, in order, what it refused, what it was told is missing, what it holds.

    full_syncs are the positions that a snapshot stood for. late_openings counts signals that open risk, were
    logged long after the subscriber was paused, and came nevertheless.
    """

    name: str
    user_id: str
    volume_percent: int
    was_paused: bool
    late_openings: int
    received: Mapping[int, list[Position]]
    refused: Mapping[int, frozenset[Position]]
    gaps: list[ToldGap]
    full_syncs: list[ToldGap]
    holdings: Mapping[int, Holdings]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All books. log, archive and the stored snapshots are by master."""

    masters: list[MasterBook]
    log: Mapping[int, list[LoggedSignal]]
    log_gaps: Mapping[int, list[ToldGap]]
    archive: Mapping[int, list[LoggedSignal]]
    snapshots: Mapping[int, snapshot_pb2.Snapshot | None]
    subscribers: list[SubscriberBook]
    ledger_balanced: bool


@dataclass(slots=True)
class Reconciliation:
    """What the comparison found. Sound when `differences` is empty."""

    acknowledged: int = 0
    logged: int = 0
    archived: int = 0
    expected: int = 0
    received: int = 0
    duplicates: int = 0
    missing: int = 0
    unordered: int = 0
    withheld: int = 0
    resynced: int = 0
    unexplained_gaps: int = 0
    mismatched_positions: int = 0
    compared_positions: int = 0
    differences: list[str] = field(default_factory=list)
    difference_count: int = 0

    def differ(self, text: str) -> None:
        """Notes a difference; only the first DIFFERENCES_SHOWN_MAX keep their text."""
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_SHOWN_MAX:
            self.differences.append(text)


def reconcile(evidence: Evidence) -> Reconciliation:
    """Compares all books with one another."""
    found = Reconciliation()
    for master in evidence.masters:
        _compare_master(master, evidence, found)
    for subscriber in evidence.subscribers:
        if subscriber.late_openings:
            found.differ(f"{subscriber.name}: got {subscriber.late_openings} openings long after its pause")
        for master in evidence.masters:
            if master.master_id in subscriber.received:
                _compare_stream(subscriber, master, evidence, found)
    if not evidence.ledger_balanced:
        found.differ("the ledger's books do not balance")
    return found


def _compare_master(master: MasterBook, evidence: Evidence, found: Reconciliation) -> None:
    logged = evidence.log.get(master.master_id, [])
    archived = evidence.archive.get(master.master_id, [])
    found.acknowledged += len(master.acknowledged)
    found.logged += len(logged)
    found.archived += len(archived)
    _same_signals(master, "log", logged, found)
    _same_signals(master, "archive", archived, found)
    if (held := replay(entry.signal for entry in logged)) != Holdings.of_snapshot(master.account):
        found.differ(f"{master.name}: its account and the log disagree on what is open: {held}")
    stored = evidence.snapshots.get(master.master_id)
    if stored is None or Holdings.of_snapshot(stored) != Holdings.of_snapshot(master.account):
        found.differ(f"{master.name}: the stored snapshot is not its account")


def _same_signals(master: MasterBook, store: str, entries: list[LoggedSignal], found: Reconciliation) -> None:
    sequences = [entry.position[1] for entry in entries]
    for sequence, count in Counter(sequences).items():
        if count > 1:
            found.differ(f"{master.name}: the {store} holds sequence {sequence} {count} times")
    if sequences != sorted(sequences):
        found.differ(f"{master.name}: the {store} is out of order")
    held = {entry.position[1]: entry.digest for entry in entries}
    for sequence in sorted(master.acknowledged.keys() - held.keys()):
        found.differ(f"{master.name}: sequence {sequence} was acknowledged and is not in the {store}")
    for sequence in sorted(held.keys() - master.acknowledged.keys()):
        found.differ(f"{master.name}: sequence {sequence} is in the {store} and was not acknowledged")
    for sequence in held.keys() & master.acknowledged.keys():
        if held[sequence] != master.acknowledged[sequence]:
            found.differ(f"{master.name}: sequence {sequence} has another content in the {store}")


def _compare_stream(
    subscriber: SubscriberBook, master: MasterBook, evidence: Evidence, found: Reconciliation
) -> None:
    label = f"{subscriber.name} of {master.name}"
    logged = evidence.log.get(master.master_id, [])
    withheld = _explain_gaps(label, subscriber, master, evidence, found)
    resynced = _explain_full_syncs(label, subscriber, master, logged, found) - withheld
    expected = [entry.position for entry in logged if entry.position not in withheld | resynced]
    received = subscriber.received[master.master_id]
    counts = Counter(received)
    found.expected += len(expected)
    found.received += len(counts)
    found.withheld += len(withheld)
    found.resynced += len(resynced)
    _count(label, "received twice", (p for p, count in counts.items() if count > 1), found, "duplicates")
    _count(label, "never received", (p for p in expected if p not in counts), found, "missing")
    stray = counts.keys() - set(expected)
    _count(label, "received and not in the log, or withheld", stray, found, "duplicates")
    if received != sorted(received):
        found.unordered += 1
        found.differ(f"{label}: received out of order")
    if resynced:
        _compare_after_full_sync(label, subscriber, master, found)
    else:
        _compare_holdings(label, subscriber, master, logged, withheld, found)


def _count(label: str, what: str, positions: Iterable[Position], found: Reconciliation, counter: str) -> None:
    for position in positions:
        setattr(found, counter, getattr(found, counter) + 1)
        found.differ(f"{label}: {position} was {what}")


def _explain_gaps(
    label: str, subscriber: SubscriberBook, master: MasterBook, evidence: Evidence, found: Reconciliation
) -> frozenset[Position]:
    """The positions that were rightly withheld; every other told gap must stand in the log as well."""
    logged = {entry.position: entry.signal.kind for entry in evidence.log.get(master.master_id, [])}
    known = evidence.log_gaps.get(master.master_id, [])
    withheld: set[Position] = set()
    for gap in (gap for gap in subscriber.gaps if gap.master_id == master.master_id):
        covered = {position for position in logged if gap.covers(position)}
        is_withheld = gap.reason == position_pb2.GAP_REASON_WITHHELD and subscriber.was_paused
        allowed = is_withheld and not any(logged[position] in NEVER_WITHHELD for position in covered)
        in_log = not covered and any(hole.covers(gap.first) and hole.covers(gap.last) for hole in known)
        if allowed:
            withheld |= covered
        elif not in_log:
            found.unexplained_gaps += 1
            found.differ(
                f"{label}: the gap {gap.first} to {gap.last} (reason {gap.reason}) has no explanation"
            )
    return frozenset(withheld)


def _explain_full_syncs(
    label: str,
    subscriber: SubscriberBook,
    master: MasterBook,
    logged: list[LoggedSignal],
    found: Reconciliation,
) -> frozenset[Position]:
    """The positions that snapshots stood for; only who was paused, and so lacks signals, may need one here."""
    syncs = [sync for sync in subscriber.full_syncs if sync.master_id == master.master_id]
    covered = frozenset(e.position for e in logged if any(sync.covers(e.position) for sync in syncs))
    if covered and not subscriber.was_paused:
        found.differ(f"{label}: needed a full sync over {len(covered)} signals and was never paused")
    return covered


def _compare_after_full_sync(
    label: str, subscriber: SubscriberBook, master: MasterBook, found: Reconciliation
) -> None:
    """Who was paused may hold less than the master, never anything else or more."""
    most = Holdings.of_snapshot(master.account).scaled(subscriber.volume_percent).positions
    for ticket, (side, volume) in subscriber.holdings[master.master_id].positions.items():
        most_side, most_volume = most.get(ticket, (side, 0))
        found.compared_positions += 1
        if side != most_side or volume > most_volume:
            found.mismatched_positions += 1
            found.differ(f"{label}: position {ticket}: holds {(side, volume)}, at most {most.get(ticket)}")


def _compare_holdings(
    label: str,
    subscriber: SubscriberBook,
    master: MasterBook,
    logged: list[LoggedSignal],
    withheld: frozenset[Position],
    found: Reconciliation,
) -> None:
    refused = subscriber.refused.get(master.master_id, frozenset())
    steps = (
        (entry.signal, entry.position not in refused) for entry in logged if entry.position not in withheld
    )
    wanted = follow(steps) if refused or withheld else Holdings.of_snapshot(master.account)
    wanted = wanted.scaled(subscriber.volume_percent)
    held = subscriber.holdings[master.master_id]
    found.compared_positions += len(wanted.positions)
    for difference in held.differences(wanted):
        found.mismatched_positions += 1
        found.differ(f"{label}: {difference}")
