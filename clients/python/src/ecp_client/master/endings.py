"""How a session can end, and what each end asks of the client. Pure data."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from execution.ingest.v1 import frames_pb2 as pb


class Outlook(enum.Enum):
    """What to do after a session has ended."""

    RETRY = enum.auto()
    """Connect again, backing off."""
    AGAIN = enum.auto()
    """Connect again after `End.wait_ms`: nothing is wrong."""
    REFUSED = enum.auto()
    """Connect again, but rarely: what we say or who we are is not accepted until somebody changes something."""
    FENCED = enum.auto()
    """Another client uses this identity, or an older connection of this one was late."""
    FATAL = enum.auto()
    """Do not connect again."""


OUTBOX_BEHIND = "OUTBOX_BEHIND"
PROTOCOL = "PROTOCOL"


@dataclass(frozen=True, slots=True)
class End:
    """Why a session ended, and what to do. `code`: a RejectCode's name, OUTBOX_BEHIND, PROTOCOL or empty."""

    outlook: Outlook
    reason: str
    code: str = ""
    wait_ms: int = 0


CLOSING: dict[int, Outlook] = {
    pb.REJECT_CODE_MALFORMED: Outlook.REFUSED,
    pb.REJECT_CODE_TOO_LARGE: Outlook.REFUSED,
    pb.REJECT_CODE_UNSUPPORTED_VERSION: Outlook.FATAL,
    pb.REJECT_CODE_BAD_MAC: Outlook.REFUSED,
    pb.REJECT_CODE_UNAUTHENTICATED: Outlook.REFUSED,
    pb.REJECT_CODE_LICENSE_EXPIRED: Outlook.REFUSED,
    pb.REJECT_CODE_LICENSE_REVOKED: Outlook.REFUSED,
    pb.REJECT_CODE_FENCED: Outlook.FENCED,
    pb.REJECT_CODE_CONFLICT: Outlook.FATAL,
    pb.REJECT_CODE_TOO_MANY_CONNECTIONS: Outlook.RETRY,
}

# The same signals may be taken later; they wait in the outbox.
HOLDING = frozenset((pb.REJECT_CODE_RATE_LIMITED, pb.REJECT_CODE_WINDOW_EXCEEDED, pb.REJECT_CODE_UNAVAILABLE))


def code_name(code: int) -> str:
    """A RejectCode's name without its prefix; CODE_99 for one that this version does not know."""
    descriptor = pb.RejectCode.DESCRIPTOR.values_by_number.get(code)
    return f"CODE_{code}" if descriptor is None else descriptor.name.removeprefix("REJECT_CODE_")
