"""Drives one session: carries out its commands against ledger and log and sends its frames; it knows no sockets.

TCP and gRPC give it frames and a `Port` to answer through; everything else is the same for both.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from execution.ingest.v1 import frames_pb2 as pb
from services.common.clock import now_us
from services.common.errors import ServiceError
from services.ingest import metrics
from services.ingest.authoriser import Authoriser, Refusal
from services.ingest.domain.handshake import CHALLENGE_BYTES
from services.ingest.domain.session import Session
from services.ingest.domain.values import (
    AppendResult,
    Authorise,
    Command,
    Limits,
    LogHead,
    OpenLog,
    StoreSnapshot,
)
from services.ingest.lanes import Lane
from services.ingest.places import Places
from services.ingest.publisher import Publisher
from services.ingest.sessions import Sessions
from services.ingest.settings import IngestSettings

_log = logging.getLogger(__name__)

_LOGIN: Final = "login"
_LOG: Final = "log"
_SNAPSHOT_REQUEST_SECONDS_MIN: Final = 1.0


class Port(Protocol):
    """The way back to the client."""

    peer_address: str

    def write(self, payloads: list[bytes]) -> None:
        """Sends serialized ServerFrames, in order."""

    def close(self) -> None:
        """Sends what was written, then ends the connection. Safe to repeat."""

    def pause(self, reason: str) -> None:
        """Takes no more frames from the client until `resume` for the same reason."""

    def resume(self, reason: str) -> None:
        """Takes frames again if nothing else speaks against it, first those that came meanwhile."""

    def opened(self) -> None:
        """The session is open: the bounds for strangers no longer count."""


class Door:
    """What all peers of one process share."""

    def __init__(self, settings: IngestSettings, publisher: Publisher, authoriser: Authoriser) -> None:
        self.settings = settings
        self.limits: Limits = settings.limits()
        self.publisher = publisher
        self.authoriser = authoriser
        self.sessions = Sessions()
        self.is_draining = False
        self.streams: Places[Peer] = Places(settings, settings.publish_streams_max, "streams")
        """Those who publish over gRPC."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs what asks the ledger; one question of each connection at a time, so connections bound them."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def close(self) -> None:
        """Cancels what still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.authoriser.close()


class _Nobody:
    """The port of a client that is gone."""

    def __init__(self, peer_address: str) -> None:
        self.peer_address = peer_address

    def write(self, payloads: list[bytes]) -> None:
        """There is nobody to read it."""

    def close(self) -> None:
        """It is closed."""

    def pause(self, reason: str) -> None:
        """Nothing comes."""

    def resume(self, reason: str) -> None:
        """Nothing comes."""

    def opened(self) -> None:
        """It has no place any more."""


class Peer:
    """One client and its session."""

    def __init__(self, door: Door, port: Port) -> None:
        self.door = door
        self.port: Port = port
        self.session = Session(door.limits, os.urandom(CHALLENGE_BYTES), time.monotonic())
        self.connected_at_us = now_us()
        self.rejected = 0
        self._snapshot_requested_at = float("-inf")
        self._snapshot_request: asyncio.TimerHandle | None = None
        self._authorise: Authorise | None = None
        self._lane: Lane | None = None
        self._changes = 0
        self._is_counted = False
        self._is_over = False

    @property
    def master_id(self) -> int:
        """The master; proven while the session is open."""
        return self.session.handshake.master_id

    @property
    def is_open(self) -> bool:
        """Whether the session is open."""
        return self.session.intake is not None and not self.session.is_closed

    # From the client

    def settle(self) -> None:
        """Carries out what the frames that came in led to; call it after each chunk of them."""
        session = self.session
        intake = session.intake
        if intake is not None and intake.runs and self._lane is not None:
            self.door.publisher.append(self._lane, intake.take_runs())
        if session.outbox.commands:
            for command in session.take_commands():
                self._carry_out(command)
        self._count()
        self.send()

    def send(self) -> None:
        """Sends the frames that are ready, and closes behind the last one."""
        session = self.session
        if session.intake is not None:
            session.intake.credits = self.door.publisher.credits(session.limits.window, self._lane)
        payloads = session.data_to_send(time.monotonic())
        if payloads:
            self.port.write(payloads)
        if session.is_closed:
            self._end()
            self.port.close()

    def disconnected(self) -> None:
        """The connection is gone. What was taken still goes into the log."""
        self._end()
        # It and this hold one another: in a circle they would wait, with their buffers, for the garbage collector.
        self.port = _Nobody(self.port.peer_address)

    # From the log

    def log_answered(self, result: AppendResult, sequence: int) -> None:
        """The answer to runs; see publisher.Owner."""
        done = self.session.appended(result, sequence)
        if done:
            now_seconds, signals = time.monotonic(), 0
            for run in done:
                if run.last_signal is not None:
                    count = run.last - run.first + 1
                    signals += count
                    metrics.LATENCY_MS.observe((now_seconds - run.received_at_seconds) * 1_000, count)
            metrics.SIGNALS.inc(signals)
        if result is not AppendResult.APPENDED and self._lane is not None:
            self.door.publisher.discard(self._lane)
        self._count()
        self.send()
        self._let_lane_go()

    def log_failed(self) -> None:
        """The log is away; see publisher.Owner."""
        self.session.log_failed()
        self._count()
        self.send()

    def log_restored(self, head: LogHead | None) -> None:
        """The log is back; see publisher.Owner."""
        was_open = self.is_open
        self.session.log_restored(head)
        if was_open and not self.is_open:
            metrics.LOG_LOSSES.inc()
        self._count()
        self.send()

    def pause(self) -> None:
        """The log is behind; see publisher.Owner."""
        self.port.pause(_LOG)

    def resume(self) -> None:
        """The log caught up; see publisher.Owner."""
        self.port.resume(_LOG)

    # From elsewhere

    def end(self, code: pb.RejectCode.ValueType, message: str) -> None:
        """Ends the session with a Reject."""
        self.session.end(code, message)
        self._count()
        self.send()

    async def recheck(self) -> None:
        """Asks the ledger whether the open session's login still counts, and ends the session if not."""
        if self._authorise is None or not self.is_open:
            return
        answer = await self.door.authoriser.authorise(self._authorise, fresh=True)
        if not isinstance(answer, Refusal):
            self.session.handshake.authorisation = answer
        elif answer.code != pb.REJECT_CODE_UNAVAILABLE and self.is_open:
            self.end(answer.code, answer.message)

    def fence(self) -> None:
        """A later session of the master is open."""
        if self.session.intake is not None:
            self.session.intake.fenced()
        self._count()
        self.send()

    def tick(self, time_us: int, now_seconds: float, *, is_held: bool) -> None:
        """Does what is due by the clock; see Session.tick."""
        limit = self.session.tick(time_us, now_seconds, is_held=is_held)
        if limit is not None:
            metrics.CUT.labels(limit).inc()
        if self.session.outbox.frames:
            self._count()
            self.send()

    def request_snapshot(self, reason: str) -> None:
        """Asks the master for a snapshot: now or, if it was asked within the last second, once when that is over."""
        if self._snapshot_request is not None:
            return
        wait_seconds = self._snapshot_requested_at + _SNAPSHOT_REQUEST_SECONDS_MIN - time.monotonic()
        if wait_seconds > 0:
            # What came back to the last request may be older than what this one was asked for.
            loop = asyncio.get_running_loop()
            self._snapshot_request = loop.call_later(wait_seconds, self._request_snapshot, reason)
        else:
            self._request_snapshot(reason)

    # Inside

    def _request_snapshot(self, reason: str) -> None:
        self._snapshot_request = None
        self._snapshot_requested_at = time.monotonic()
        self.session.request_snapshot(reason)
        self.send()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Authorise():
                self._authorise = command
                self.port.pause(_LOGIN)
                self.door.start(self._ask(command), f"login of master {command.master_id}")
            case OpenLog():
                if self._is_one_too_many(command.master_id):
                    return
                self.door.publisher.open(command, now_us(), self._log_opened)
            case StoreSnapshot():
                self._store(command)

    async def _ask(self, command: Authorise) -> None:
        answer = await self.door.authoriser.authorise(command)
        if self._is_over:
            return
        self._changes = self.door.authoriser.changes
        if isinstance(answer, Refusal):
            self.session.refused(answer.code, answer.message)
        else:
            self.session.authorised(answer, now_us())
        self.settle()
        if not self.session.is_waiting:
            self.port.resume(_LOGIN)

    def _is_one_too_many(self, master_id: int) -> bool:
        if not self._is_counted:
            self._is_counted = True
            count = self.door.sessions.count(master_id, +1)
            if count > self.door.settings.connections_per_master_max:
                metrics.CUT.labels("master").inc()
                self.session.end(
                    pb.REJECT_CODE_TOO_MANY_CONNECTIONS, "too many connections of this master at once"
                )
                return True
        return False

    def _log_opened(self, head: LogHead | ServiceError) -> None:
        if self._is_over:
            return
        if isinstance(head, ServiceError):
            self.session.refused(pb.REJECT_CODE_UNAVAILABLE, head.message)
        else:
            self._open(head)
        self._count()
        self.send()
        self.port.resume(_LOGIN)

    def _open(self, head: LogHead) -> None:
        session, door, now_seconds = self.session, self.door, time.monotonic()
        authorisation = session.handshake.authorisation
        assert authorisation is not None
        per_second = authorisation.signals_per_second_max or door.limits.signals_per_second_max
        burst = max(1.0, per_second * door.limits.burst_seconds)
        bucket = door.sessions.bucket(self.master_id, per_second, burst, now_seconds)
        session.log_opened(head, bucket, now_seconds)
        if session.intake is None:
            return
        self._lane = door.publisher.enter(self, self.master_id, head.session_epoch)
        self.port.opened()
        former = door.sessions.enter(self.master_id, self)
        if former is not None:
            former.fence()
        _log.info(
            "session opened",
            extra={
                "master.id": self.master_id,
                "session.epoch": head.session_epoch,
                "client.address": self.port.peer_address,
                "position": f"{head.epoch}/{head.sequence}",
            },
        )
        if door.is_draining:
            session.drain(0)
        if door.authoriser.changes != self._changes:
            # The license may have been revoked while the log was asked.
            door.start(self.recheck(), f"recheck of master {self.master_id}")

    def _store(self, command: StoreSnapshot) -> None:
        if self._lane is None:
            return

        def stored(is_stored: bool) -> None:
            if is_stored:
                metrics.SNAPSHOTS.inc()
            self.session.snapshot_stored(command, is_stored)
            self._count()
            self.send()

        key_id = self.session.handshake.key_id
        self.door.publisher.store_snapshot(self._lane, command, key_id, now_us(), stored)

    def _count(self) -> None:
        outbox = self.session.outbox
        if outbox.rejects:
            metrics.count_rejections(outbox.rejects)
            self.rejected += len(outbox.rejects)
            outbox.rejects = []
        if outbox.duplicates:
            metrics.DUPLICATES.inc(outbox.duplicates)
            outbox.duplicates = 0

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._snapshot_request is not None:
            self._snapshot_request.cancel()
        if self._lane is not None:
            self.door.publisher.leave(self._lane)
            self.door.sessions.leave(self.master_id, self)
            _log.info("session ended", extra={"master.id": self.master_id})
            self._let_lane_go()
        if self._is_counted:
            self.door.sessions.count(self.master_id, -1)

    def _let_lane_go(self) -> None:
        """Breaks the circle of lane and owner once nothing of an ended session is under way."""
        if self._is_over and self._lane is not None and not self._lane.outstanding_bytes:
            self._lane = None
