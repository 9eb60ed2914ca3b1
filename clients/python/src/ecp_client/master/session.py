"""A master's side of one front-door connection as a state machine: bytes in, bytes and events out; no I/O, no clock.

    HELLO ─Challenge→ LOGIN ─Welcome→ OPEN ─Drain→ DRAINING ─→ CLOSED

Each frame of signals gets an Ack (cumulative) or exactly one Reject. After a Reject the session goes back to the
refused sequence; frames that were under way behind it are void: each is refused as well, and that is passed over.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ecp_client.backoff import Backoff
from ecp_client.clock import ServerClock
from ecp_client.errors import ServerProtocolError
from ecp_client.master import events
from ecp_client.master.endings import CLOSING, HOLDING, OUTBOX_BEHIND, PROTOCOL, End, Outlook, code_name
from ecp_client.master.flights import Flight, Flights
from ecp_client.master.frames import (
    GAP_FILL_TAG,
    SIGNALS_OVERHEAD_BYTES,
    SIGNALS_TAG,
    SNAPSHOT_TAG,
    FrameDecoder,
    SessionKeys,
    batch_body,
    frame,
    signed_frame,
)
from ecp_client.master.handshake import VERSION, VERSION_MIN, Identity, Resume, hello, login
from execution.common.v1 import position_pb2
from execution.common.v1.snapshot_pb2 import Snapshot
from execution.ingest.v1 import frames_pb2 as pb

GAP_SEQUENCES_MAX = 1_000_000
NOTE_BYTES_MAX = 128
# Silence of this many heartbeats means that the peer is gone.
SILENT_HEARTBEATS_MAX = 3


class SessionState(enum.Enum):
    """Where the connection stands."""

    HELLO = enum.auto()
    LOGIN = enum.auto()
    OPEN = enum.auto()
    DRAINING = enum.auto()
    CLOSED = enum.auto()


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Waits of a session, in microseconds."""

    login_us_max: int = 10_000_000
    hold_us_min: int = 20_000
    hold_us_max: int = 5_000_000


