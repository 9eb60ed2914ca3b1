"""The only place that writes to the log: group commit of all sessions' runs through one Redis function; no protocol.

One flush is under way at a time; what comes meanwhile is collected for the next one. Every answer goes to the session
that waits for it, without a task or a future for any signal.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Final, NamedTuple, Protocol

import hiredis

from services.common import log, stream
from services.common.backoff import Backoff
from services.common.errors import ConfigurationError, ServiceError, UnavailableError
from services.common.settings import require_secret
from services.ingest import durability, metrics
from services.ingest.domain.values import AppendResult, LogHead, OpenLog, Run, StoreSnapshot
from services.ingest.durability import Barrier
from services.ingest.resp import Argument, Endpoint, Reply, RespConnection
from services.ingest.settings import IngestSettings

_log = logging.getLogger(__name__)

_OPEN: Final = "ecp_ingest_v1_open"
_APPEND: Final = b"ecp_ingest_v1_append"
_SNAPSHOT: Final = "ecp_ingest_v1_snapshot"
_OK, _DUPLICATE = 0, 1
_RESULTS: Final = {
    _OK: AppendResult.APPENDED,
    _DUPLICATE: AppendResult.APPENDED,
    2: AppendResult.MOVED,
    3: AppendResult.FENCED,
    4: AppendResult.CONFLICT,
}
_WATCH_SECONDS: Final = 0.25


class Owner(Protocol):
    """Who appends through a lane. All calls come synchronously, none may block."""

    def log_answered(self, result: AppendResult, sequence: int) -> None:
        """The answer to runs up to `sequence`."""

    def log_failed(self) -> None:
        """Nothing under way will be answered; `log_restored` follows when the log is back."""

    def log_restored(self, head: LogHead | None) -> None:
        """The log is back; this is the master's head."""

    def pause(self) -> None:
        """The log is slow: hand over no more."""

    def resume(self) -> None:
        """Go on."""


class _Behind(NamedTuple):
    """A snapshot that follows runs which were not sent yet; the session's own limit bounds how many there are."""

    command: StoreSnapshot
    key_id: str
    now_us: int
    then: Callable[[bool], None]


class Lane:
    """One session's way into the log."""

    __slots__ = (
        "behind",
        "is_paused",
        "is_queued",
        "master_id",
        "outstanding_bytes",
        "owner",
        "session_epoch",
        "waiting",
    )

    def __init__(self, owner: Owner, master_id: int, session_epoch: int) -> None:
        self.owner = owner
        self.master_id = b"%d" % master_id
        self.session_epoch = b"%d" % session_epoch
        self.waiting: deque[Run] = deque()
        self.behind: list[_Behind] = []
        self.outstanding_bytes = 0
        self.is_queued = False
        self.is_paused = False


class _Share(NamedTuple):
    """What one lane has in a flush."""

    lane: Lane
    last: int
    size_bytes: int


class _Flush(NamedTuple):
    """What was sent in one call of the function."""

    shares: list[_Share]
    size_bytes: int
    sent_at: float


