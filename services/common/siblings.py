"""How a worker answers its siblings and asks them, on sockets that only this service's workers reach; no rules."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import grpc

from services.common import auth, rpc
from services.common.errors import UnavailableError
from services.common.worker import WorkerSettings, call_socket

AnswerT = TypeVar("AnswerT")

_SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Siblings:
    """The other workers of this service; none where it runs as one process."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._paths: dict[int, Path] = {}
        if settings.worker_folder is not None:
            self._paths = {
                number: call_socket(settings.worker_folder, number)
                for number in range(1, settings.workers + 1)
                if number != settings.worker_number
            }

    def __len__(self) -> int:
        return len(self._paths)

    async def ask(self, question: Callable[[grpc.aio.Channel], Awaitable[AnswerT]]) -> dict[int, AnswerT]:
        """Every sibling's answer, by its number. One that is starting or has ended has none and is left out.

        Raises:
            ServiceError: what a sibling answered; UnavailableError when it did not within SIBLING_TIMEOUT_SECONDS.
        """
        numbers = list(self._paths)
        answers = await asyncio.gather(*(self.ask_one(number, question) for number in numbers))
        return {number: found for number, found in zip(numbers, answers, strict=True) if found is not None}

    async def ask_one(
        self, number: int, question: Callable[[grpc.aio.Channel], Awaitable[AnswerT]]
    ) -> AnswerT | None:
        """One sibling's answer; None while it is starting or has ended.

        Raises:
            ServiceError: as for `ask`.
        """
        settings, path = self._settings, self._paths[number]
        if not _is_listening(path):
            return None
        # A channel of its own for each question: operators ask rarely, and one that was down is not waited for.
        async with rpc.channel(
            f"unix:{path}",
            token=settings.service_token.get_secret_value(),
            call_timeout_seconds=settings.sibling_timeout_seconds,
            message_bytes_max=settings.grpc_message_bytes_max,
        ) as channel:
            try:
                return await question(channel)
            except grpc.aio.AioRpcError as error:
                if error.code() in _SILENT:
                    raise UnavailableError(
                        f"worker {number} does not answer", reason="WORKER_SILENT", retry_after_seconds=1
                    ) from error
                raise rpc.error_from_rpc(error, peer=f"worker {number}") from error


def _is_listening(path: Path) -> bool:
    """Whether there is a process behind the socket, be it one that hangs."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


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
