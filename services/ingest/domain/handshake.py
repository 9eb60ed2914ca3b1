"""From the first byte to the Welcome: version, challenge, login, license, session; it checks no signal."""

from __future__ import annotations

import hmac
from enum import Enum, auto
from typing import Final

from google.protobuf.message import DecodeError

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.mac import MAC_BYTES, SessionKeys, login_mac, session_keys
from services.ingest.domain.outbox import Outbox
from services.ingest.domain.rules import SEQUENCE_MAX, is_note, is_printable
from services.ingest.domain.values import Authorisation, Authorise, Limits, LogHead, OpenLog

VERSION: Final = 1
CHALLENGE_BYTES: Final = 32
NONCE_BYTES_MIN: Final = 16
NONCE_BYTES_MAX: Final = 32
KEY_ID_CHARACTERS_MAX: Final = 64
LICENSE_TOKEN_CHARACTERS_MAX: Final = 128
CLIENT_BYTES_MAX: Final = 64


class Step(Enum):
    """What the handshake waits for."""

    HELLO = auto()
    LOGIN = auto()
    AUTHORISATION = auto()
    LOG = auto()
    DONE = auto()


class Handshake:
    """One connection's way to an open session. Frames that come while it waits for an answer are MALFORMED."""

    def __init__(self, limits: Limits, outbox: Outbox, challenge: bytes) -> None:
        self._limits = limits
        self._outbox = outbox
        self._challenge = challenge
        self._hello = pb.Hello()
        self._login = pb.Login()
        self._body = pb.LoginBody()
        self.authorisation: Authorisation | None = None
        self.masters: frozenset[int] | None = None
        """Who may log in here; None is anybody."""
        self.step = Step.HELLO
        self.was_put_off = False
        """Whether a login was told to come again, as ledger or log could not be reached."""

    @property
    def master_id(self) -> int:
        """The master that the Hello named; not proven before the step is LOG."""
        return self._hello.master_id

    @property
    def key_id(self) -> str:
        """The key that the Hello named."""
        return self._hello.key_id

    @property
    def client(self) -> str:
        """What the client calls itself."""
        return self._hello.client

    def receive(self, kind: str | None, frame: pb.ClientFrame, now_us: int) -> None:
        """Takes a Hello or a Login where one is due; everything else is MALFORMED."""
        if kind == "hello" and self.step is Step.HELLO:
            self._take_hello(frame.hello, now_us)
        elif kind == "login" and self.step is Step.LOGIN:
            self._take_login(frame.login)
        else:
            self._malformed(f"a frame of kind {kind or 'unknown'} is not allowed before the Welcome")

    def _take_hello(self, hello: pb.Hello, now_us: int) -> None:
        if not (hello.version_min or hello.version) <= VERSION <= hello.version:
            self._outbox.reject(
                pb.REJECT_CODE_UNSUPPORTED_VERSION, f"this server speaks version {VERSION} only"
            )
        elif not 0 < hello.master_id <= SEQUENCE_MAX:
            self._malformed("Hello.master_id is required")
        elif not hello.key_id or not is_printable(hello.key_id, KEY_ID_CHARACTERS_MAX):
            self._malformed(f"Hello.key_id must be 1 to {KEY_ID_CHARACTERS_MAX} bytes of printable ASCII")
        elif not NONCE_BYTES_MIN <= len(hello.nonce) <= NONCE_BYTES_MAX:
            self._malformed(f"Hello.nonce must be {NONCE_BYTES_MIN} to {NONCE_BYTES_MAX} random bytes")
        elif not is_note(hello.client, CLIENT_BYTES_MAX):
            self._malformed(f"Hello.client must be at most {CLIENT_BYTES_MAX} bytes of text")
        elif self.masters is not None and hello.master_id not in self.masters:
            self._outbox.reject(
                pb.REJECT_CODE_UNAUTHENTICATED, "the client's certificate is not this master's"
            )
        else:
            self._hello = hello
            self.step = Step.LOGIN
            challenge = pb.Challenge(nonce=self._challenge, server_time_us=now_us, version=VERSION)
            self._outbox.send(pb.ServerFrame(challenge=challenge))

    def _take_login(self, login: pb.Login) -> None:
        try:
            body = pb.LoginBody.FromString(login.body)
        except DecodeError:
            self._malformed("Login.body is not a LoginBody")
            return
        acknowledged = body.acknowledged
        if body.version != VERSION or body.master_id != self._hello.master_id:
            self._malformed("the LoginBody must repeat the version and the master of the Hello")
        elif len(login.mac) != MAC_BYTES:
            self._malformed(f"Login.mac must be {MAC_BYTES} bytes")
        elif not body.license_token or not is_printable(body.license_token, LICENSE_TOKEN_CHARACTERS_MAX):
            self._malformed(f"license_token must be 1 to {LICENSE_TOKEN_CHARACTERS_MAX} printable characters")
        elif max(acknowledged.sequence, acknowledged.epoch) >= SEQUENCE_MAX or (
            acknowledged.sequence and not acknowledged.epoch
        ):
            self._malformed("acknowledged must be a position, or unset")
        else:
            self._login, self._body = login, body
            self.step = Step.AUTHORISATION
            self._outbox.commands.append(
                Authorise(self._hello.master_id, self._hello.key_id, body.license_token)
            )

    def authorised(self, authorisation: Authorisation, now_us: int) -> None:
        """The ledger knows master, key and license: the MAC decides."""
        login = self._login
        expected = login_mac(authorisation.secret, self._hello.nonce, self._challenge, login.body)
        if not hmac.compare_digest(expected, login.mac):
            self._outbox.reject(
                pb.REJECT_CODE_BAD_MAC, "the login's MAC does not fit: check secret, nonces and label"
            )
        elif authorisation.expires_at_us <= now_us:
            self._outbox.reject(pb.REJECT_CODE_LICENSE_EXPIRED, "the license has expired: rotate it")
        else:
            self.authorisation = authorisation
            self.step = Step.LOG
            acknowledged = self._body.acknowledged
            self._outbox.commands.append(
                OpenLog(
                    self._hello.master_id,
                    self._hello.key_id,
                    acknowledged.epoch,
                    acknowledged.sequence,
                    self._body.begin_epoch,
                    authorisation.archived_epoch,
                    authorisation.archived_sequence,
                )
            )

    def refused(self, code: pb.RejectCode.ValueType, message: str) -> None:
        """The ledger or the log said no. After UNAVAILABLE the client may send its Login again."""
        self.was_put_off = code == pb.REJECT_CODE_UNAVAILABLE
        retry_after_ms = self._limits.retry_after_ms if self.was_put_off else 0
        self._outbox.reject(code, message, retry_after_ms=retry_after_ms)
        self.step = Step.LOGIN

    def opened(self, head: LogHead) -> SessionKeys:
        """The log knows the session: welcomes the client and returns the session's keys."""
        authorisation = self.authorisation
        assert authorisation is not None
        self.step = Step.DONE
        self._outbox.send(pb.ServerFrame(welcome=self._welcome(head, authorisation)))
        self._login, self._body = pb.Login(), pb.LoginBody()
        return session_keys(authorisation.secret, self._hello.nonce, self._challenge)

    def _welcome(self, head: LogHead, authorisation: Authorisation) -> pb.Welcome:
        limits = self._limits
        behind = head.sequence - head.snapshot_sequence
        welcome = pb.Welcome(
            session_epoch=head.session_epoch,
            window=limits.window,
            heartbeat_ms=limits.heartbeat_ms,
            frame_bytes_max=limits.frame_bytes_max,
            batch_signals_max=limits.batch_signals_max,
            signals_per_second_max=authorisation.signals_per_second_max or limits.signals_per_second_max,
            signal_age_ms_max=authorisation.signal_age_ms_max or limits.signal_age_ms_max,
            durability=limits.durability,
            snapshot_wanted=head.snapshot_epoch != head.epoch or behind > limits.snapshot_wanted_after,
        )
        welcome.position.epoch = head.epoch
        welcome.position.sequence = head.sequence
        return welcome

    def _malformed(self, message: str) -> None:
        self._outbox.reject(pb.REJECT_CODE_MALFORMED, message)
