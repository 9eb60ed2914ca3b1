"""What must be sent behind an append so that its answer means the configured durability; it appends nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import hiredis

from services.common.errors import UnavailableError
from services.ingest.resp import Argument, Reply, RespConnection
from services.ingest.settings import IngestSettings

UNSUPPORTED: Final = "DURABILITY_UNSUPPORTED"


@dataclass(frozen=True, slots=True)
class Barrier:
    """A command whose answer says that all writes before it are durable. No command: the append's answer says it."""

    command: tuple[Argument, ...] = ()
    confirmations_min: int = 0

    def holds(self, reply: Reply) -> bool:
        """Whether the answer confirms the durability: WAIT answers a number, WAITAOF [local, replicas]."""
        count = reply[0] if isinstance(reply, list) and reply else reply
        return isinstance(count, int) and count >= self.confirmations_min


async def barrier(connection: RespConnection, settings: IngestSettings) -> Barrier:
    """Finds out how this server gives the configured durability.

    Raises:
        UnavailableError: it cannot (reason DURABILITY_UNSUPPORTED), or does not answer.
    """
    wait_ms = int(settings.durability_timeout_seconds * 1_000)
    if settings.durability == "REPLICATED":
        return Barrier(("WAIT", settings.replicas_min, wait_ms), settings.replicas_min)
    if settings.durability == "APPENDED":
        return Barrier()
    timeout_seconds = settings.redis_timeout_seconds
    persistence = await _persistence(connection, timeout_seconds)
    if _syncs_always(persistence):
        # Redis then answers only after the fsync of the whole event loop's writes: group commit for free.
        return Barrier()
    if persistence.get("appendonly", "yes") == "yes" and await _has_waitaof(connection, timeout_seconds):
        return Barrier(("WAITAOF", 1, 0, wait_ms), 1)
    raise UnavailableError(
        "FSYNCED needs 'appendonly yes', and either 'appendfsync always' with 'no-appendfsync-on-rewrite no', "
        "or a server with WAITAOF",
        reason=UNSUPPORTED,
    )


def _syncs_always(persistence: dict[str, str]) -> bool:
    wanted = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
    return all(persistence.get(name) == value for name, value in wanted.items())


async def _persistence(connection: RespConnection, timeout_seconds: float) -> dict[str, str]:
    """How the server keeps its file, or nothing where CONFIG is not allowed, as on managed servers."""
    try:
        reply = await connection.call("CONFIG", "GET", "*append*", timeout_seconds=timeout_seconds)
    except hiredis.ReplyError:
        return {}
    words = [word.decode() for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


async def _has_waitaof(connection: RespConnection, timeout_seconds: float) -> bool:
    reply = await connection.call("COMMAND", "INFO", "WAITAOF", timeout_seconds=timeout_seconds)
    return bool(reply) and reply[0] is not None
