"""IngestService as the proto promises it: each rpc, each documented error."""

from __future__ import annotations

import os
import signal as os_signals

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from execution.common.v1 import snapshot_pb2
from execution.ingest.v1 import frames_pb2
from execution.ingest.v1 import ingest_service_pb2 as pb
from execution.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from mesh.embedded import redis
from services.ingest.app import Running
from tests.contract.ingest.operator import Operator
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import RawMaster, logged_in
from tests.integration.ingest.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, now_us

UNARY = {
    "GetHead": pb.GetHeadRequest(master_id=1),
    "ListHeads": pb.ListHeadsRequest(),
    "GetSnapshot": pb.GetSnapshotRequest(master_id=1),
    "RequestSnapshot": pb.RequestSnapshotRequest(master_id=1),
    "ListSessions": pb.ListSessionsRequest(),
    "Disconnect": pb.DisconnectRequest(master_id=1),
}
READS_THE_LOG = ("GetHead", "ListHeads", "GetSnapshot")


def test_every_rpc_is_here():
    methods = pb.DESCRIPTOR.services_by_name["IngestService"].methods_by_name
    assert set(methods) == {*UNARY, "Publish"}


async def fails(
    operator: Operator, name: str, request: object, code: grpc.StatusCode
) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await operator.call(name, request)
    assert caught.value.code() == code, caught.value
    return caught.value


def field_of(error: grpc.aio.AioRpcError) -> str:
    """The field that a BadRequest names."""
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    for detail in status_pb2.Status.FromString(details).details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            return bad_request.field_violations[0].field
    return ""


async def snapshotted(master: RawMaster, sequence: int) -> snapshot_pb2.Snapshot:
    """Stores a snapshot as of `sequence`."""
    snapshot = snapshot_pb2.Snapshot(master_id=1, taken_at_us=now_us(), account_mode=1)
    snapshot.as_of.sequence = sequence
    master.send(master.keys.snapshot_frame(snapshot))
    while (await master.expect("ack")).ack.snapshot_sequence != sequence:
        pass
    snapshot.as_of.epoch = 1
    return snapshot


# Who may call


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("token", [None, "a license token or anything else"])
async def test_strangers_are_unauthenticated(channel: grpc.aio.Channel, name: str, token: str | None):
    await fails(
        Operator(IngestServiceStub(channel), token), name, UNARY[name], grpc.StatusCode.UNAUTHENTICATED
    )


@pytest.mark.parametrize("token", [SERVICE_TOKEN, OPERATOR_TOKEN])
async def test_operators_and_services_may_call(channel: grpc.aio.Channel, token: str):
    answer = await Operator(IngestServiceStub(channel), token).call("ListSessions", UNARY["ListSessions"])
    assert list(answer.sessions) == []


# The log


async def test_get_head(ingest: Running, operator: Operator):
    error = await fails(operator, "GetHead", UNARY["GetHead"], grpc.StatusCode.NOT_FOUND)
    assert "master 1" in error.details()
    async with logged_in(ingest.port) as master:
        master.send_signals(1, 3)
        await master.acknowledged_up_to(3)
        await snapshotted(master, 2)
        head = (await operator.call("GetHead", UNARY["GetHead"])).head
        assert head.master_id == 1
        assert (head.position.epoch, head.position.sequence) == (1, 3)
        assert (head.snapshot.epoch, head.snapshot.sequence) == (1, 2)
        assert head.session_epoch == master.welcome.session_epoch
        assert head.connected
    await until(lambda: len(ingest.door.sessions) == 0)
    assert not (await operator.call("GetHead", UNARY["GetHead"])).head.connected


