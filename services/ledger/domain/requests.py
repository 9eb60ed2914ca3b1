"""What makes a change safe to repeat: its idempotency key and the digest of what was asked; pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import AbortedError


@dataclass(frozen=True, slots=True)
class RequestKey:
    """One change that a caller asked for: which operation, under which key, with which body."""

    operation: str
    request_id: str
    body_sha256: bytes

    def require_same_body(self, stored_sha256: bytes) -> None:
        """Checks that the key was used for the same request before.

        Raises:
            AbortedError: it was used with another body; repeating does not help.
        """
        if stored_sha256 != self.body_sha256:
            raise AbortedError(
                f"{self.operation}: {self.request_id!r} was used before with another body",
                reason="REQUEST_ID_REUSED",
                retryable=False,
            )
