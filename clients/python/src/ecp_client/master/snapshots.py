"""When a master sends a snapshot, and making it; it sends nothing itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ecp_client.books import Book
from ecp_client.master.outbox import Outbox
from ecp_client.master.session import MasterSession
from ecp_client.master.settings import MasterSettings
from execution.common.v1.snapshot_pb2 import Snapshot

logger = logging.getLogger("ecp_client.master")

SnapshotProvider = Callable[[], Snapshot]
REFUSED_WAIT_US = 5_000_000


class Snapshots:
    """One master's snapshots: on request, every so many signals, and every so often while there are signals."""

    def __init__(
        self,
        settings: MasterSettings,
        outbox: Outbox,
        put_mutex: threading.Lock,
        server_time_us: Callable[[], int],
        provider: SnapshotProvider | None,
        book: Book | None,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._put_mutex = put_mutex
        self._server_time_us = server_time_us
        self._provider = provider
        self._book = book
        self._waiting: Snapshot | None = None
        self._requested = False
        self._made_at_us = 0
        self._made_at_sequence = outbox.last_sequence
        self._not_before_us = 0

    def request(self) -> None:
        """A snapshot is due now."""
        self._requested = True

    def refused(self, now_us: int) -> None:
        """The last one was not kept: another one is due in a while."""
        self._requested = True
        self._not_before_us = now_us + REFUSED_WAIT_US

    def due(self, session: MasterSession, now_us: int) -> Snapshot | None:
        """The snapshot to send now, if one is due and all that it contains is under way."""
        if self._provider is None and self._book is None:
            return None
        if self._waiting is None and self._is_due(now_us):
            self._waiting = self._make(now_us)
        if self._waiting is None or not session.takes_snapshot(self._waiting):
            return None
        snapshot, self._waiting = self._waiting, None
        return snapshot

    def _is_due(self, now_us: int) -> bool:
        settings = self._settings
        if self._requested:
            return now_us >= self._not_before_us
        new = self._outbox.last_sequence - self._made_at_sequence
        age_us = now_us - self._made_at_us
        if new <= 0 or age_us < settings.snapshot_seconds_min * 1e6:
            return False
        by_count = 0 < settings.snapshot_every_signals <= new
        return by_count or 0 < settings.snapshot_every_seconds * 1e6 <= age_us

    def _make(self, now_us: int) -> Snapshot | None:
        self._requested = False
        self._made_at_us = now_us
        with self._put_mutex:
            last = self._outbox.last_sequence
            if self._book is not None:
                snapshot = self._from_book(self._book, last)
                self._made_at_sequence = last
                return snapshot
        assert self._provider is not None
        self._made_at_sequence = last
        try:
            snapshot = self._provider()
        except Exception:
            # The application's own code: its faults must not stop the signals.
            logger.exception("the snapshot function failed; the next try is when a snapshot is due again")
            return None
        snapshot.master_id = self._settings.master_id
        snapshot.as_of.sequence = snapshot.as_of.sequence or last
        snapshot.taken_at_us = snapshot.taken_at_us or self._server_time_us()
        return snapshot

    def _from_book(self, book: Book, last: int) -> Snapshot | None:
        try:
            return book.to_snapshot(self._settings.master_id, last, self._server_time_us())
        except ValueError as error:
            logger.warning("no snapshot: %s", error)
            return None
