"""The master's client for programs without an event loop: it runs one in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from ecp_client.books import Book
from ecp_client.looping import LoopThread
from ecp_client.master.client import Master
from ecp_client.master.delivery import MasterStats
from ecp_client.master.events import MasterEvent, MasterState
from ecp_client.master.settings import MasterSettings
from ecp_client.master.snapshots import SnapshotProvider
from execution.common.v1.signal_pb2 import Signal

# Beyond the client's own time-outs, for the loop's thread to answer.
ANSWER_SECONDS_MAX = 30.0


class MasterThread:
    """As Master, for a plain thread. `send` never waits for the network: it returns when the outbox has the signal.

    `on_event` and `snapshot` are called in the client's own thread, not in the one that trades; a call that waits for
    the client raises WrongThreadError there.
    """

    def __init__(
        self,
        settings: MasterSettings,
        *,
        on_event: Callable[[MasterEvent], None] | None = None,
        snapshot: SnapshotProvider | None = None,
        book: Book | None = None,
    ) -> None:
        """Opens the outbox; `start`, or entering the context, connects. Raises as Master does."""
        self._loop = LoopThread(f"ecp-master-{settings.master_id}")
        # For the last acknowledgements, and for the server's goodbye.
        self._close_seconds_max = ANSWER_SECONDS_MAX + 2 * settings.close_timeout_seconds
        self._closed = False
        try:
            self._master = self._loop.call(
                _make(settings, on_event, snapshot, book), timeout_seconds=ANSWER_SECONDS_MAX
            )
        except BaseException:
            self._loop.stop()
            raise

    def start(self) -> None:
        """Begins to connect, and returns at once."""
        self._loop.call(self._master.start(), timeout_seconds=ANSWER_SECONDS_MAX)

    def close(self) -> None:
        """As Master.close; ends the thread. Safe to repeat."""
        self._loop.check_other()
        if self._closed:
            return
        self._closed = True
        try:
            self._loop.call(self._master.close(), timeout_seconds=self._close_seconds_max)
        finally:
            self._loop.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, signal: Signal) -> int:
        """Puts a signal into the outbox and returns its sequence. Raises as Master.put does."""
        return self._master.put(signal)

    def send_many(self, signals: Sequence[Signal]) -> range:
        """Puts several signals in, all or none; returns their sequences. Raises as Master.put does."""
        return self._master.put_many(signals)

    def send_snapshot(self) -> None:
        """Has a snapshot made and sent soon."""
        self._loop.call_soon(self._master.send_snapshot)

    def wait_open(self, timeout_seconds: float) -> None:
        """As Master.wait_open."""
        self._loop.call(
            self._master.wait_open(timeout_seconds), timeout_seconds=timeout_seconds + ANSWER_SECONDS_MAX
        )

    def wait_acknowledged(self, sequence: int, timeout_seconds: float) -> None:
        """As Master.wait_acknowledged."""
        waiting = self._master.wait_acknowledged(sequence, timeout_seconds)
        self._loop.call(waiting, timeout_seconds=timeout_seconds + ANSWER_SECONDS_MAX)

    def wait_all_acknowledged(self, timeout_seconds: float) -> None:
        """As Master.wait_all_acknowledged."""
        waiting = self._master.wait_all_acknowledged(timeout_seconds)
        self._loop.call(waiting, timeout_seconds=timeout_seconds + ANSWER_SECONDS_MAX)

    def set_license_token(self, token: str) -> None:
        """As Master.set_license_token."""
        self._master.set_license_token(token)

    @property
    def state(self) -> MasterState:
        """Where the client stands."""
        return self._master.state

    @property
    def stats(self) -> MasterStats:
        """Counts since the client was made."""
        return self._master.stats

    @property
    def acknowledged(self) -> tuple[int, int]:
        """Epoch and sequence of the last acknowledged position."""
        return self._master.acknowledged

    @property
    def last_sequence(self) -> int:
        """Sequence of the last signal that was put in."""
        return self._master.last_sequence

    @property
    def pending(self) -> int:
        """How many sequences are not acknowledged."""
        return self._master.pending

    def server_time_us(self) -> int:
        """The server's time now, as well as it is known."""
        return self._master.server_time_us()


async def _make(
    settings: MasterSettings,
    on_event: Callable[[MasterEvent], None] | None,
    snapshot: SnapshotProvider | None,
    book: Book | None,
) -> Master:
    return Master(settings, on_event=on_event, snapshot=snapshot, book=book)
