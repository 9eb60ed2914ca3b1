"""The front door's side of one connection as a state machine: frames and answers in, frames and commands out; no I/O.

AwaitHello → AwaitLogin → (authorising → opening the log) → Open → closed. Times are passed in: `now_us` by the wall
clock, `now_seconds` by the monotonic clock.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.frames import FrameError
from services.ingest.domain.handshake import Handshake, Step
from services.ingest.domain.intake import Intake
from services.ingest.domain.outbox import Outbox
from services.ingest.domain.rate import TokenBucket
from services.ingest.domain.values import (
    AppendResult,
    Authorisation,
    Command,
    Limits,
    LogHead,
    Run,
    StoreSnapshot,
)

_parse_frame = pb.ClientFrame.FromString


class Session:
    """One connection. Call inputs in the order of events; then take `commands`, `take_runs` and `data_to_send`."""

    def __init__(self, limits: Limits, challenge: bytes, now_seconds: float) -> None:
        """`challenge` is 32 random bytes that were never used before."""
        self.limits = limits
        self.outbox = Outbox()
        self.handshake = Handshake(limits, self.outbox, challenge)
        self.intake: Intake | None = None
        self._opened_at = self._heard_at = self._sent_at = now_seconds
        self._is_leaving = False
        self._is_draining = False
        self._pings = 0

    @property
    def is_closed(self) -> bool:
        """Whether the last frame was made; the connection is to be closed once it is sent."""
        return self.outbox.closing

    @property
    def is_leaving(self) -> bool:
        """Whether the client said goodbye and waits for the last Ack and ours."""
        return self._is_leaving and not self.outbox.closing

    @property
    def is_waiting(self) -> bool:
        """Whether an answer (of the ledger or the log) is due before the next frame may come in."""
        return self.handshake.step in (Step.AUTHORISATION, Step.LOG)

    def restrict_to(self, masters: frozenset[int] | None) -> None:
        """Only these masters may log in, those that the client's certificate names; None is any."""
        self.handshake.masters = masters

    # Frames

    def receive_payload(self, payload: bytes, now_us: int, now_seconds: float) -> None:
        """Takes one frame as it came over TCP, without its length."""
        try:
            frame = _parse_frame(payload)
        except DecodeError:
            self.outbox.reject(pb.REJECT_CODE_MALFORMED, "the frame is not a ClientFrame")
            return
        self.receive_frame(frame, now_us, now_seconds)

    def receive_frame(self, frame: pb.ClientFrame, now_us: int, now_seconds: float) -> None:
        """Takes one frame. Frames behind a Bye, and behind what closes the session, are ignored."""
        if self.outbox.closing or self._is_leaving:
            return
        self._heard_at = now_seconds
        kind = frame.WhichOneof("frame")
        intake = self.intake
        if intake is not None and kind == "signals":
            intake.take_signals(frame.signals, now_us, now_seconds)
        elif kind == "bye":
            self._leave()
        elif intake is None:
            self.handshake.receive(kind, frame, now_us)
        else:
            self._receive_other(intake, kind, frame, now_us, now_seconds)

    def _receive_other(
        self, intake: Intake, kind: str | None, frame: pb.ClientFrame, now_us: int, now_seconds: float
    ) -> None:
        if kind == "gap_fill":
            intake.take_gap_fill(frame.gap_fill, now_us, now_seconds)
        elif kind == "snapshot":
            intake.take_snapshot(frame.snapshot, now_seconds)
        elif kind == "ping":
            self.outbox.send(pb.ServerFrame(pong=pb.Pong(id=frame.ping.id, time_us=now_us)))
        elif kind != "pong":
            message = f"a frame of kind {kind or 'unknown'} is not allowed in an open session"
            self.outbox.reject(pb.REJECT_CODE_MALFORMED, message, expected=intake.expected)

    def frame_failed(self, error: FrameError) -> None:
        """The byte stream can no longer be cut into frames."""
        expected = 0 if self.intake is None else self.intake.expected
        self.outbox.reject(error.code, error.message, expected=expected)

    # Answers

    def authorised(self, authorisation: Authorisation, now_us: int) -> None:
        """The ledger knows what the login named."""
        if self.handshake.step is Step.AUTHORISATION:
            self.handshake.authorised(authorisation, now_us)

    def refused(self, code: pb.RejectCode.ValueType, message: str) -> None:
        """The ledger or the log refused the login, or cannot be reached (UNAVAILABLE)."""
        if self.is_waiting:
            self.handshake.refused(code, message)

    def log_opened(self, head: LogHead, bucket: TokenBucket, now_seconds: float) -> None:
        """The log has begun the session."""
        authorisation = self.handshake.authorisation
        if self.handshake.step is not Step.LOG or authorisation is None or self.outbox.closing:
            return
        self.intake = Intake(
            self.limits,
            self.outbox,
            self.handshake.opened(head),
            bucket,
            master_id=self.handshake.master_id,
            key_id=self.handshake.key_id,
            head=head,
            signal_age_ms_max=authorisation.signal_age_ms_max or self.limits.signal_age_ms_max,
            now_seconds=now_seconds,
        )
        self._heard_at = now_seconds

    def appended(self, result: AppendResult, sequence: int) -> list[Run]:
        """The log's answer to runs; returns those that are durable now."""
        if self.intake is None:
            return []
        done = self.intake.appended(result, sequence)
        self._settle()
        return done

    def snapshot_stored(self, command: StoreSnapshot, stored: bool) -> None:
        """The log's answer to a snapshot."""
        if self.intake is None:
            return
        if stored:
            self.intake.snapshot_stored(command)
        else:
            self.intake.snapshot_not_stored()
        self._settle()

    def log_failed(self) -> None:
        """The log does not answer."""
        if self.intake is not None:
            self.intake.log_failed()
            self._settle()

    def log_restored(self, head: LogHead | None) -> None:
        """The log answers again; `head` is where the master's stream stands in it."""
        if self.intake is not None:
            self.intake.log_restored(head)

    # Decisions from elsewhere

    def end(self, code: pb.RejectCode.ValueType, message: str) -> None:
        """Ends the session for a reason outside of it: FENCED, LICENSE_REVOKED, TOO_MANY_CONNECTIONS …"""
        expected = 0 if self.intake is None else self.intake.expected
        self.outbox.reject(code, message, expected=expected)
        self.outbox.closing = True

    def say_bye(self, reason: str) -> None:
        """Ends the session with a Bye."""
        self.outbox.bye(reason)

    def request_snapshot(self, reason: str) -> None:
        """Asks the master for a snapshot."""
        if self.intake is not None:
            self.outbox.send(pb.ServerFrame(snapshot_request=pb.SnapshotRequest(reason=reason)))

    def drain(self, reconnect_after_ms: int) -> None:
        """The server stops: takes no more, says goodbye when all is durable."""
        self.outbox.send(pb.ServerFrame(drain=pb.Drain(reconnect_after_ms=reconnect_after_ms)))
        self._is_draining = True
        if self.intake is not None:
            self.intake.is_draining = True
        self._settle()

    # Time

    def tick(self, now_us: int, now_seconds: float, *, is_held: bool = False) -> str | None:
        """Looks at what is due; call it several times in each heartbeat. `is_held`: we do not read from the client.

        Returns the limit that cut the client off just now, if one did.
        """
        if self.outbox.closing:
            return None
        if is_held:
            self._heard_at = now_seconds
        limits = self.limits
        if self.intake is None:
            if now_seconds - self._opened_at > limits.login_seconds_max:
                self._end_login()
                return "unauthenticated_seconds"
            return None
        authorisation = self.handshake.authorisation
        heartbeat_seconds = limits.heartbeat_ms / 1_000
        if authorisation is not None and authorisation.expires_at_us <= now_us:
            self.end(pb.REJECT_CODE_LICENSE_EXPIRED, "the license has expired: log in with another one")
        elif now_seconds - self._heard_at > heartbeat_seconds * limits.silent_heartbeats_max:
            self.say_bye(f"nothing was heard for {limits.silent_heartbeats_max} heartbeats")
            return "idle"
        elif now_seconds - self._sent_at >= heartbeat_seconds * 0.75:
            # A quarter early, so that ticks and the way do not make it late.
            self._pings += 1
            self.outbox.send(pb.ServerFrame(ping=pb.Ping(id=self._pings)))
        return None

    # Output

    def take_commands(self) -> list[Command]:
        """What is to be done now, in order."""
        commands, self.outbox.commands = self.outbox.commands, []
        return commands

    def data_to_send(self, now_seconds: float) -> list[bytes]:
        """The serialized ServerFrames to send now, in order."""
        if self.intake is not None:
            self.intake.flush_ack()
        frames = self.outbox.frames
        if frames:
            self.outbox.frames = []
            self._sent_at = now_seconds
        return frames

    # Inside

    def _end_login(self) -> None:
        """No session was opened in time; a client that did its part is only sent away."""
        if self.is_waiting or self.handshake.was_put_off:
            self.say_bye("the login could not be decided in time: log in again")
        else:
            self.end(pb.REJECT_CODE_UNAUTHENTICATED, "no login in time")

    def _leave(self) -> None:
        self._is_leaving = True
        self._settle()

    def _settle(self) -> None:
        """Says goodbye once a leaving client, or a draining server, has nothing under way."""
        if not (self._is_leaving or self._is_draining) or self.outbox.closing:
            return
        if self.intake is None or self.intake.is_idle:
            if self.intake is not None:
                self.intake.flush_ack()
            self.outbox.bye("goodbye" if self._is_leaving else "the server is stopping")
