"""Brings outbox and session together: what the outbox has goes out, what the server says is remembered; no sockets."""

from __future__ import annotations

import dataclasses
import logging
import threading

from ecp_client.clock import ServerClock, monotonic_us, wall_us
from ecp_client.master import events
from ecp_client.master.endings import OUTBOX_BEHIND
from ecp_client.master.handshake import Resume
from ecp_client.master.outbox import Outbox
from ecp_client.master.session import MasterSession
from ecp_client.master.snapshots import Snapshots
from execution.common.v1 import position_pb2

logger = logging.getLogger("ecp_client.master")

# Other refusals of a snapshot would come again; the next one is sent when it is due.
RETRYABLE_SNAPSHOTS = frozenset(("RATE_LIMITED", "UNAVAILABLE", "DRAINING"))


@dataclasses.dataclass(slots=True)
class MasterStats:
    """Counts since the client was made."""

    put: int = 0
    sent: int = 0
    """Signals written to a connection, resent ones included."""
    acknowledged: int = 0
    """Last acknowledged sequence."""
    refused: int = 0
    connections: int = 0
    snapshots: int = 0


class Delivery:
    """One master's outbox through any number of sessions, one after the other."""

    def __init__(
        self, outbox: Outbox, snapshots: Snapshots, clock: ServerClock, put_mutex: threading.Lock
    ) -> None:
        """`put_mutex` is held by whoever puts signals in."""
        self.stats = MasterStats()
        self._outbox = outbox
        self._snapshots = snapshots
        self._clock = clock
        self._put_mutex = put_mutex
        self._maybe_sent = outbox.maybe_sent

    def resume(self) -> Resume:
        """What the next session must know."""
        outbox = self._outbox
        return Resume(outbox.epoch, outbox.acknowledged, self._maybe_sent, outbox.begin_epoch)

    def take_events(self, session: MasterSession) -> list[events.MasterEvent]:
        """Remembers what the session learnt; returns what the application is to be told, in order."""
        told: list[events.MasterEvent] = []
        for event in session.take_events():
            if isinstance(event, events.Acknowledged):
                self.stats.acknowledged = event.sequence
                self._outbox.acknowledge(event.epoch, event.sequence)
            elif isinstance(event, events.SessionOpened):
                told += self._take_welcome(event, session)
            elif isinstance(event, events.SignalRefused):
                self.stats.refused += 1
                logger.warning("signal %d was refused: %s %s", event.sequence, event.code, event.message)
            elif isinstance(event, events.SnapshotRequested):
                self._snapshots.request()
            elif isinstance(event, events.SnapshotRefused):
                if event.code in RETRYABLE_SNAPSHOTS:
                    self._snapshots.refused(monotonic_us())
                else:
                    logger.error("the snapshot was refused: %s %s", event.code, event.message)
            elif isinstance(event, events.SnapshotStored):
                self.stats.snapshots += 1
            told.append(event)
        if session.end is not None and session.end.code == OUTBOX_BEHIND:
            self._outbox.remember(begin_epoch=True)
        return told

    def _take_welcome(self, event: events.SessionOpened, session: MasterSession) -> list[events.MasterEvent]:
        """Signals that were never sent get sequences behind the server's; everything before counts as acknowledged."""
        outbox = self._outbox
        told: list[events.MasterEvent] = []
        with self._put_mutex:
            by = event.sequence - self._maybe_sent
            if by > 0 and outbox.last_sequence > self._maybe_sent:
                told.append(events.SequencesMoved(self._maybe_sent, outbox.last_sequence, by))
                outbox.move(self._maybe_sent, event.epoch, event.sequence)
            outbox.acknowledge(event.epoch, event.sequence)
            self._maybe_sent = max(self._maybe_sent, event.sequence)
        outbox.remember(
            begin_epoch=False if outbox.begin_epoch else None,
            clock_offset_us=self._clock.at(monotonic_us()) - wall_us(),
        )
        self.stats.acknowledged = event.sequence
        if session.welcome.snapshot_wanted or event.new_epoch:
            self._snapshots.request()
        return told

    def feed(self, session: MasterSession, now_us: int) -> list[events.MasterEvent]:
        """Gives the session as much of the outbox as the server takes, in as few frames as possible."""
        told: list[events.MasterEvent] = []
        outbox = self._outbox
        while session.next_sequence <= outbox.last_sequence and (room := session.room(now_us)) > 0:
            count = min(room, session.batch_signals_max)
            payloads = outbox.read(session.next_sequence, count, session.batch_bytes_max)
            if payloads:
                session.send_signals(payloads, now_us)
                self.stats.sent += len(payloads)
            elif not self._declare_hole(session, now_us, told):
                break
            self._maybe_sent = max(self._maybe_sent, session.next_sequence - 1)
        snapshot = self._snapshots.due(session, now_us)
        if snapshot is not None:
            session.send_snapshot(snapshot, now_us)
        return told

    def _declare_hole(self, session: MasterSession, now_us: int, told: list[events.MasterEvent]) -> bool:
        first = session.next_sequence
        last = self._outbox.hole_from(first)
        if last is None:
            return False
        logger.error("the outbox lost the signals %d to %d; they are declared as a gap", first, last)
        reason = position_pb2.GAP_REASON_MASTER_LOST
        session.send_gap_fill(last, reason, "not in the master's outbox", now_us)
        told.append(events.SignalsLost(first, last))
        return True