async def test_list_heads_by_pages(ingest: Running, operator: Operator):
    for master_id in (3, 1, 2):
        async with logged_in(ingest.port, Credentials(master_id=master_id)):
            pass
    first = await operator.call("ListHeads", pb.ListHeadsRequest(page_size=2))
    assert [head.master_id for head in first.heads] == [1, 2]
    assert first.next_page_token
    rest = await operator.call(
        "ListHeads", pb.ListHeadsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [head.master_id for head in rest.heads] == [3]
    assert not rest.next_page_token
    assert not rest.heads[0].HasField("snapshot")


async def test_get_snapshot(ingest: Running, operator: Operator):
    await fails(operator, "GetSnapshot", UNARY["GetSnapshot"], grpc.StatusCode.NOT_FOUND)
    async with logged_in(ingest.port) as master:
        stored = await snapshotted(master, 0)
    assert (await operator.call("GetSnapshot", UNARY["GetSnapshot"])).snapshot == stored


@pytest.mark.parametrize("name", READS_THE_LOG)
async def test_what_reads_the_log_is_unavailable_without_it(ledger: StandInLedger, name: str):
    async with redis() as server, ingest_running(server.url, ledger.port) as ingest:
        await server.stop()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel:
            operator = Operator(IngestServiceStub(channel), OPERATOR_TOKEN)
            await fails(operator, name, UNARY[name], grpc.StatusCode.UNAVAILABLE)


async def test_a_log_that_stalls_exceeds_the_deadline(ledger: StandInLedger):
    async with (
        redis() as server,
        ingest_running(server.url, ledger.port, grpc_unary_deadline_seconds=0.2) as ingest,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel,
    ):
        operator = Operator(IngestServiceStub(channel), OPERATOR_TOKEN)
        os.kill(server.pid, os_signals.SIGSTOP)
        try:
            await fails(operator, "GetHead", UNARY["GetHead"], grpc.StatusCode.DEADLINE_EXCEEDED)
        finally:
            os.kill(server.pid, os_signals.SIGCONT)


# Sessions


async def test_request_snapshot(ingest: Running, operator: Operator):
    await fails(operator, "RequestSnapshot", UNARY["RequestSnapshot"], grpc.StatusCode.FAILED_PRECONDITION)
    async with logged_in(ingest.port) as master:
        request = pb.RequestSnapshotRequest(master_id=1, reason="a subscriber needs one")
        for _ in range(3):
            await operator.call("RequestSnapshot", request)
        frame = await master.expect("snapshot_request")
        assert frame.snapshot_request.reason == "a subscriber needs one"
        # The repeats become one more a second later, as the answer to the first may be older than they are.
        for ping_id in (5, 6):
            master.send(frames_pb2.ClientFrame(ping=frames_pb2.Ping(id=ping_id)))
            assert (await master.expect("pong")).pong.id == ping_id
            if ping_id == 5:
                await master.expect("snapshot_request")


async def test_list_sessions(ingest: Running, operator: Operator):
    async with (
        logged_in(ingest.port, Credentials(master_id=2)) as second,
        logged_in(ingest.port) as first,
    ):
        first.send_signals(1, 2)
        await first.acknowledged_up_to(2)
        first.send_signals(9)
        await first.rejected_with(frames_pb2.REJECT_CODE_GAP)
        page = await operator.call("ListSessions", pb.ListSessionsRequest(page_size=1))
        (session,) = page.sessions
        assert (session.master_id, session.session_epoch) == (1, first.welcome.session_epoch)
        assert (session.acknowledged.epoch, session.acknowledged.sequence) == (1, 2)
        assert (session.in_flight, session.rejected, session.key_id) == (0, 1, "k1")
        assert session.peer_address.startswith("127.0.0.1:")
        assert abs(session.connected_at.ToMicroseconds() - now_us()) < 60_000_000
        page = await operator.call("ListSessions", pb.ListSessionsRequest(page_token=page.next_page_token))
        assert [one.session_epoch for one in page.sessions] == [second.welcome.session_epoch]
        assert not page.next_page_token


async def test_disconnect(ingest: Running, operator: Operator):
    await fails(operator, "Disconnect", UNARY["Disconnect"], grpc.StatusCode.NOT_FOUND)
    async with logged_in(ingest.port) as master:
        await operator.call("Disconnect", pb.DisconnectRequest(master_id=1, reason="maintenance"))
        (frame,) = await master.ended()
        assert frame.bye.reason == "maintenance"
    async with logged_in(ingest.port):
        pass


# Bad requests


@pytest.mark.parametrize(
    ("name", "request_", "field"),
    [
        ("GetHead", pb.GetHeadRequest(), "master_id"),
        ("GetHead", pb.GetHeadRequest(master_id=2**53), "master_id"),
        ("GetSnapshot", pb.GetSnapshotRequest(), "master_id"),
        ("RequestSnapshot", pb.RequestSnapshotRequest(), "master_id"),
        ("RequestSnapshot", pb.RequestSnapshotRequest(master_id=1, reason="x" * 129), "reason"),
        ("Disconnect", pb.DisconnectRequest(), "master_id"),
        ("Disconnect", pb.DisconnectRequest(master_id=1, reason="\n"), "reason"),
        ("ListHeads", pb.ListHeadsRequest(page_size=1_001), "page_size"),
        ("ListHeads", pb.ListHeadsRequest(page_token="%%%"), "page_token"),
        ("ListHeads", pb.ListHeadsRequest(page_token="é"), "page_token"),
        ("ListSessions", pb.ListSessionsRequest(page_size=1_001), "page_size"),
        ("ListSessions", pb.ListSessionsRequest(page_token="eA=="), "page_token"),
    ],
)
async def test_bad_requests_name_the_field(operator: Operator, name: str, request_: object, field: str):
    error = await fails(operator, name, request_, grpc.StatusCode.INVALID_ARGUMENT)
    assert field_of(error) == field
