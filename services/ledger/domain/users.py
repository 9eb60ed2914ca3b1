"""Users as the ledger knows them; pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to be made; its fields are checked."""

    email: str
    display_name: str


@dataclass(frozen=True, slots=True)
class User:
    """A person or firm. `trust_score` is 0 to 100, `trust_version` that of the decision that set it."""

    user_id: UUID
    email: str
    display_name: str
    trust_score: float
    trust_version: int
    created_at: datetime
