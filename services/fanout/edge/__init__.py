"""How ready messages reach one subscriber; what is written is decided elsewhere.

Whoever carries the bytes implements `StreamWriter`. It is driven by calls, not by awaiting: the fan-out asks whether
the subscriber takes more, hands over messages, and is called back when it takes more again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.common.errors import ServiceError
from services.fanout.domain.codec import Message


class Source(Protocol):
    """What a writer calls back."""

    def on_writable(self) -> None:
        """Everything handed over was taken; there may be more."""
        ...

    def on_drain(self) -> None:
        """The connection is about to be replaced: the stream should end, to go on over a new one."""
        ...

    def on_written(self, message: Message) -> None:
        """One message was taken by the transport."""
        ...


class StreamWriter(Protocol):
    """Carries the messages of one stream to its reader."""

    @property
    def is_writable(self) -> bool:
        """Whether everything handed over was taken, so that more may be."""
        ...

    def write(self, messages: Sequence[Message]) -> None:
        """Takes messages over, in order; only while `is_writable`. Never waits."""
        ...

    @property
    def outlet(self) -> object:
        """What `write_to_each` of any writer of this kind needs of this one."""
        ...

    def write_to_each(self, outlets: Sequence[object], message: Message) -> list[int]:
        """Writes one message through each of the outlets that takes all of it now.

        Returns where in `outlets` those are that took nothing, in order. `Source.on_written` is not called: who writes
        to many accounts for all of them at once.
        """
        ...

    def finish(self, error: ServiceError, *, at_once: bool = False) -> None:
        """Ends the stream with the error's status once everything was taken; `at_once`, without waiting for that."""
        ...
