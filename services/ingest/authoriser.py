"""Whether a login may open a session, from the ledger through a bounded cache; it checks no MAC.

A cached answer is used for a while, and longer while the ledger cannot be reached; what the ledger announces on
`ledger:events` removes answers at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

import grpc

from execution.ingest.v1 import frames_pb2 as pb
from execution.ledger.v1 import master_service_pb2, master_service_pb2_grpc
from services.common.channels import error_from_rpc
from services.common.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    ServiceError,
    UnavailableError,
)
from services.ingest import metrics
from services.ingest.domain.values import Authorisation, Authorise
from services.ingest.settings import IngestSettings

_log = logging.getLogger(__name__)

# One message for all of these: what exactly is unknown is not told to strangers.
_UNKNOWN: Final = "master, key or license is not known here"


class Refusal(NamedTuple):
    """Why a login is refused."""

    code: pb.RejectCode.ValueType
    message: str


Answer = Authorisation | Refusal

_REFUSALS: Final = {
    "LICENSE_EXPIRED": Refusal(pb.REJECT_CODE_LICENSE_EXPIRED, "the license has expired: rotate it"),
    "LICENSE_REVOKED": Refusal(pb.REJECT_CODE_LICENSE_REVOKED, "the license was revoked"),
    "KEY_REVOKED": Refusal(pb.REJECT_CODE_UNAUTHENTICATED, _UNKNOWN),
    "MASTER_SUSPENDED": Refusal(pb.REJECT_CODE_LICENSE_REVOKED, "the master is suspended"),
}
_UNAVAILABLE: Final = Refusal(pb.REJECT_CODE_UNAVAILABLE, "the license cannot be checked now")


# Changes may be announced faster than the ledger answers: the last answer then counts once, and is not remembered.
_QUESTIONS_MAX: Final = 3


class _Key(NamedTuple):
    """What an answer is for; the token itself is not kept."""

    master_id: int
    key_id: str
    token_digest: bytes


@dataclass(slots=True)
class _Entry:
    answer: Answer
    asked_at: float
    is_doubtful: bool
    license_id: str
    """Empty in a refusal. Here, because thousands are looked through when a license changes."""


class _Memory(OrderedDict[_Key, _Entry]):
    """So many answers at most; beyond that those that were not asked for the longest go."""

    def __init__(self, entries_max: int) -> None:
        super().__init__()
        self._entries_max = entries_max

    def get(self, key: _Key, default: None = None) -> _Entry | None:  # type: ignore[override]  # one kind of use
        """The answer, as just asked for."""
        entry = super().get(key)
        if entry is not None:
            self.move_to_end(key)
        return entry

    def remember(self, key: _Key, entry: _Entry) -> None:
        """Takes an answer in."""
        self[key] = entry
        self.move_to_end(key)
        while len(self) > self._entries_max:
            self.popitem(last=False)


class Authoriser:
    """Asks the ledger, each question once at a time, and remembers."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        settings: IngestSettings,
        *,
        monotonic_seconds: Callable[[], float],
    ) -> None:
        self._masters: master_service_pb2_grpc.MasterServiceAsyncStub = (
            master_service_pb2_grpc.MasterServiceStub(channel)
        )
        self._settings = settings
        self._now = monotonic_seconds
        self._allowed = _Memory(settings.authorisation_entries_max)
        # Apart, or strangers who ask for many would drive out those who may log in while the ledger is away.
        self._refused = _Memory(settings.authorisation_entries_max)
        self._asking: dict[_Key, asyncio.Task[Answer]] = {}
        self._is_ledger_up = True
        self.changes = 0
        """Rises with every announced change, and when some may have been missed: older answers may be wrong."""

    @property
    def is_ledger_up(self) -> bool:
        """Whether the ledger's last answer was one."""
        return self._is_ledger_up

    async def authorise(self, command: Authorise, *, fresh: bool = False) -> Answer:
        """The answer to a login. Never raises; `fresh` asks the ledger even if an answer is remembered."""
        key = _Key(command.master_id, command.key_id, sha256(command.license_token.encode()).digest())
        entry = self._allowed.get(key) or self._refused.get(key)
        if entry is not None and not fresh and self._counts(entry):
            metrics.AUTHORISATIONS.labels("cached").inc()
            return entry.answer
        return await asyncio.shield(self._ask_once(key, command))

    def forget_license(self, license_id: str) -> None:
        """The license changed: its answers no longer count."""
        self.changes += 1
        for key in [key for key, entry in self._allowed.items() if entry.license_id == license_id]:
            del self._allowed[key]

    def forget_key(self, master_id: int, key_id: str) -> None:
        """The signing key changed: its answers no longer count."""
        self.changes += 1
        for memory in (self._allowed, self._refused):
            for key in [key for key in memory if key[:2] == (master_id, key_id)]:
                del memory[key]

    def doubt_all(self) -> None:
        """Changes may have been missed: no answer counts any longer, unless the ledger cannot be asked."""
        self.changes += 1
        for entry in (*self._allowed.values(), *self._refused.values()):
            entry.is_doubtful = True

    async def close(self) -> None:
        """Cancels what is being asked."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _counts(self, entry: _Entry) -> bool:
        age_seconds = self._now() - entry.asked_at
        if entry.is_doubtful:
            return False
        if isinstance(entry.answer, Refusal):
            return age_seconds < self._settings.authorisation_negative_seconds
        return age_seconds < self._settings.authorisation_seconds

    def _ask_once(self, key: _Key, command: Authorise) -> asyncio.Task[Answer]:
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, command), name=f"authorise master {command.master_id}")
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return task

    async def _ask(self, key: _Key, command: Authorise) -> Answer:
        if len(self._asking) > self._settings.authorisations_under_way_max:
            metrics.AUTHORISATIONS.labels("overloaded").inc()
            return _UNAVAILABLE
        changes = -1
        for _ in range(_QUESTIONS_MAX):
            changes = self.changes
            try:
                answer = await self._answer_of_ledger(command)
            except UnavailableError as error:
                return self._without_ledger(key, error)
            except ServiceError as error:
                # Our own token is refused, or the ledger is broken: not the master's fault.
                _log.error("the ledger refuses to authorise: %s", error.message)
                return self._without_ledger(key, error)
            if changes == self.changes:
                break
        self._is_ledger_up = True
        metrics.AUTHORISATIONS.labels("refused" if isinstance(answer, Refusal) else "allowed").inc()
        self._remember(key, answer, is_doubtful=changes != self.changes)
        return answer

    async def _answer_of_ledger(self, command: Authorise) -> Answer:
        try:
            return await self._ask_ledger(command)
        except (FailedPreconditionError, NotFoundError, InvalidInputError) as error:
            return _REFUSALS.get(error.reason, Refusal(pb.REJECT_CODE_UNAUTHENTICATED, _UNKNOWN))

    async def _ask_ledger(self, command: Authorise) -> Authorisation:
        request = master_service_pb2.AuthorizeMasterRequest(
            master_id=command.master_id, key_id=command.key_id, license_token=command.license_token
        )
        try:
            response = await self._masters.AuthorizeMaster(
                request, timeout=self._settings.authorisation_timeout_seconds
            )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, peer="ledger") from error
        return _authorisation_of(response)

    def _without_ledger(self, key: _Key, error: ServiceError) -> Answer:
        """An old answer, if it is not too old."""
        if self._is_ledger_up:
            _log.warning("the ledger cannot be asked: %s", error.message)
        self._is_ledger_up = False
        entry = self._allowed.get(key)
        if entry is not None:
            age_seconds = self._now() - entry.asked_at
            if age_seconds < self._settings.authorisation_grace_seconds:
                metrics.AUTHORISATIONS.labels("grace").inc()
                return entry.answer
        metrics.AUTHORISATIONS.labels("unavailable").inc()
        return _UNAVAILABLE

    def _remember(self, key: _Key, answer: Answer, *, is_doubtful: bool) -> None:
        is_refused = isinstance(answer, Refusal)
        memory, other = (self._refused, self._allowed) if is_refused else (self._allowed, self._refused)
        license_id = answer.license_id if isinstance(answer, Authorisation) else ""
        memory.remember(key, _Entry(answer, self._now(), is_doubtful, license_id))
        other.pop(key, None)


def _authorisation_of(response: master_service_pb2.AuthorizeMasterResponse) -> Authorisation:
    master = response.master
    age_ms = master.signal_age_max.ToMilliseconds() if master.HasField("signal_age_max") else None
    return Authorisation(
        secret=response.secret,
        license_id=response.license_id,
        expires_at_us=response.expires_at.ToMicroseconds(),
        signals_per_second_max=master.signals_per_second_max,
        signal_age_ms_max=age_ms or None,
        archived_epoch=response.archived.epoch,
        archived_sequence=response.archived.sequence,
    )