class Publisher:
    """A shard of the log as the front door writes it; `running` keeps it connected."""

    def __init__(self, settings: IngestSettings, *, shard: int = 0) -> None:
        """
        Raises:
            ConfigurationError: REDIS_URL is not set or is no URL.
        """
        self._settings = settings
        self._endpoint = Endpoint(require_secret(settings.redis_url, "REDIS_URL"))
        self._stream = stream.log_name(shard)
        self._heads = stream.heads_name(shard)
        self._snapshots = stream.snapshots_name(shard)
        self._meta = stream.meta_name(shard)
        self._entries_max = b"%d" % settings.log_entries_max
        self._library = resources.files(__package__).joinpath("functions.lua").read_bytes()
        self._connection: RespConnection | None = None
        self._barrier = Barrier()
        self._is_ready = False
        self._lost = asyncio.Event()
        self._lanes: set[Lane] = set()
        self._paused: set[Lane] = set()
        self._collecting: deque[Lane] = deque()
        self._flush: _Flush | None = None
        self._answers: list[Reply] = []
        self._is_scheduled = False
        self._outstanding_bytes = 0

    # State

    @property
    def is_ready(self) -> bool:
        """Whether the log takes appends now."""
        return self._is_ready

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way to the log."""
        return self._flush is None and not self._collecting

    def credits(self, window: int) -> int:
        """What a session with this window may be offered: less while the log is behind."""
        return (
            window
            if self._outstanding_bytes * 2 < self._settings.outstanding_bytes_max
            else max(1, window // 4)
        )

    # Sessions

    def open(self, command: OpenLog, now_us: int, then: Callable[[LogHead | ServiceError], None]) -> None:
        """Begins a session in the log; `then` gets the head, at once or later, or why there is none."""
        connection = self._connection
        if connection is None:
            then(_unavailable())
            return

        def answered(reply: Reply) -> None:
            if isinstance(reply, Exception):
                self._refused(reply)
                then(_unavailable())
                return
            head = _head_of(log.parse_head(command.master_id, reply[0]))
            if head.epoch > max(1, command.acknowledged_epoch) and head.epoch != command.acknowledged_epoch:
                _log.info(
                    "master %d goes on in epoch %d behind %d", command.master_id, head.epoch, head.sequence
                )
            then(head)

        connection.send(
            (
                "FCALL", _OPEN, 3, self._stream, self._heads, self._meta, self._entries_max,
                command.master_id, command.key_id, now_us, command.acknowledged_epoch,
                command.acknowledged_sequence, int(command.begin_epoch), secrets.token_hex(8),
            ),
            answered,
        )  # fmt: skip

    def enter(self, owner: Owner, master_id: int, session_epoch: int) -> Lane:
        """A lane for an opened session; `leave` it when the session ends."""
        lane = Lane(owner, master_id, session_epoch)
        self._lanes.add(lane)
        return lane

    def leave(self, lane: Lane) -> None:
        """The session has ended. What is under way still goes into the log; nobody is told."""
        self._lanes.discard(lane)
        self._paused.discard(lane)

    # Appending

    def append(self, lane: Lane, runs: list[Run]) -> None:
        """Hands over runs, in order. The owner is answered later, or told now that the log is away."""
        if not self._is_ready:
            lane.owner.log_failed()
            return
        size_bytes = 0
        for run in runs:
            size_bytes += len(run.data)
        lane.waiting.extend(runs)
        lane.outstanding_bytes += size_bytes
        self._outstanding_bytes += size_bytes
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
        size_bytes = sum(len(run.data) for run in lane.waiting)
        lane.waiting.clear()
        lane.outstanding_bytes -= size_bytes
        self._outstanding_bytes -= size_bytes
        self._store_behind(lane)

    def store_snapshot(
        self, lane: Lane, command: StoreSnapshot, key_id: str, now_us: int, then: Callable[[bool], None]
    ) -> None:
        """Stores a snapshot behind all runs handed over before; `then` learns whether it is there."""
        connection = self._connection
        if connection is None:
            then(False)
            return
        if lane.waiting:
            lane.behind.append(_Behind(command, key_id, now_us, then))
            return

        def answered(reply: Reply) -> None:
            then(reply in (_OK, _DUPLICATE))

        self._send_durably(
            connection,
            (
                "FCALL", _SNAPSHOT, 3, self._stream, self._heads, self._snapshots, self._entries_max,
                lane.master_id, lane.session_epoch, now_us, key_id, command.epoch, command.sequence, command.data,
            ),
            answered,
        )  # fmt: skip

    def _send_durably(
        self, connection: RespConnection, arguments: tuple[Argument, ...], then: Callable[[Reply], None]
    ) -> None:
        """Sends a call; `then` gets its answer once it is durable, or an exception."""
        answers: list[Reply] = []

        def answered(reply: Reply) -> None:
            if isinstance(reply, Exception):
                self._refused(reply)
                then(reply)
            elif self._barrier.command:
                answers.append(reply)
            else:
                then(reply)

        def confirmed(reply: Reply) -> None:
            if not answers:
                return
            if not isinstance(reply, Exception) and self._barrier.holds(reply):
                then(answers[0])
                return
            error = reply if isinstance(reply, Exception) else UnavailableError("not durable in time")
            then(error)
            self._refused(error)

        connection.send(arguments, answered)
        if self._barrier.command:
            connection.send(self._barrier.command, confirmed)

    # Flushing

    def _send_scheduled(self) -> None:
        self._is_scheduled = False
        if self._flush is None and self._is_ready:
            self._send_flush()

    def _send_flush(self) -> None:
        settings, connection = self._settings, self._connection
        assert connection is not None
        arguments: list[Argument] = [b"FCALL", _APPEND, 2, self._stream, self._heads, self._entries_max]
        shares: list[_Share] = []
        total_bytes, again = 0, []
        while self._collecting and len(shares) < settings.flush_sessions_max:
            if total_bytes >= settings.flush_bytes_max:
                break
            lane = self._collecting.popleft()
            runs = _runs_for(lane, settings.flush_bytes_max - total_bytes)
            if lane.waiting:
                again.append(lane)
            else:
                lane.is_queued = False
            if not runs:
                continue
            data, last = b"".join([run.data for run in runs]), runs[-1]
            arguments += (lane.master_id, lane.session_epoch, runs[0].first, last.last, last.digest, data)
            shares.append(_Share(lane, last.last, len(data)))
            total_bytes += len(data)
        self._collecting.extend(again)
        if not shares:
            return
        self._flush = _Flush(shares, total_bytes, time.monotonic())
        connection.send(tuple(arguments), self._appended)
        if self._barrier.command:
            connection.send(self._barrier.command, self._barrier_answered)
        for share in shares:
            if share.lane.behind and not share.lane.waiting:
                self._store_behind(share.lane)

    def _store_behind(self, lane: Lane) -> None:
        behind, lane.behind = lane.behind, []
        for one in behind:
            self.store_snapshot(lane, one.command, one.key_id, one.now_us, one.then)

    def _appended(self, reply: Reply) -> None:
        if isinstance(reply, Exception):
            self._refused(reply)
            return
        if self._barrier.command:
            self._answers = reply
        else:
            self._finish(reply)

    def _barrier_answered(self, reply: Reply) -> None:
        if isinstance(reply, Exception) or not self._barrier.holds(reply):
            self._refused(reply if isinstance(reply, Exception) else UnavailableError("not durable in time"))
            return
        self._finish(self._answers)

    def _finish(self, answers: list[Reply]) -> None:
        flush, self._flush = self._flush, None
        if flush is None:
            return
        self._outstanding_bytes -= flush.size_bytes
        if self._collecting:
            # Redis works on the next flush while the acks of this one go out.
            self._send_flush()
        metrics.FLUSH_BYTES.observe(flush.size_bytes)
        metrics.FLUSH_SECONDS.observe(time.monotonic() - flush.sent_at)
        for share, answer in zip(flush.shares, answers, strict=True):
            share.lane.outstanding_bytes -= share.size_bytes
            if answer == _OK:
                share.lane.owner.log_answered(AppendResult.APPENDED, share.last)
                continue
            code, sequence = answer
            result = _RESULTS[code]
            share.lane.owner.log_answered(result, share.last if code == _DUPLICATE else sequence)
        if self._paused:
            self._resume_paused()

    # Back-pressure

    def _pause_if_behind(self, lane: Lane) -> None:
        settings = self._settings
        if not lane.is_paused and (
            self._outstanding_bytes > settings.outstanding_bytes_max
            or lane.outstanding_bytes > settings.session_outstanding_bytes_max
        ):
            lane.is_paused = True
            self._paused.add(lane)
            metrics.PAUSED.inc()
            lane.owner.pause()

    def _resume_paused(self) -> None:
        settings = self._settings
        if self._outstanding_bytes * 2 > settings.outstanding_bytes_max:
            return
        for lane in list(self._paused):
            if lane.outstanding_bytes * 2 <= settings.session_outstanding_bytes_max:
                self._paused.discard(lane)
                lane.is_paused = False
                lane.owner.resume()

    # Connection

    def _refused(self, reason: Exception) -> None:
        """Redis refused a call or did not confirm it: start over with a new connection and the heads as they are."""
        if self._connection is not None:
            self._connection.abort(reason)

    def _connection_lost(self, reason: Exception) -> None:
        self._connection = None
        self._lost.set()
        if not self._is_ready:
            return
        self._is_ready = False
        metrics.LOG_UP.set(0)
        metrics.LOG_FAILURES.inc()
        _log.warning("the log is lost: %s", reason)
        self._flush = None
        self._answers = []
        for lane in self._collecting:
            lane.is_queued = False
        self._collecting.clear()
        self._outstanding_bytes = 0
        for lane in list(self._lanes):
            lane.waiting.clear()
            lane.outstanding_bytes = 0
            behind, lane.behind = lane.behind, []
            for one in behind:
                one.then(False)
            lane.owner.log_failed()
        self._resume_paused()

    async def run(self) -> None:
        """Keeps the log connected until cancelled."""
        backoff = Backoff(initial_seconds=0.05, cap_seconds=1.0, floor_seconds=0.02)
        was_told = False
        while True:
            try:
                await self.connect()
            except UnavailableError as error:
                if not was_told:
                    _log.warning("the log is not available: %s (%s)", error.message, error.reason)
                was_told = True
                await asyncio.sleep(backoff.next_delay())
                continue
            was_told = False
            backoff.reset()
            await self.wait_until_lost()

    async def connect(self) -> None:
        """Connects, loads the functions and reads the heads of open sessions; then appending may go on.

        Raises:
            UnavailableError: any of it failed.
        """
        self._lost.clear()
        timeout_seconds = self._settings.redis_timeout_seconds
        connection = await self._endpoint.connect(self._connection_lost, timeout_seconds)
        try:
            await connection.call(
                "FUNCTION", "LOAD", "REPLACE", self._library, timeout_seconds=timeout_seconds
            )
            barrier = await durability.barrier(connection, self._settings)
            heads = await self._read_heads(connection)
            if barrier.command:
                # A write, so that the barrier has something to wait for: it then covers all that the heads tell.
                await connection.call(
                    "HSET", self._meta, "connected", time.time_ns(), timeout_seconds=timeout_seconds
                )
                if not barrier.holds(
                    await connection.call(*barrier.command, timeout_seconds=timeout_seconds + 60)
                ):
                    raise UnavailableError("the log does not confirm durability", reason="NOT_DURABLE")
        except hiredis.ReplyError as error:
            connection.abort(error)
            raise UnavailableError(f"the log refuses: {error}", reason="REDIS_REFUSED") from error
        except BaseException:
            connection.abort(ConnectionError("not usable"))
            raise
        if self._lost.is_set():
            raise UnavailableError("the log went away again", reason="REDIS_UNREACHABLE")
        self._connection, self._barrier, self._is_ready = connection, barrier, True
        metrics.LOG_UP.set(1)
        _log.info("the log is there")
        for lane in list(self._lanes):
            # A lane that came while the heads were read belongs to no open session: none can open without the log.
            lane.owner.log_restored(heads.get(lane))

    async def _read_heads(self, connection: RespConnection) -> dict[Lane, LogHead]:
        lanes = list(self._lanes)
        heads: dict[Lane, LogHead] = {}
        step = self._settings.flush_sessions_max
        for start in range(0, len(lanes), step):
            part = lanes[start : start + step]
            values = await connection.call(
                "HMGET",
                self._heads,
                *[lane.master_id for lane in part],
                timeout_seconds=self._settings.redis_timeout_seconds,
            )
            for lane, value in zip(part, values, strict=True):
                if value is not None:
                    heads[lane] = _head_of(log.parse_head(lane.master_id, value))
        return heads

    async def wait_until_lost(self) -> None:
        """Waits until the connection is lost; cuts it when a flush takes too long."""
        limit_seconds = self._settings.redis_timeout_seconds + self._settings.durability_timeout_seconds
        while not self._lost.is_set():
            metrics.OUTSTANDING.set(self._outstanding_bytes)
            flush = self._flush
            if flush is not None and time.monotonic() - flush.sent_at > limit_seconds:
                self._refused(TimeoutError("the log does not answer in time"))
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.abort(ConnectionError("closed"))


@asynccontextmanager
async def publishing(settings: IngestSettings, *, shard: int = 0) -> AsyncIterator[Publisher]:
    """A publisher that connects by itself, now and after every loss, until the block ends.

    Raises:
        ConfigurationError: REDIS_URL is wrong, or the server is there and cannot give the configured durability.
    """
    publisher = Publisher(settings, shard=shard)
    try:
        await publisher.connect()
    except UnavailableError as error:
        if error.reason == durability.UNSUPPORTED:
            raise ConfigurationError(
                error.message, where="DURABILITY", do="change it or the server"
            ) from error
        _log.warning("the log is not available yet: %s", error.message)
    task = asyncio.create_task(_keep(publisher), name="log connection")
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        publisher.close()


async def _keep(publisher: Publisher) -> None:
    if publisher.is_ready:
        await publisher.wait_until_lost()
    await publisher.run()


def _runs_for(lane: Lane, room_bytes: int) -> list[Run]:
    """The lane's runs that fit, at least one, so that no run is too large for ever."""
    waiting = lane.waiting
    if lane.outstanding_bytes <= room_bytes:
        runs = list(waiting)
        waiting.clear()
        return runs
    runs = []
    while waiting and (room_bytes > 0 or not runs):
        run = waiting.popleft()
        room_bytes -= len(run.data)
        runs.append(run)
    return runs


def _head_of(head: log.Head) -> LogHead:
    return LogHead(
        head.epoch,
        head.sequence,
        head.session_epoch,
        head.digest,
        head.snapshot_epoch,
        head.snapshot_sequence,
    )


def _unavailable() -> UnavailableError:
    return UnavailableError("the log cannot be reached", reason="LOG_UNAVAILABLE")
