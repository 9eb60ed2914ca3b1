"""The failures that this library raises on purpose; anything else that leaves it is a bug. Pure."""

from __future__ import annotations


class ClientError(Exception):
    """Root of the family: catch it to catch everything that this library raises on purpose."""


class SettingsError(ClientError):
    """A setting is out of range or contradicts another; the message says which and what to do."""


class CertificatesError(ClientError):
    """The certificates to trust cannot be read now; it is tried again."""


class ClosedError(ClientError):
    """The client was closed, or never started; nothing was done."""


class WrongThreadError(ClientError):
    """A call that waits for the client's own thread was made in that thread, by a callback: nothing was done."""


class SignalInvalidError(ClientError):
    """A signal breaks the contract and was not taken; `field` is its name in execution.common.v1.Signal."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


class SignalRefusedError(ClientError):
    """The server refused a signal for good, and its sequence was declared as a gap."""

    def __init__(self, sequence: int, code: str, message: str, field: str = "") -> None:
        super().__init__(f"signal {sequence} was refused with {code}: {message}")
        self.sequence = sequence
        self.code = code
        self.field = field


class LoginRefusedError(ClientError):
    """The server refused the login; `code` is the RejectCode's name without its prefix, such as BAD_MAC."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"login refused with {code}: {message}")
        self.code = code


class ServerProtocolError(ClientError):
    """The server sent what the protocol does not allow; the connection is of no more use."""


class OutboxError(ClientError):
    """The outbox cannot be used; the message says which file and what to do."""


class OutboxFullError(OutboxError):
    """The outbox holds as many unacknowledged bytes as it may; the signal was NOT taken. Retry when acks came in."""


class OutboxLockedError(OutboxError):
    """Another process has the outbox open."""


class JournalError(ClientError):
    """The journal cannot be used; the message says which file and what to do."""


class JournalLockedError(JournalError):
    """Another process has the journal open."""
