"""IngestService where several workers share the address: what any of them holds, each of them answers for.

The siblings are asked for what they hold in their own process; none of them asks further.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import grpc

from execution.ingest.v1 import ingest_service_pb2 as pb
from execution.ingest.v1 import ingest_service_pb2_grpc
from services.common import log
from services.common.errors import FailedPreconditionError, NotFoundError
from services.common.rpc import Context
from services.common.siblings import Siblings
from services.ingest.peer import Door
from services.ingest.servicer import PAGE_SIZE_DEFAULT, IngestServicer, page_token_of

if TYPE_CHECKING:
    # Known to the type stubs alone.
    from execution.ingest.v1.ingest_service_pb2_grpc import IngestServiceAsyncStub

AnswerT = TypeVar("AnswerT")

_ABSENT: Final = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


class SharedIngestServicer(IngestServicer):
    """The servicer of one of several workers."""

    def __init__(self, door: Door, signal_log: log.SignalLog, siblings: Siblings) -> None:
        super().__init__(door, signal_log)
        self._siblings = siblings

    async def GetHead(self, request: pb.GetHeadRequest, context: Context) -> pb.GetHeadResponse:
        """See the proto; `connected` is about all workers."""
        response = await super().GetHead(request, context)
        answers = await self._siblings.ask(lambda channel: _stub(channel).GetHead(request))
        response.head.connected |= any(answer.head.connected for answer in answers.values())
        return response

    async def ListHeads(self, request: pb.ListHeadsRequest, context: Context) -> pb.ListHeadsResponse:
        """See the proto; `connected` is about all workers."""
        response = await super().ListHeads(request, context)
        answers = await self._siblings.ask(lambda channel: _stub(channel).ListHeads(request))
        connected = {head.master_id for answer in answers.values() for head in answer.heads if head.connected}
        for head in response.heads:
            head.connected |= head.master_id in connected
        return response

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """See the proto; the sessions of all workers."""
        own = await super().ListSessions(request, context)
        answers = await self._siblings.ask(lambda channel: _stub(channel).ListSessions(request))
        pages = [own, *answers.values()]
        size = request.page_size or PAGE_SIZE_DEFAULT
        sessions = _latest(session for page in pages for session in page.sessions)
        has_more = len(sessions) > size or any(page.next_page_token for page in pages)
        del sessions[size:]
        return pb.ListSessionsResponse(
            sessions=sessions, next_page_token=page_token_of(sessions[-1].master_id) if has_more else ""
        )

    async def RequestSnapshot(
        self, request: pb.RequestSnapshotRequest, context: Context
    ) -> pb.RequestSnapshotResponse:
        """See the proto; the session may be at any worker, and one that is fenced by now at another."""
        answers = await self._ask_holders(lambda stub: stub.RequestSnapshot(request))
        try:
            return await super().RequestSnapshot(request, context)
        except FailedPreconditionError:
            if not answers:
                raise
            return answers[0]

    async def Disconnect(self, request: pb.DisconnectRequest, context: Context) -> pb.DisconnectResponse:
        """See the proto; as RequestSnapshot."""
        answers = await self._ask_holders(lambda stub: stub.Disconnect(request))
        try:
            return await super().Disconnect(request, context)
        except NotFoundError:
            if not answers:
                raise
            return answers[0]

    async def _ask_holders(
        self, question: Callable[[IngestServiceAsyncStub], Awaitable[AnswerT]]
    ) -> list[AnswerT]:
        """The answers of the siblings that have a session of the master."""

        async def asked(channel: grpc.aio.Channel) -> AnswerT | None:
            try:
                return await question(_stub(channel))
            except grpc.aio.AioRpcError as error:
                if error.code() in _ABSENT:
                    return None
                raise

        answers = await self._siblings.ask(asked)
        return [answer for answer in answers.values() if answer is not None]


def _stub(channel: grpc.aio.Channel) -> IngestServiceAsyncStub:
    return ingest_service_pb2_grpc.IngestServiceStub(channel)


def _latest(sessions: Iterable[pb.Session]) -> list[pb.Session]:
    """Each master's latest session, in ascending order of master_id."""
    found: dict[int, pb.Session] = {}
    for session in sessions:
        known = found.setdefault(session.master_id, session)
        if session.session_epoch > known.session_epoch:
            found[session.master_id] = session
    return [found[master_id] for master_id in sorted(found)]
