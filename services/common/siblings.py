"""How a worker answers its siblings and asks them, on sockets that only this service's workers reach; no rules."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import grpc

from services.common import auth, rpc
from services.common.worker import WorkerSettings, call_socket

_log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

_GONE: Final = grpc.StatusCode.UNAVAILABLE


class Siblings:
    """The other workers of this service; none where it runs as one process."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._targets: dict[int, str] = {}
        if settings.worker_folder is not None:
            self._targets = {
                number: f"unix:{call_socket(settings.worker_folder, number)}"
                for number in range(1, settings.workers + 1)
                if number != settings.worker_number
            }

    def __len__(self) -> int:
        return len(self._targets)

    async def ask(self, question: Callable[[grpc.aio.Channel], Awaitable[AnswerT]]) -> dict[int, AnswerT]:
        """Every sibling's answer, by its number. One that is starting or ending has none and is left out.

        Raises:
            ServiceError: what a sibling answered; UnavailableError when it did not within SIBLING_TIMEOUT_SECONDS.
        """
        numbers = list(self._targets)
        answers = await asyncio.gather(*(self.ask_one(number, question) for number in numbers))
        return {number: found for number, found in zip(numbers, answers, strict=True) if found is not None}

    async def ask_one(
        self, number: int, question: Callable[[grpc.aio.Channel], Awaitable[AnswerT]]
    ) -> AnswerT | None:
        """One sibling's answer; None while it is starting or ending.

        Raises:
            ServiceError: as for `ask`.
        """
        settings = self._settings
        # A channel of its own for each question: operators ask rarely, and one that was down is not waited for.
        async with rpc.channel(
            self._targets[number],
            token=settings.service_token.get_secret_value(),
            call_timeout_seconds=settings.sibling_timeout_seconds,
            message_bytes_max=settings.grpc_message_bytes_max,
        ) as channel:
            try:
                return await question(channel)
            except grpc.aio.AioRpcError as error:
                if error.code() is not _GONE:
                    raise rpc.error_from_rpc(error, peer=f"worker {number}") from error
                _log.info("worker %d does not answer: %s", number, error.details())
                return None


@asynccontextmanager
async def answering(
    settings: WorkerSettings,
    registrations: Sequence[rpc.Registration],
    *,
    authorizer: auth.Authorizer,
) -> AsyncIterator[None]:
    """Answers siblings until the block ends, from this process alone; does nothing where there are none."""
    if settings.worker_folder is None or settings.worker_number is None:
        yield
        return
    path = call_socket(settings.worker_folder, settings.worker_number)
    async with rpc.serving(settings, registrations, authorizer=authorizer, unix_path=path):
        yield
