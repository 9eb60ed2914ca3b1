"""The decoder and the session machine under mutated bytes, put together as the front door does, and watched; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from google.protobuf.message import DecodeError

from bench.fuzz.mutation import mutate, pieces
from bench.fuzz.seeds import Seeds, seeds
from bench.fuzz.structured import structured
from ecp_client.master.frames import frame as framed
from execution.ingest.v1 import frames_pb2 as pb
from execution.ingest.v1 import log_pb2
from services.ingest.domain.frames import FRAME_BYTES_MAX, LENGTH_BYTES, FrameDecoder, FrameError
from services.ingest.domain.handshake import Step
from services.ingest.domain.rate import TokenBucket
from services.ingest.domain.session import Session
from services.ingest.domain.values import (
    AppendResult,
    Authorisation,
    Authorise,
    Limits,
    LogHead,
    OpenLog,
    Run,
    StoreSnapshot,
)

MASTER_ID: Final = 7
_CLIENT_NONCE, _SERVER_NONCE = b"c" * 32, b"s" * 32
_HOUR_US: Final = 3_600_000_000
_FRAMES_PER_SESSION_MAX: Final = 40
_ANSWERS_PER_FRAME_MAX: Final = 8
_MUTATED_BEFORE_FRAMING: Final = 0.2
_SIGNED_AFTER_MUTATION: Final = 0.35
_STRUCTURED: Final = 0.7
_MICROSECOND_SHARE: Final = 0.1


class ViolationError(Exception):
    """The front door did what it must never do."""


class SessionTarget:
    """Sessions in every state, one after the other; `step` feeds one mutated frame to the current one."""

    def __init__(self, random: Random, now_us: int) -> None:
        self._random = random
        self._now_us = now_us
        self._now_seconds = 1_000.0
        self._seeds: Seeds = seeds(MASTER_ID, _CLIENT_NONCE, _SERVER_NONCE, now_us=now_us)
        self._limits = Limits(window=256)
        self.sessions = 0
        self.signed_frames_taken = 0
        self.last_input = b""
        self._next = 1
        self._pulled = 0
        self._begin()

    # One input

    def step(self) -> None:
        """Feeds one mutated frame and checks what it led to.

        Raises:
            ViolationError: a rule was broken; `last_input` led to it.
            Exception: a crash, by the same.
        """
        session = self._session
        if session.is_closed or self._frames >= _FRAMES_PER_SESSION_MAX:
            self._begin()
            session = self._session
        self._frames += 1
        data = self._mutated()
        self.last_input = data
        self._pulled = 0
        for piece in pieces(data, self._random) if self._random.random() < 0.3 else [data]:
            self._decoder.receive_data(piece)
            self._pull(session)
            waiting_bytes = 0 if session.is_closed else self._decoder.pending_bytes
            if waiting_bytes > FRAME_BYTES_MAX + len(piece) + LENGTH_BYTES:
                raise ViolationError(f"{waiting_bytes} bytes wait in the decoder")
        self._look_at_answers(session)
        self._let_something_happen(session)

    def _mutated(self) -> bytes:
        random, known = self._random, self._seeds
        if random.random() < _SIGNED_AFTER_MUTATION:
            kind, body = random.choice(known.bodies)
            return framed(known.sign(kind, self._changed(kind, body)))
        payload = random.choice(known.all)
        if random.random() < _MUTATED_BEFORE_FRAMING:
            return mutate(framed(payload), random, known.all)
        return framed(mutate(payload, random, known.all))

    def _changed(self, kind: str, body: bytes) -> bytes:
        if self._random.random() < _STRUCTURED:
            return structured(kind, body, self._random, self._next)
        others = [other for _, other in self._seeds.bodies]
        return mutate(body, self._random, others)

    def _pull(self, session: Session) -> None:
        """As the front door's connection does."""
        try:
            while not session.is_closed:
                payload = self._decoder.next_frame()
                if payload is None:
                    return
                self._pulled += 1
                if session.is_waiting:
                    # The front door reads nothing in this state; a frame must still do no harm.
                    self._expect_nothing_taken(session, payload)
                    continue
                session.receive_payload(payload, self._now_us, self._now_seconds)
                self._check_taken(session, payload)
        except FrameError as error:
            session.frame_failed(error)
            if not session.is_closed:
                raise ViolationError("a broken byte stream did not end the session") from error

    # What it led to

    def _expect_nothing_taken(self, session: Session, payload: bytes) -> None:
        step = session.handshake.step
        session.receive_payload(payload, self._now_us, self._now_seconds)
        if session.intake is not None or session.handshake.step is not step or session.take_commands():
            raise ViolationError("a frame moved a session that waits for an answer")

    def _check_taken(self, session: Session, payload: bytes) -> None:
        commands = session.take_commands()
        runs = session.intake.take_runs() if session.intake is not None else []
        if not commands and not runs:
            return
        try:
            frame = pb.ClientFrame.FromString(payload)
        except DecodeError:
            raise ViolationError("a frame that cannot be parsed led to something") from None
        for command in commands:
            self._check_command(session, command, frame)
        for run in runs:
            self._check_run(run, frame)
            self._under_way.append(run)

    def _check_command(self, session: Session, command: object, frame: pb.ClientFrame) -> None:
        if isinstance(command, StoreSnapshot):
            if not self._seeds.is_signed(frame):
                raise ViolationError("a snapshot was taken without a signature")
            self.signed_frames_taken += 1
        elif isinstance(command, Authorise):
            self._answer_login(session, frame)
        else:
            raise ViolationError(f"a frame led to {command}")

    def _answer_login(self, session: Session, frame: pb.ClientFrame) -> None:
        """The ledger says yes to everybody: the MAC alone decides."""
        if self._random.random() < 0.2:
            return
        # The Hello may have been changed, so the MAC that counts is over its nonce.
        is_signed = self._seeds.is_signed(frame) and session.handshake._hello.nonce == _CLIENT_NONCE
        session.authorised(self._authorisation(), self._now_us)
        opens = [one for one in session.take_commands() if isinstance(one, OpenLog)]
        if bool(opens) != is_signed:
            raise ViolationError(f"a login that is {'' if is_signed else 'not '}signed led to {opens}")
        if opens:
            self.signed_frames_taken += 1
            session.log_opened(LogHead(1, 0, 9), self._bucket(), self._now_seconds)

    def _check_run(self, run: Run, frame: pb.ClientFrame) -> None:
        """It is signed, it follows, and the log's reader finds in it what was signed."""
        if not self._seeds.is_signed(frame):
            raise ViolationError("something was taken into the log without a signature")
        self.signed_frames_taken += 1
        if run.first != self._next or run.last < run.first:
            raise ViolationError(f"{run.first} to {run.last} was taken where {self._next} comes next")
        self._next = run.last + 1
        (read,) = log_pb2.LogBatch.FromString(run.data).runs
        if (read.master_id, read.epoch, read.first_sequence, read.last_sequence) != (
            MASTER_ID,
            1,
            run.first,
            run.last,
        ):
            raise ViolationError(f"the run says {read}")
        if read.HasField("batch"):
            sent = pb.SignalBatch.FromString(frame.signals.body)
            skipped = run.first - sent.first_sequence
            taken = list(sent.signals)[skipped : skipped + run.last - run.first + 1]
            if list(read.batch.signals) != taken or read.batch.first_sequence != run.first:
                raise ViolationError("the log's batch is not what was signed")

    def _look_at_answers(self, session: Session) -> None:
        answers = session.data_to_send(self._now_seconds)
        if len(answers) > _ANSWERS_PER_FRAME_MAX * (self._pulled + 1) + len(self._under_way):
            raise ViolationError(f"{self._pulled} frames led to {len(answers)} answers")
        for answer in answers:
            if len(answer) > FRAME_BYTES_MAX:
                raise ViolationError(f"an answer has {len(answer)} bytes")
            if pb.ServerFrame.FromString(answer).WhichOneof("frame") is None:
                raise ViolationError("an answer says nothing")

    # Surroundings

    def _begin(self) -> None:
        """A new session, brought into a state by well-formed frames."""
        self.sessions += 1
        self._session = session = Session(self._limits, _SERVER_NONCE, self._now_seconds)
        self._decoder = FrameDecoder(FRAME_BYTES_MAX)
        self._frames = 0
        self._next = 1
        self._under_way: list[Run] = []
        self._log_is_up = True
        chance = self._random.random()
        if chance < 0.08:
            return
        self._feed(self._seeds.hello)
        if chance < 0.2:
            return
        self._feed(self._seeds.login)
        session.take_commands()
        if chance < 0.23:
            return
        session.authorised(self._authorisation(), self._now_us)
        session.take_commands()
        if chance < 0.26:
            return
        session.log_opened(LogHead(1, 0, 9), self._bucket(), self._now_seconds)
        session.data_to_send(self._now_seconds)
        if session.handshake.step is not Step.DONE:
            raise ViolationError("a well-formed login did not open a session")

    def _feed(self, payload: bytes) -> None:
        self._session.receive_payload(payload, self._now_us, self._now_seconds)

    def _authorisation(self) -> Authorisation:
        return Authorisation(self._seeds.who.secret, "license", self._now_us + _HOUR_US)

    def _bucket(self) -> TokenBucket:
        per_second = self._random.choice((0, 0, 5))
        return TokenBucket(per_second, max(1.0, float(per_second)), self._now_seconds)

    def _let_something_happen(self, session: Session) -> None:
        """Time passes, and the log answers, fails or comes back."""
        intake = session.intake
        self._now_seconds += 0.01
        # Slowly, so that after millions of frames the signals are not yet stale.
        self._now_us += self._random.random() < _MICROSECOND_SHARE
        if intake is None or self._random.random() < 0.5:
            return
        self._random.choice(self._events)(self, session)
        self._next = intake.expected
        session.take_commands()
        session.data_to_send(self._now_seconds)

    def _log_answers(self, session: Session) -> None:
        if self._under_way and self._log_is_up:
            session.appended(AppendResult.APPENDED, self._under_way.pop(0).last)

    def _log_moved(self, session: Session) -> None:
        if self._under_way and self._log_is_up and session.intake is not None:
            session.appended(AppendResult.MOVED, session.intake.durable)
            self._under_way.clear()

    def _log_fails(self, session: Session) -> None:
        self._log_is_up = False
        self._under_way.clear()
        session.log_failed()

    def _log_is_back(self, session: Session) -> None:
        if not self._log_is_up and session.intake is not None:
            self._log_is_up = True
            session.log_restored(LogHead(1, session.intake.durable, 9))

    def _drains(self, session: Session) -> None:
        if self._random.random() < 0.05:
            session.drain(10)

    def _ticks(self, session: Session) -> None:
        session.tick(self._now_us, self._now_seconds)

    _events: tuple[Callable[[SessionTarget, Session], None], ...] = (
        _log_answers,
        _log_answers,
        _log_moved,
        _log_fails,
        _log_is_back,
        _log_is_back,
        _drains,
        _ticks,
    )
