"""Remembers for a while whose license a token is, within bounds; it never lets an expired one in."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from hashlib import sha256

from services.common.clock import Clock
from services.common.errors import (
    FailedPreconditionError,
    NotFoundError,
    ServiceError,
    UnauthenticatedError,
    UnavailableError,
)
from services.risk import metrics
from services.risk.ledger import Identity


@dataclass(frozen=True, slots=True)
class CacheRules:
    """How many licenses are remembered and for how long; `stale_seconds` counts while ledger is away."""

    entries_max: int
    fresh_seconds: float
    refusal_seconds: float
    stale_seconds: float


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: Identity | ServiceError
    asked_at: float


class LicenseCache:
    """Resolves tokens through `authenticate`: one question at a time per token, answers kept by the token's hash."""

    def __init__(
        self, authenticate: Callable[[str], Awaitable[Identity]], *, rules: CacheRules, clock: Clock
    ) -> None:
        self._authenticate = authenticate
        self._rules = rules
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Identity]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    async def resolve(self, token: str) -> Identity:
        """Who the token stands for.

        Raises:
            UnauthenticatedError: unknown, expired or revoked (`reason` says which).
            UnavailableError: ledger is away and the answer was not known.
        """
        key = sha256(token.encode()).digest()
        entry = self._entries.get(key)
        if entry is not None and self._is_fresh(entry):
            self._entries.move_to_end(key)
            return self._answer(entry)
        try:
            return self._require_unexpired(await self._ask(key, token))
        except UnavailableError:
            if entry is not None and self._is_usable(entry):
                return self._answer(entry)
            raise

    async def resolve_for(self, token: str, masters: Collection[int]) -> Identity:
        """As `resolve`, and asks once more when the user is not known to follow all of the masters.

        A report of a subscription that was made a moment ago would else be refused for good.
        """
        identity = await self.resolve(token)
        key = sha256(token.encode()).digest()
        entry = self._entries.get(key)
        is_new = (
            entry is not None
            and self._clock.monotonic_seconds() - entry.asked_at < self._rules.refusal_seconds
        )
        if is_new or identity.masters.issuperset(masters):
            return identity
        try:
            return self._require_unexpired(await self._ask(key, token))
        except UnavailableError:
            return identity

    async def _ask(self, key: bytes, token: str) -> Identity:
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._fetch(key, token), name="authenticate")
            task.add_done_callback(lambda done: self._asked(key, done))
        # Others wait for the same answer, so a caller that goes away must not cancel it.
        return await asyncio.shield(task)

    def _asked(self, key: bytes, task: asyncio.Task[Identity]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()

    async def _fetch(self, key: bytes, token: str) -> Identity:
        try:
            identity = await self._authenticate(token)
        except NotFoundError as error:
            refusal = UnauthenticatedError("the license is not known", reason="LICENSE_UNKNOWN")
            self._keep(key, refusal)
            raise refusal from error
        except FailedPreconditionError as error:
            refusal = UnauthenticatedError(error.message, reason=error.reason)
            self._keep(key, refusal)
            raise refusal from error
        self._keep(key, identity)
        return identity

    def _keep(self, key: bytes, answer: Identity | ServiceError) -> None:
        self._entries[key] = _Entry(answer, self._clock.monotonic_seconds())
        self._entries.move_to_end(key)
        while len(self._entries) > self._rules.entries_max:
            self._entries.popitem(last=False)
        metrics.LICENSES_CACHED.set(len(self._entries))

    def _is_fresh(self, entry: _Entry) -> bool:
        refused = isinstance(entry.answer, ServiceError)
        limit = self._rules.refusal_seconds if refused else self._rules.fresh_seconds
        return self._clock.monotonic_seconds() - entry.asked_at < limit

    def _is_usable(self, entry: _Entry) -> bool:
        age_seconds = self._clock.monotonic_seconds() - entry.asked_at
        return not isinstance(entry.answer, ServiceError) and age_seconds < self._rules.stale_seconds

    def _answer(self, entry: _Entry) -> Identity:
        if isinstance(entry.answer, ServiceError):
            # A new one each time: a raised exception collects the tracebacks of all who raise it.
            raise UnauthenticatedError(entry.answer.message, reason=entry.answer.reason)
        return self._require_unexpired(entry.answer)

    def _require_unexpired(self, identity: Identity) -> Identity:
        if identity.expires_at <= self._clock.now():
            raise UnauthenticatedError("the license has expired", reason="LICENSE_EXPIRED")
        return identity
