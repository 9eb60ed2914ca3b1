"""FanoutService over gRPC: requests in, streams and answers out; the rules are elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common import auth, rpc, status
from services.common.auth import PrincipalKind
from services.common.clock import Clock
from services.common.errors import InvalidInputError, PermissionDeniedError
from services.fanout.acknowledgements import Acknowledgements
from services.fanout.delivery import Delivery, Needs
from services.fanout.domain import errors
from services.fanout.domain.codec import position_pb
from services.fanout.domain.cursor import Cursor
from services.fanout.domain.errors import PositionUnavailableError, Unavailable
from services.fanout.domain.lag import LagLimits
from services.fanout.domain.position import Position
from services.fanout.domain.request import Begin, page_of, positions_of, starts_of
from services.fanout.domain.stream import Reader, Stream, state_of
from services.fanout.edge.choice import writer_of
from services.fanout.entitlements import Entitlements, Identity
from services.fanout.hub import Hub
from services.fanout.live import LiveEntitlements
from services.fanout.opening import Opening
from services.fanout.recorder import Recorder
from services.fanout.snapshots import Snapshots
from services.fanout.standing import Standing
from services.fanout.stream_tasks import StreamTasks

SERVICE: Final = pb.DESCRIPTOR.services_by_name["FanoutService"].full_name
SUBSCRIBE: Final = f"/{SERVICE}/Subscribe"
ACKNOWLEDGE: Final = f"/{SERVICE}/Acknowledge"
LIST_STREAMS: Final = f"/{SERVICE}/ListStreams"
ALLOWED: Final = {
    SUBSCRIBE: {PrincipalKind.LICENSE},
    ACKNOWLEDGE: {PrincipalKind.LICENSE},
    # Licenses too, so that a subscriber hears PERMISSION_DENIED and not that its token is unknown.
    LIST_STREAMS: {PrincipalKind.SERVICE, PrincipalKind.OPERATOR, PrincipalKind.LICENSE},
}
_TRAILER_BYTES_MAX: Final = 6_000


class FanoutServicer:
    """The three calls."""

    def __init__(
        self,
        *,
        hub: Hub,
        ready: Callable[[], bool],
        entitlements: Entitlements,
        live: LiveEntitlements,
        opening: Opening,
        snapshots: Snapshots,
        recorder: Recorder,
        acknowledgements: Acknowledgements,
        standing: Standing,
        tasks: StreamTasks,
        needs: Needs,
        clock: Clock,
        lag_limits: LagLimits,
    ) -> None:
        self._hub = hub
        self._ready = ready
        self._entitlements = entitlements
        self._live = live
        self._opening = opening
        self._snapshots = snapshots
        self._recorder = recorder
        self._acknowledgements = acknowledgements
        self._standing = standing
        self._tasks = tasks
        self._needs = needs
        self._clock = clock
        self._lag_limits = lag_limits

    async def subscribe(self, request: pb.SubscribeRequest, context: rpc.Context) -> None:
        """Streams until either side ends it."""
        token = auth.current_principal().token
        starts = starts_of(request)
        identity = await self._entitlements.authenticate_for(token, [one.master_id for one in starts])
        self._hub.admit(identity.user_id)
        if not self._ready():
            raise errors.not_ready()
        reader = Reader(
            user_id=identity.user_id,
            license_id=identity.license_id,
            expires_at_us=identity.expires_at_us,
            peer_address=context.peer(),
            client=request.client,
        )
        try:
            opened = await self._opening.open(self._hub.next_id(), reader, identity, starts)
        except PositionUnavailableError as error:
            await _abort_with_positions(context, error)
            return
        writer = writer_of(context)
        delivery = Delivery(opened.stream, writer, self._needs, self._clock, self._lag_limits)
        # Others may have come while the log was asked.
        self._hub.admit(identity.user_id)
        self._hub.add(delivery)
        self._live.opened(delivery, token)
        try:
            now = await self._settle(delivery, token, identity)
            for cursor, begin in opened.begun:
                if begin is Begin.SNAPSHOT:
                    self._snapshots.begin(delivery, cursor)
                entitlement = now.entitlements.get(cursor.master_id)
                if begin is Begin.AFTER or (entitlement is not None and entitlement.full_sync_due):
                    self._standing.learn(delivery, cursor, begin)
            await writer.run(delivery)
        finally:
            self._tasks.closed(delivery)
            self._live.closed(delivery)
            self._hub.remove(delivery)

    async def _settle(self, delivery: Delivery, token: str, identity: Identity) -> Identity:
        """What was announced between looking the token up and listening for the stream counts too."""
        now = await self._entitlements.authenticate(token)
        if now.entitlements != identity.entitlements or now.expires_at_us != identity.expires_at_us:
            self._live.reconcile(delivery, now)
        return now

    async def acknowledge(
        self, request: pb.AcknowledgeRequest, context: rpc.Context
    ) -> pb.AcknowledgeResponse:
        """Takes note of how far the caller is."""
        positions = positions_of(request)
        token = auth.current_principal().token
        identity = await self._entitlements.authenticate_for(token, [master_id for master_id, _ in positions])
        missing = [master_id for master_id, _ in positions if master_id not in identity.entitlements]
        if missing:
            raise errors.not_subscribed(missing)
        for index, (master_id, position) in enumerate(positions):
            await self._check_head(index, master_id, position)
        self._recorder.acknowledge(identity.user_id, positions)
        self._acknowledgements.take(identity.user_id, positions, context.peer())
        return pb.AcknowledgeResponse()

    async def _check_head(self, index: int, master_id: int, position: Position) -> None:
        log = self._hub.ring.get(master_id)
        if log is not None and position <= log.head:
            return
        head = await self._opening.head(master_id)
        if position > head:
            raise InvalidInputError.of_field(
                f"positions[{index}].position",
                f"beyond the log, which ends at ({head.epoch}, {head.sequence})",
                reason="POSITION_BEYOND_LOG",
            )

    async def list_streams(
        self, request: pb.ListStreamsRequest, context: rpc.Context
    ) -> pb.ListStreamsResponse:
        """A page of the open streams."""
        principal = auth.current_principal()
        if not principal.is_trusted:
            await self._entitlements.authenticate(principal.token)
            raise PermissionDeniedError("only operators and services list streams", reason="KIND_NOT_ALLOWED")
        after, size = page_of(request)
        later = [one.stream for one in self._hub if one.stream.stream_id > after]
        streams = sorted(later, key=lambda stream: stream.stream_id)[: size + 1]
        response = pb.ListStreamsResponse(streams=[_stream_info(stream) for stream in streams[:size]])
        if len(streams) > size:
            response.next_page_token = str(streams[size - 1].stream_id)
        return response


class Calls(Protocol):
    """What answers the three calls."""

    @property
    def subscribe(self) -> Callable[[pb.SubscribeRequest, rpc.Context], Awaitable[None]]:
        """Streams until either side ends it."""
        ...

    @property
    def acknowledge(
        self,
    ) -> Callable[[pb.AcknowledgeRequest, rpc.Context], Awaitable[pb.AcknowledgeResponse]]:
        """Takes note of how far the caller is."""
        ...

    @property
    def list_streams(
        self,
    ) -> Callable[[pb.ListStreamsRequest, rpc.Context], Awaitable[pb.ListStreamsResponse]]:
        """A page of the open streams."""
        ...


def add_to_server(servicer: Calls, server: aio.Server) -> None:
    """Registers the service; Subscribe's responses are ready bytes already."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Subscribe": grpc.unary_stream_rpc_method_handler(
            servicer.subscribe,
            request_deserializer=pb.SubscribeRequest.FromString,
            response_serializer=_identity,
        ),
        "Acknowledge": grpc.unary_unary_rpc_method_handler(
            servicer.acknowledge,
            request_deserializer=pb.AcknowledgeRequest.FromString,
            response_serializer=pb.AcknowledgeResponse.SerializeToString,
        ),
        "ListStreams": grpc.unary_unary_rpc_method_handler(
            servicer.list_streams,
            request_deserializer=pb.ListStreamsRequest.FromString,
            response_serializer=pb.ListStreamsResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


def _identity(data: bytes) -> bytes:
    return data


async def _abort_with_positions(context: rpc.Context, error: PositionUnavailableError) -> None:
    """OUT_OF_RANGE with a PositionUnavailable for each position, as many as trailers may hold."""
    rich = status.status_of(error)
    for one in error.positions:
        rich.details.add().Pack(_unavailable_pb(one))
        if rich.ByteSize() > _TRAILER_BYTES_MAX:
            del rich.details[-1]
            break
    trailers = ((status.DETAILS_KEY, rich.SerializeToString()),)
    await context.abort(status.code_of(error), rich.message, trailers)


def _unavailable_pb(one: Unavailable) -> pb.PositionUnavailable:
    return pb.PositionUnavailable(
        master_id=one.master_id,
        requested=position_pb(one.requested),
        oldest=position_pb(one.oldest),
        head=position_pb(one.head),
        snapshot=None if one.snapshot is None else position_pb(one.snapshot),
    )


def _stream_info(stream: Stream) -> pb.StreamInfo:
    opened_at = Timestamp()
    opened_at.FromMicroseconds(stream.opened_at_us)
    return pb.StreamInfo(
        stream_id=stream.stream_id,
        user_id=stream.reader.user_id,
        peer_address=stream.reader.peer_address,
        client=stream.reader.client,
        opened_at=opened_at,
        cursors=_cursors_pb(stream.cursors.values()),
    )


def _cursors_pb(cursors: Iterable[Cursor]) -> list[Any]:
    return [
        pb.StreamCursor(
            master_id=cursor.master_id,
            sent=position_pb(cursor.position),
            acknowledged=position_pb(cursor.acknowledged),
            lag=cursor.lag_signals,
            state=state_of(cursor),
        )
        for cursor in cursors
    ]
