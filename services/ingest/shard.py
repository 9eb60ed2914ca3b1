"""Writes one shard of the log: group commit of all its sessions' runs through one Redis function; it knows no protocol.

One flush is under way at a time; what comes meanwhile is collected for the next one. Every answer goes to the session
that waits for it, without a task or a future for any signal.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from services.common.errors import ServiceError, UnavailableError
from services.common.settings import require_secret
from services.ingest import link, metrics
from services.ingest.domain.values import AppendResult, LogHead, OpenLog, Run, StoreSnapshot
from services.ingest.durability import Barrier
from services.ingest.lanes import Behind, Flush, Lane, Owner, Share
from services.ingest.link import Keys
from services.ingest.resp import Argument, Endpoint, Reply, RespConnection
from services.ingest.settings import IngestSettings

_log = logging.getLogger(__name__)

_OK, _DUPLICATE = 0, 1
_RESULTS: Final = {
    _OK: AppendResult.APPENDED,
    _DUPLICATE: AppendResult.APPENDED,
    2: AppendResult.MOVED,
    3: AppendResult.FENCED,
    4: AppendResult.CONFLICT,
}


class Shard:
    """A shard of the log; `publisher.publishing` keeps it connected. Lanes belong to the shard that made them."""

    def __init__(self, settings: IngestSettings, number: int) -> None:
        """
        Raises:
            ConfigurationError: REDIS_URL is not set or is no URL.
        """
        self.number = number
        self.lost = asyncio.Event()
        """Set when the connection was lost."""
        self.outstanding_bytes = 0
        """Under way to the log, from all sessions."""
        self._settings = settings
        self._keys = Keys.of_shard(number)
        self._endpoint = Endpoint(require_secret(settings.redis_url, "REDIS_URL"), self._keys.stream)
        self._entries_max = b"%d" % settings.log_entries_max
        self._outstanding_bytes_max = settings.shard_outstanding_bytes_max
        self._connection: RespConnection | None = None
        self._barrier = Barrier()
        self._is_closing = False
        self._lanes: set[Lane] = set()
        self._paused: set[Lane] = set()
        self._collecting: deque[Lane] = deque()
        self._flush: Flush | None = None
        self._calls: deque[float] = deque()
        """When the other calls were sent that have no answer yet; their senders bound how many there are."""
        self._answers: list[Reply] = []
        self._is_scheduled = False

    @property
    def is_ready(self) -> bool:
        """Whether the log takes appends now."""
        return self._connection is not None

    @property
    def is_behind(self) -> bool:
        """Whether sessions should be offered less."""
        return self.outstanding_bytes * 2 >= self._outstanding_bytes_max

    # Sessions

    def open(self, command: OpenLog, now_us: int, then: Callable[[LogHead | ServiceError], None]) -> None:
        """Begins a session in the log; `then` gets the head, at once or later, or why there is none."""
        connection, keys = self._connection, self._keys
        if connection is None:
            then(_unavailable())
            return

        def answered(reply: Reply) -> None:
            if isinstance(reply, Exception):
                then(_unavailable())
                return
            value, _, began = reply
            head = link.head_of(value)
            if began:
                metrics.EPOCHS.inc()
                message = "history of master %d was lost: epoch %d begins behind %d"
                _log.warning(message, command.master_id, head.epoch, head.sequence)
            then(head)

        self._send_durably(
            connection,
            (
                "FCALL", link.OPEN, 3, keys.stream, keys.heads, keys.meta, self._entries_max,
                command.master_id, command.key_id, now_us, command.acknowledged_epoch,
                command.acknowledged_sequence, int(command.begin_epoch), secrets.token_hex(8),
                self._settings.log_shards, command.archived_epoch, command.archived_sequence,
            ),
            answered,
        )  # fmt: skip

    def enter(self, owner: Owner, master_id: int, session_epoch: int) -> Lane:
        """A lane for an opened session; `leave` it when the session ends."""
        lane = Lane(self, owner, master_id, session_epoch)
        self._lanes.add(lane)
        return lane

    def leave(self, lane: Lane) -> None:
        """The session has ended. What is under way still goes into the log."""
        self._lanes.discard(lane)
        self._paused.discard(lane)

    def store_snapshot(
        self, lane: Lane, command: StoreSnapshot, key_id: str, now_us: int, then: Callable[[bool], None]
    ) -> None:
        """Stores a snapshot behind all runs handed over before; `then` learns whether it is there."""
        connection, keys = self._connection, self._keys
        if connection is None:
            then(False)
            return
        if lane.waiting:
            lane.behind.append(Behind(command, key_id, now_us, then))
            return
        self._send_durably(
            connection,
            (
                "FCALL", link.SNAPSHOT, 3, keys.stream, keys.heads, keys.snapshots, self._entries_max,
                lane.master_id, lane.session_epoch, now_us, key_id, command.epoch, command.sequence, command.data,
            ),
            lambda reply: then(reply in (_OK, _DUPLICATE)),
        )  # fmt: skip

    # Appending

    def append(self, lane: Lane, runs: list[Run]) -> None:
        """Hands over runs, in order. The owner is answered later, or told now that the log is away."""
        if self._connection is None:
            lane.owner.log_failed()
            return
        self.outstanding_bytes += lane.put(runs)
        if not lane.is_queued:
            lane.is_queued = True
            self._collecting.append(lane)
        if self._flush is None and not self._is_scheduled:
            # At the end of this turn of the event loop: all sessions' input of the turn becomes one flush.
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._send_scheduled)
        self._pause_if_behind(lane)

    def discard(self, lane: Lane) -> None:
        """Forgets what the lane has handed over and was not sent; the session has refused it."""
        self.outstanding_bytes -= lane.drop_waiting()
        self._store_behind(lane)

    def _send_scheduled(self) -> None:
        self._is_scheduled = False
        if self._flush is None:
            self._send_flush()

    def _send_flush(self) -> None:
        connection, keys = self._connection, self._keys
        if connection is None:
            return
        arguments: list[Argument] = [b"FCALL", link.APPEND, 2, keys.stream, keys.heads, self._entries_max]
        shares: list[Share] = []
        total_bytes = 0
        for lane, runs in self._take_runs():
            data, last = b"".join([run.data for run in runs]), runs[-1]
            arguments += (lane.master_id, lane.session_epoch, runs[0].first, last.last, last.digest, data)
            shares.append(Share(lane, last.last, len(data)))
            total_bytes += len(data)
        if not shares:
            return
        self._flush = Flush(shares, total_bytes, time.monotonic())
        connection.send(tuple(arguments), self._appended)
        if self._barrier.command:
            connection.send(self._barrier.command, self._barrier_answered)
        for share in shares:
            if share.lane.behind and not share.lane.waiting:
                self._store_behind(share.lane)

    def _take_runs(self) -> list[tuple[Lane, list[Run]]]:
        """What the next flush carries: every lane in turn, each at most once, within the flush's limits."""
        room_bytes, sessions_max = self._settings.flush_bytes_max, self._settings.flush_sessions_max
        taken: list[tuple[Lane, list[Run]]] = []
        again: list[Lane] = []
        while self._collecting and len(taken) < sessions_max and room_bytes > 0:
            lane = self._collecting.popleft()
            runs = lane.take(room_bytes)
            if lane.waiting:
                again.append(lane)
            else:
                lane.is_queued = False
            if runs:
                taken.append((lane, runs))
                room_bytes -= sum(len(run.data) for run in runs)
        self._collecting.extend(again)
        return taken

    def _store_behind(self, lane: Lane) -> None:
        behind, lane.behind = lane.behind, []
        for one in behind:
            self.store_snapshot(lane, one.command, one.key_id, one.now_us, one.then)

    # Answers

    def _appended(self, reply: Reply) -> None:
        if isinstance(reply, Exception):
            self._start_over(reply)
        elif self._barrier.command:
            self._answers = reply
        else:
            self._finish(reply)

    def _barrier_answered(self, reply: Reply) -> None:
        if isinstance(reply, Exception):
            self._start_over(reply)
        elif not self._barrier.holds(reply):
            self._start_over(TimeoutError("an append did not become durable in time"))
        else:
            self._finish(self._answers)

    def _finish(self, answers: list[Reply]) -> None:
        flush, self._flush = self._flush, None
        if flush is None:
            return
        self.outstanding_bytes -= flush.size_bytes
        if self._collecting:
            # Redis works on the next flush while the acks of this one go out.
            self._send_flush()
        metrics.FLUSH_BYTES.observe(flush.size_bytes)
        metrics.FLUSH_SECONDS.observe(time.monotonic() - flush.sent_at_seconds)
        for share, answer in zip(flush.shares, answers, strict=True):
            lane = share.lane
            lane.outstanding_bytes -= share.size_bytes
            if answer == _OK:
                lane.owner.log_answered(AppendResult.APPENDED, share.last)
                continue
            code, sequence = answer
            if code == _DUPLICATE:
                sequence = share.last
            lane.owner.log_answered(_RESULTS[code], sequence)
        if self._paused:
            self._resume_paused()

    def _send_durably(
        self, connection: RespConnection, arguments: tuple[Argument, ...], then: Callable[[Reply], None]
    ) -> None:
        """Sends a call; `then` gets its answer once it is durable, or an exception."""
        answers: list[Reply] = []

        def answered(reply: Reply) -> None:
            if isinstance(reply, Exception):
                then(reply)
                self._start_over(reply)
            elif self._barrier.command:
                answers.append(reply)
            else:
                self._calls.popleft()
                then(reply)

        def confirmed(reply: Reply) -> None:
            if not answers:
                return
            if not isinstance(reply, Exception) and self._barrier.holds(reply):
                self._calls.popleft()
                then(answers[0])
                return
            error = reply if isinstance(reply, Exception) else TimeoutError("not durable in time")
            then(error)
            self._start_over(error)

        self._calls.append(time.monotonic())
        connection.send(arguments, answered)
        if self._barrier.command:
            connection.send(self._barrier.command, confirmed)

    # Back-pressure

    def _pause_if_behind(self, lane: Lane) -> None:
        settings = self._settings
        if not lane.is_paused and (
            self.outstanding_bytes > self._outstanding_bytes_max
            or lane.outstanding_bytes > settings.session_outstanding_bytes_max
        ):
            lane.is_paused = True
            self._paused.add(lane)
            metrics.PAUSED.inc()
            lane.owner.pause()

    def _resume_paused(self) -> None:
        settings = self._settings
        if self.outstanding_bytes * 2 > self._outstanding_bytes_max:
            return
        for lane in list(self._paused):
            if lane.outstanding_bytes * 2 <= settings.session_outstanding_bytes_max:
                self._paused.discard(lane)
                lane.is_paused = False
                lane.owner.resume()

    # Connection

    def _start_over(self, reason: Exception) -> None:
        """Redis refused a call or did not confirm it: take a new connection and the heads as they are then."""
        if self._connection is not None:
            self._connection.abort(reason)

    def _connection_lost(self, reason: Exception) -> None:
        self.lost.set()
        if self._connection is None:
            return
        self._connection = None
        metrics.log_up(self.number, False)
        if not self._is_closing:
            metrics.LOG_FAILURES.inc()
            _log.warning("%s is lost: %s", self._keys.stream, reason)
        self._flush = None
        self._calls.clear()
        self._answers = []
        self._collecting.clear()
        self.outstanding_bytes = 0
        for lane in list(self._lanes):
            lane.fail()
        self._resume_paused()

    async def connect(self) -> None:
        """Connects; then appending may go on where the heads are.

        Raises:
            UnavailableError: the log is away or cannot be used.
        """
        self.lost.clear()
        made = await link.establish(
            self._endpoint, self._settings, self._keys, lambda: list(self._lanes), self._connection_lost
        )
        if self.lost.is_set():
            raise UnavailableError("the log went away again", reason="REDIS_UNREACHABLE")
        self._connection, self._barrier = made.connection, made.barrier
        metrics.log_up(self.number, True)
        _log.info("%s is there", self._keys.stream)
        # No session can open without the log, so these are the lanes whose heads were read.
        for lane in list(self._lanes):
            lane.owner.log_restored(made.heads.get(lane))

    def cut_if_stalled(self) -> None:
        """Ends the connection when a flush, or another call, has been under way for too long."""
        limit_seconds = self._settings.redis_timeout_seconds + self._settings.durability_timeout_seconds
        sent_at = [] if self._flush is None else [self._flush.sent_at_seconds]
        if self._calls:
            sent_at.append(self._calls[0])
        if sent_at and time.monotonic() - min(sent_at) > limit_seconds:
            self._start_over(TimeoutError("the log does not answer in time"))

    def close(self) -> None:
        """Ends the connection."""
        self._is_closing = True
        self._start_over(ConnectionError("closed"))


def _unavailable() -> UnavailableError:
    return UnavailableError("the log cannot be reached", reason="LOG_UNAVAILABLE")
