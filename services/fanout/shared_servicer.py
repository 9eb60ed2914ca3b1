"""FanoutService where several workers share the address: operators see the streams of all of them.

Streams stay where they are, and Acknowledge finds them by itself (services.fanout.acknowledgements).
"""

from __future__ import annotations

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from services.common import rpc
from services.common.siblings import Siblings
from services.fanout.domain.request import page_of
from services.fanout.servicer import FanoutServicer


class SharedFanoutServicer:
    """The servicer of one of several workers."""

    def __init__(self, alone: FanoutServicer, siblings: Siblings) -> None:
        self._alone = alone
        self._siblings = siblings
        self.subscribe = alone.subscribe
        self.acknowledge = alone.acknowledge

    async def list_streams(
        self, request: pb.ListStreamsRequest, context: rpc.Context
    ) -> pb.ListStreamsResponse:
        """A page of the open streams of all workers."""
        own = await self._alone.list_streams(request, context)
        _, size = page_of(request)
        answers = await self._siblings.ask(
            lambda channel: fanout_service_pb2_grpc.FanoutServiceStub(channel).ListStreams(request)
        )
        pages = [own, *answers.values()]
        streams = sorted((one for page in pages for one in page.streams), key=lambda one: one.stream_id)
        has_more = len(streams) > size or any(page.next_page_token for page in pages)
        del streams[size:]
        return pb.ListStreamsResponse(
            streams=streams, next_page_token=str(streams[-1].stream_id) if has_more else ""
        )
