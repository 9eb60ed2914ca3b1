"""IngestService: proto in, session or log asked, proto out; no rules of its own."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

from execution.ingest.v1 import ingest_service_pb2 as pb
from execution.ingest.v1 import ingest_service_pb2_grpc
from services.common import log
from services.common.clock import datetime_from_us
from services.common.errors import FailedPreconditionError, InvalidInputError, NotFoundError
from services.common.rpc import Context
from services.ingest.domain.rules import SEQUENCE_MAX, is_note
from services.ingest.peer import Door, Peer
from services.ingest.publish import publish

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
REASON_BYTES_MAX: Final = 128


class IngestServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """The front door over gRPC, and what operators ask of it."""

    def __init__(self, door: Door, signal_log: log.SignalLog) -> None:
        self._door = door
        self._log = signal_log

    async def Publish(  # type: ignore[override]  # the stubs know only generators; writing shows who does not read
        self, request_iterator: AsyncIterator[pb.PublishRequest], context: Context
    ) -> None:
        """See the proto."""
        names = _names_in(context.auth_context())
        await publish(self._door, request_iterator, context.write, context.peer(), names)

    async def GetHead(self, request: pb.GetHeadRequest, context: Context) -> pb.GetHeadResponse:
        """See the proto."""
        head = await self._log.read_head(_master_id(request.master_id))
        if head is None:
            raise NotFoundError(f"the log has nothing of master {request.master_id}")
        return pb.GetHeadResponse(head=self._head_to_pb(head))

    async def ListHeads(self, request: pb.ListHeadsRequest, context: Context) -> pb.ListHeadsResponse:
        """See the proto."""
        size, after = _page(request.page_size, request.page_token)
        found = {head.master_id: head async for head in self._log.scan_heads()}
        ids = sorted(master_id for master_id in found if master_id > after)
        page = ids[:size]
        return pb.ListHeadsResponse(
            heads=[self._head_to_pb(found[master_id]) for master_id in page],
            next_page_token=page_token_of(page[-1]) if len(ids) > size else "",
        )

    async def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotResponse:
        """See the proto."""
        snapshot = await self._log.read_snapshot(_master_id(request.master_id))
        if snapshot is None:
            raise NotFoundError(f"no snapshot of master {request.master_id} was ever stored")
        return pb.GetSnapshotResponse(snapshot=snapshot)

    async def RequestSnapshot(
        self, request: pb.RequestSnapshotRequest, context: Context
    ) -> pb.RequestSnapshotResponse:
        """See the proto."""
        _check_reason(request.reason)
        peer = self._door.sessions.find(_master_id(request.master_id))
        if peer is None:
            raise FailedPreconditionError(
                f"master {request.master_id} is not connected to this process", reason="NOT_CONNECTED"
            )
        peer.request_snapshot(request.reason)
        return pb.RequestSnapshotResponse()

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """See the proto."""
        size, after = _page(request.page_size, request.page_token)
        peers = [peer for peer in self._door.sessions.all() if peer.master_id > after]
        page = peers[:size]
        return pb.ListSessionsResponse(
            sessions=[session_to_pb(peer) for peer in page],
            next_page_token=page_token_of(page[-1].master_id) if len(peers) > size else "",
        )

    async def Disconnect(self, request: pb.DisconnectRequest, context: Context) -> pb.DisconnectResponse:
        """See the proto."""
        _check_reason(request.reason)
        peer = self._door.sessions.find(_master_id(request.master_id))
        if peer is None:
            raise NotFoundError(f"no session of master {request.master_id} is open here")
        peer.session.say_bye(request.reason or "disconnected by an operator")
        peer.send()
        return pb.DisconnectResponse()

    def _head_to_pb(self, head: log.Head) -> pb.MasterHead:
        message = pb.MasterHead(
            master_id=head.master_id,
            session_epoch=head.session_epoch,
            connected=self._door.sessions.find(head.master_id) is not None,
        )
        message.position.epoch, message.position.sequence = head.position
        if head.snapshot is not None:
            message.snapshot.epoch, message.snapshot.sequence = head.snapshot
        return message


def session_to_pb(peer: Peer) -> pb.Session:
    """An open session as operators see it."""
    intake, handshake = peer.session.intake, peer.session.handshake
    message = pb.Session(
        master_id=peer.master_id,
        peer_address=peer.port.peer_address,
        client=handshake.client,
        key_id=handshake.key_id,
        rejected=peer.rejected,
    )
    message.connected_at.FromDatetime(datetime_from_us(peer.connected_at_us))
    if intake is not None:
        message.session_epoch = intake.session_epoch
        message.in_flight = intake.in_flight
        message.acknowledged.epoch = intake.epoch
        message.acknowledged.sequence = intake.durable
    return message


def _names_in(authentication: Mapping[str, Iterable[bytes]]) -> list[str]:
    """The DNS names of a client's certificate or, without any, its common name; as `identities.names_in`."""
    for kind in ("peer_dns", "x509_common_name"):
        names = [name.decode(errors="replace") for name in authentication.get(kind, ())]
        if names:
            return names
    return []


def _master_id(value: int) -> int:
    if not 0 < value <= SEQUENCE_MAX:
        raise InvalidInputError.of_field("master_id", "is required")
    return value


def _check_reason(reason: str) -> None:
    if not is_note(reason, REASON_BYTES_MAX):
        raise InvalidInputError.of_field("reason", f"must be at most {REASON_BYTES_MAX} bytes of text")


def _page(size: int, token: str) -> tuple[int, int]:
    """The size of the page and the master behind which it begins."""
    if size > PAGE_SIZE_MAX:
        raise InvalidInputError.of_field("page_size", f"must be at most {PAGE_SIZE_MAX}")
    if not token:
        return size or PAGE_SIZE_DEFAULT, 0
    try:
        after = int(urlsafe_b64decode(token.encode("ascii")))
    except ValueError as error:
        raise InvalidInputError.of_field("page_token", "is not from an answer of this method") from error
    return size or PAGE_SIZE_DEFAULT, after


def page_token_of(master_id: int) -> str:
    return urlsafe_b64encode(b"%d" % master_id).decode("ascii")