class MasterSession:
    """One connection. All times are microseconds of one monotonic clock.

    After each input take `data_to_send` and `take_events`; when `end` is set, close the connection.
    """

    def __init__(
        self,
        identity: Identity,
        resume: Resume,
        clock: ServerClock,
        now_us: int,
        nonce: bytes,
        limits: SessionLimits | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`nonce` is 16 to 32 random bytes that were never used before."""
        self.state = SessionState.HELLO
        self.end: End | None = None
        self.welcome = pb.Welcome()
        self.next_sequence = 0
        """The next one to send; 0 before the session is open."""
        self.acknowledged = 0
        """The last one that the server has, as far as this session knows."""
        self.limits = limits or SessionLimits()
        self._identity = identity
        self._resume = resume
        self._clock = clock
        self._nonce = nonce
        self._keys = SessionKeys(b"", b"", b"")
        self._decoder = FrameDecoder()
        self._out: list[bytes] = []
        self._events: list[events.MasterEvent] = []
        self._flights = Flights()
        self._send_up_to = 0
        self._last_sent = 0
        self._held_until_us = 0
        self._hold = Backoff(self.limits.hold_us_min, self.limits.hold_us_max, uniform)
        self._snapshots_under_way = 0
        self._opened_at_us = self._heard_at_us = self._sent_at_us = now_us
        self._pings: dict[int, int] = {}
        self._ping_id = 0
        self._drain_wait_ms = 0
        self._send(hello(identity, nonce))

    # Input

    def receive_data(self, data: bytes, now_us: int) -> None:
        """Takes what came over the connection."""
        self._heard_at_us = now_us
        self._decoder.receive_data(data)
        try:
            while self.end is None and (received := self._decoder.next_frame()) is not None:
                self._receive(received, now_us)
        except ServerProtocolError as error:
            self._close(End(Outlook.RETRY, str(error), PROTOCOL))

    def connection_lost(self, reason: str) -> None:
        """The connection is gone."""
        if self.end is None:
            outlook = Outlook.AGAIN if self.state is SessionState.DRAINING else Outlook.RETRY
            self._close(End(outlook, reason, wait_ms=self._drain_wait_ms))

    def tick(self, now_us: int) -> None:
        """Sees to time-outs and heartbeats; call it at `deadline_us` or later."""
        if self.end is not None:
            return
        if self.state in (SessionState.HELLO, SessionState.LOGIN):
            if now_us - self._opened_at_us >= self.limits.login_us_max:
                self._close(End(Outlook.RETRY, "the server did not answer the login in time"))
            return
        heartbeat_us = self.welcome.heartbeat_ms * 1_000
        if now_us - self._heard_at_us >= heartbeat_us * SILENT_HEARTBEATS_MAX:
            self._close(End(Outlook.RETRY, f"nothing was heard for {SILENT_HEARTBEATS_MAX} heartbeats"))
        elif now_us - self._sent_at_us >= heartbeat_us // 2:
            self._ping(now_us)

    @property
    def deadline_us(self) -> int:
        """When to call `tick`, and to try sending again, if nothing happens before."""
        if self.state in (SessionState.HELLO, SessionState.LOGIN):
            return self._opened_at_us + self.limits.login_us_max
        heartbeat_us = self.welcome.heartbeat_ms * 1_000
        due_us = min(
            self._sent_at_us + heartbeat_us // 2, self._heard_at_us + heartbeat_us * SILENT_HEARTBEATS_MAX
        )
        return min(due_us, self._held_until_us) if self._held_until_us else due_us

    # Output

    def data_to_send(self) -> bytes:
        """What is to be written to the connection now."""
        out, self._out = self._out, []
        return b"".join(out)

    def take_events(self) -> list[events.MasterEvent]:
        """What happened since the last call, in order."""
        taken, self._events = self._events, []
        return taken

    # Sending

    def room(self, now_us: int) -> int:
        """How many signals may be sent now, from `next_sequence` on."""
        if self.state is not SessionState.OPEN:
            return 0
        if self._held_until_us:
            if now_us < self._held_until_us:
                return 0
            self._held_until_us = 0
        return max(0, self._send_up_to - self.next_sequence + 1)

    @property
    def batch_signals_max(self) -> int:
        """Most signals in one frame."""
        return max(1, self.welcome.batch_signals_max)

    @property
    def batch_bytes_max(self) -> int:
        """Most bytes of serialized signals in one frame, each with six bytes on top."""
        return max(1, self.welcome.frame_bytes_max - SIGNALS_OVERHEAD_BYTES - 6 * self.batch_signals_max)

    @property
    def in_flight(self) -> int:
        """Frames that were neither acknowledged nor refused."""
        return len(self._flights)

    def send_signals(self, signals: Sequence[bytes], now_us: int) -> None:
        """Sends serialized signals with sequences from `next_sequence` on; at most `room` and `batch_signals_max`."""
        first = self.next_sequence
        body = batch_body(first, self._clock.at(now_us), signals)
        self._out.append(signed_frame(SIGNALS_TAG, self._keys.signals, body))
        self.next_sequence = first + len(signals)
        self._last_sent = max(self._last_sent, self.next_sequence - 1)
        self._flights.add(Flight(first, self.next_sequence - 1))
        self._sent_at_us = now_us

    def send_gap_fill(
        self, last: int, reason: position_pb2.GapReason.ValueType, note: str, now_us: int
    ) -> None:
        """Declares that the sequences from `next_sequence` to `last` will never come."""
        while self.next_sequence <= last:
            first, upto = self.next_sequence, min(last, self.next_sequence + GAP_SEQUENCES_MAX - 1)
            body = pb.GapFillBody(from_sequence=first, to_sequence=upto, reason=reason, note=note)
            serialized = body.SerializeToString()
            self._out.append(signed_frame(GAP_FILL_TAG, self._keys.gap_fill, serialized))
            self._flights.add(Flight(first, upto, is_gap_fill=True))
            self.next_sequence = upto + 1
        self._last_sent = max(self._last_sent, last)
        self._sent_at_us = now_us

    def takes_snapshot(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot as of that sequence may be sent now: what it contains must be under way."""
        return self.state is SessionState.OPEN and snapshot.as_of.sequence < self.next_sequence

    def send_snapshot(self, snapshot: Snapshot, now_us: int) -> None:
        """Sends the state of the master's account; its epoch is left to the server."""
        snapshot.as_of.epoch = 0
        signed = signed_frame(SNAPSHOT_TAG, self._keys.snapshot, snapshot.SerializeToString())
        if len(signed) > self.welcome.frame_bytes_max + 4:
            why = f"{len(signed):,} bytes; the server takes {self.welcome.frame_bytes_max:,}"
            self._events.append(events.SnapshotRefused("TOO_LARGE", why))
            return
        self._out.append(signed)
        self._snapshots_under_way += 1
        self._sent_at_us = now_us

    def say_bye(self, reason: str) -> None:
        """Says goodbye; the server answers with the last Ack and closes."""
        if self.state in (SessionState.OPEN, SessionState.DRAINING):
            self._send(pb.ClientFrame(bye=pb.Bye(reason=reason)))

    # Inside

    def _receive(self, received: pb.ServerFrame, now_us: int) -> None:
        kind = received.WhichOneof("frame")
        if kind == "ack" and self.next_sequence:
            self._on_ack(received.ack)
        elif kind == "reject":
            self._on_reject(received.reject, now_us)
        elif kind == "ping":
            self._send(pb.ClientFrame(pong=pb.Pong(id=received.ping.id, time_us=self._clock.at(now_us))))
            self._sent_at_us = now_us
        elif kind == "pong":
            asked_us = self._pings.pop(received.pong.id, None)
            if asked_us is not None and received.pong.time_us:
                self._clock.observe(received.pong.time_us, asked_us, now_us)
        elif kind == "challenge" and self.state is SessionState.HELLO:
            self._on_challenge(received.challenge, now_us)
        elif kind == "welcome" and self.state is SessionState.LOGIN:
            self._on_welcome(received.welcome)
        elif kind == "snapshot_request":
            self._events.append(events.SnapshotRequested(received.snapshot_request.reason))
        elif kind == "drain":
            self._on_drain(received.drain.reconnect_after_ms)
        elif kind == "bye":
            self.connection_lost(f"the server said goodbye: {received.bye.reason}")
        elif kind is not None:
            # A frame of a kind that only a later version knows is passed over.
            raise ServerProtocolError(f"the server sent {kind} while {self.state.name}")

    def _on_challenge(self, challenge: pb.Challenge, now_us: int) -> None:
        if not VERSION_MIN <= challenge.version <= VERSION:
            self._close(
                End(Outlook.FATAL, f"the server speaks version {challenge.version}", "UNSUPPORTED_VERSION")
            )
            return
        self._clock.observe(challenge.server_time_us, self._opened_at_us, now_us)
        answer, self._keys = login(self._identity, self._resume, self._nonce, challenge)
        self.state = SessionState.LOGIN
        self._send(answer)

    def _on_welcome(self, welcome: pb.Welcome) -> None:
        position = welcome.position
        if not welcome.heartbeat_ms or not welcome.window:
            raise ServerProtocolError("the Welcome names no heartbeat or no window")
        self.welcome = welcome
        self.state = SessionState.OPEN
        if position.sequence > self._resume.maybe_sent and not self._resume.begin_epoch:
            # The log has signals of ours that this outbox does not know: others may be lost, and that must be said.
            reason = f"the log is at {position.sequence}, this outbox only at {self._resume.maybe_sent}"
            self._close(End(Outlook.AGAIN, reason, OUTBOX_BEHIND))
            return
        self.acknowledged = position.sequence
        self._flights.acknowledged(position.sequence)
        self.next_sequence = position.sequence + 1
        self._last_sent = position.sequence
        self._send_up_to = position.sequence + welcome.window
        new_epoch = bool(self._resume.epoch) and position.epoch != self._resume.epoch
        self._events.append(
            events.SessionOpened(
                "", welcome.session_epoch, position.epoch, position.sequence, welcome.durability, new_epoch
            )
        )

    def _on_ack(self, ack: pb.Ack) -> None:
        if ack.sequence > self._last_sent:
            raise ServerProtocolError(f"the server acknowledged {ack.sequence}, which was never sent")
        self._flights.acknowledged(ack.sequence)
        self._send_up_to = ack.sequence + min(ack.credits, self.welcome.window)
        if ack.sequence > self.acknowledged:
            self.acknowledged = ack.sequence
            self.next_sequence = max(self.next_sequence, ack.sequence + 1)
            self._hold.reset()
            self._events.append(
                events.Acknowledged(self.welcome.position.epoch, ack.sequence, ack.durability)
            )
        if ack.snapshot_sequence and self._snapshots_under_way:
            self._snapshots_under_way -= 1
            self._events.append(events.SnapshotStored(ack.snapshot_sequence))
        self._leave_if_drained()

    def _on_reject(self, reject: pb.Reject, now_us: int) -> None:
        outlook = CLOSING.get(reject.code)
        if outlook is not None:
            self._close(End(outlook, reject.message, code_name(reject.code), reject.retry_after_ms))
        elif self.state is SessionState.LOGIN:
            self._close(End(Outlook.RETRY, reject.message, code_name(reject.code), reject.retry_after_ms))
        elif not self.next_sequence:
            raise ServerProtocolError(f"the server refused with {code_name(reject.code)} before the login")
        elif reject.sequence == 0:
            self._snapshots_under_way = max(0, self._snapshots_under_way - 1)
            self._events.append(events.SnapshotRefused(code_name(reject.code), reject.message))
        else:
            self._on_frame_refused(reject, now_us)
        self._leave_if_drained()

    def _on_frame_refused(self, reject: pb.Reject, now_us: int) -> None:
        flight = self._flights.refused(reject.sequence)
        if flight is None:
            raise ServerProtocolError(f"the server refused {reject.sequence}, which is not under way")
        if flight.void:
            return
        if reject.code == pb.REJECT_CODE_GAP:
            self._go_back_to_expected(reject)
        elif reject.code == pb.REJECT_CODE_DRAINING:
            self.next_sequence = reject.sequence
            self._on_drain(reject.retry_after_ms)
        elif reject.code in HOLDING:
            self.next_sequence = reject.sequence
            self._hold_back(reject, now_us)
        elif flight.is_gap_fill:
            raise ServerProtocolError(
                f"the server refused a gap with {code_name(reject.code)}: {reject.message}"
            )
        else:
            self._give_up_signal(reject, now_us)

    def _go_back_to_expected(self, reject: pb.Reject) -> None:
        if reject.expected_sequence <= self.acknowledged:
            # It has less than it acknowledged. The next login shows how far we were, and the log begins an epoch.
            self._close(End(Outlook.AGAIN, "the log has less than it acknowledged"))
            return
        self.next_sequence = reject.expected_sequence

    def _hold_back(self, reject: pb.Reject, now_us: int) -> None:
        wait_us = max(reject.retry_after_ms * 1_000, int(self._hold.next_delay()))
        wait_us = min(max(wait_us, self.limits.hold_us_min), self.limits.hold_us_max)
        self._held_until_us = now_us + wait_us
        self._events.append(events.Held(code_name(reject.code), reject.message, wait_us // 1_000))

    def _give_up_signal(self, reject: pb.Reject, now_us: int) -> None:
        """Refused for good: declares the hole at once, so that what is behind can go on."""
        code = code_name(reject.code)
        self._events.append(events.SignalRefused(reject.sequence, code, reject.field, reject.message))
        self.next_sequence = reject.sequence
        note = f"{code} {reject.message}".encode()[:NOTE_BYTES_MAX].decode(errors="ignore")
        self.send_gap_fill(reject.sequence, position_pb2.GAP_REASON_REJECTED, note, now_us)

    def _on_drain(self, reconnect_after_ms: int) -> None:
        if self.state is SessionState.OPEN:
            self.state = SessionState.DRAINING
            self._drain_wait_ms = reconnect_after_ms
            self._events.append(events.Draining(reconnect_after_ms))
            self._leave_if_drained()

    def _leave_if_drained(self) -> None:
        if self.state is SessionState.DRAINING and self.end is None and not self._flights:
            self._send(pb.ClientFrame(bye=pb.Bye(reason="draining")))
            self._close(End(Outlook.AGAIN, "the server is stopping", "DRAINING", self._drain_wait_ms))

    def _ping(self, now_us: int) -> None:
        self._ping_id += 1
        self._pings = {self._ping_id: now_us}
        self._send(pb.ClientFrame(ping=pb.Ping(id=self._ping_id)))
        self._sent_at_us = now_us

    def _send(self, message: pb.ClientFrame) -> None:
        self._out.append(frame(message.SerializeToString()))

    def _close(self, end: End) -> None:
        if self.end is None:
            self.end = end
            self.state = SessionState.CLOSED
