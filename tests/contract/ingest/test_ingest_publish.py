"""Publish: the front door's rules over gRPC, the same as over TCP."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest
import trustme

from execution.common.v1 import position_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2
from execution.ingest.v1 import ingest_service_pb2 as pb
from execution.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from mesh.embedded import redis
from services.common import stream
from services.common.stream import Redis
from services.ingest.app import Running
from services.ingest.domain.session import Session
from services.ingest.publish import PublishStream
from tests.contract.ingest.bridge import Bridge
from tests.contract.ingest.operator import Operator
from tests.integration.ingest.cuts import cut
from tests.integration.ingest.front_door import ingest_running, read_log, signals_in
from tests.integration.ingest.raw_master import logged_in
from tests.integration.ingest.stand_in_ledger import OPERATOR_TOKEN, StandInLedger
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, now_us, signal

HOUR_US = 3_600_000_000


@pytest.fixture
def bridge(channel: grpc.aio.Channel) -> Bridge:
    return Bridge(IngestServiceStub(channel), Credentials())


async def test_publish_carries_the_same_frames(bridge: Bridge, ingest: Running):
    welcome = await bridge.log_in()
    assert welcome.position.epoch == 1
    for first in (1, 3):
        await bridge.send(bridge.keys.signals(first, [signal(first), signal(first + 1)]))
    while (frame := await bridge.receive()).ack.sequence != 4:
        assert frame.HasField("ack")
    await bridge.send(bridge.keys.signals(9, [signal(9)]))
    assert (await bridge.receive()).reject.code == frames_pb2.REJECT_CODE_GAP
    await bridge.send(frames_pb2.ClientFrame(bye=frames_pb2.Bye()))
    assert (await bridge.receive()).HasField("bye")
    assert await bridge.receive() is None
    assert await bridge.call.code() == grpc.StatusCode.OK
    await until(lambda: len(ingest.door.sessions) == 0)


async def test_a_fault_of_ours_while_a_frame_is_taken_is_internal_and_logged(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    await bridge.log_in()

    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Session, "receive_frame", fail)
    await bridge.send(frames_pb2.ClientFrame(ping=frames_pb2.Ping(id=1)))
    assert await bridge.call.code() == grpc.StatusCode.INTERNAL
    assert "a fault of ours" in caplog.text


async def test_a_stream_that_always_has_something_to_send_is_drained_too(ingest: Running):
    stream = PublishStream(ingest.door, "unix:busy")
    one_more = frames_pb2.ServerFrame(ping=frames_pb2.Ping(id=1)).SerializeToString()
    sent: list[frames_pb2.ServerFrame] = []

    async def write(response: pb.PublishResponse) -> None:
        sent.append(response.frame)
        if response.frame.HasField("ping"):
            stream.write([one_more])
        await asyncio.sleep(0.001)
        if stream.peer.session.is_closed:
            stream._pending = [one for one in stream._pending if one != one_more]

    stream.write([one_more])
    ingest.door.is_draining = True
    async with asyncio.timeout(20):
        await stream.serve(write)
    assert [frame.WhichOneof("frame") for frame in sent[-2:]] == ["drain", "bye"]


async def test_publish_follows_the_sequence_rule(bridge: Bridge, log_client: Redis):
    await bridge.log_in()
    keys, at_us = bridge.keys, now_us()
    batch = keys.signals(1, [signal(number, occurred_at_us=at_us) for number in (1, 2)])
    await bridge.send(batch)
    await bridge.acknowledged_up_to(2)
    # A duplicate is acknowledged again.
    await bridge.send(batch)
    await bridge.acknowledged_up_to(2)
    # What is too old is refused and then declared.
    await bridge.send(keys.signals(3, [signal(3, occurred_at_us=at_us - HOUR_US)]))
    stale = await bridge.reject()
    assert (stale.code, stale.sequence) == (frames_pb2.REJECT_CODE_STALE, 3)
    await bridge.send(keys.gap(3, 3))
    await bridge.acknowledged_up_to(3)
    # What begins too late names what is missing.
    await bridge.send(keys.signals(6, [signal(6)]))
    gap = await bridge.reject()
    assert (gap.code, gap.expected_sequence) == (frames_pb2.REJECT_CODE_GAP, 4)
    await bridge.send(keys.signals(4, [signal(4)]))
    await bridge.acknowledged_up_to(4)
    # Another content for the last sequence is the end.
    await bridge.send(keys.signals(4, [signal(99)]))
    assert (await bridge.reject()).code == frames_pb2.REJECT_CODE_CONFLICT
    assert await bridge.receive() is None
    assert await bridge.call.code() == grpc.StatusCode.OK
    runs = await read_log(log_client)
    assert list(signals_in([run for run in runs if run.WhichOneof("record") == "batch"])) == [1, 2, 4]
    assert [run.WhichOneof("record") for run in runs] == ["batch", "gap", "batch"]


async def test_publish_names_the_durability_and_keeps_it(ledger: StandInLedger):
    """Redis is killed after the Ack: what the bridge was told is there again, and the stream goes on."""
    async with (
        redis(appendfsync="always") as server,
        ingest_running(server.url, ledger.port, durability="FSYNCED") as ingest,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel,
    ):
        bridge = Bridge(IngestServiceStub(channel), Credentials())
        assert (await bridge.log_in()).durability == position_pb2.DURABILITY_FSYNCED
        await bridge.send(bridge.keys.signals(1, [signal(1), signal(2)]))
        ack = await bridge.acknowledged_up_to(2)
        assert ack.durability == position_pb2.DURABILITY_FSYNCED
        server.kill()
        await server.wait()
        await until(lambda: not ingest.publisher.is_ready)
        frame = bridge.keys.signals(3, [signal(3)])
        await bridge.send(frame)
        assert (await bridge.reject()).code == frames_pb2.REJECT_CODE_UNAVAILABLE
        await server.restart()
        await until(lambda: ingest.publisher.is_ready)
        await bridge.send(frame)
        await bridge.acknowledged_up_to(3)
        async with stream.connect(server.url) as client:
            assert list(signals_in(await read_log(client))) == [1, 2, 3]


async def test_publish_takes_gaps_snapshots_and_pings(bridge: Bridge, operator: Operator):
    await bridge.log_in()
    snapshot = snapshot_pb2.Snapshot(master_id=1, taken_at_us=now_us(), account_mode=1)
    await bridge.send(bridge.keys.snapshot_frame(snapshot))
    # As of sequence 0, which an Ack cannot tell from none.
    assert (await bridge.receive()).HasField("ack")
    await operator.call("RequestSnapshot", pb.RequestSnapshotRequest(master_id=1, reason="old"))
    assert (await bridge.receive()).snapshot_request.reason == "old"
    await bridge.send(frames_pb2.ClientFrame(ping=frames_pb2.Ping(id=3)))
    assert (await bridge.receive()).pong.id == 3
    (session,) = (await operator.call("ListSessions", pb.ListSessionsRequest())).sessions
    assert session.peer_address.startswith("ipv4:127.0.0.1:")
    await operator.call("Disconnect", pb.DisconnectRequest(master_id=1, reason="maintenance"))
    assert (await bridge.receive()).bye.reason == "maintenance"
    assert await bridge.receive() is None


async def test_publish_refuses_by_frames_and_not_by_status(bridge: Bridge):
    bridge.who = Credentials(secret=b"wrong")
    with pytest.raises(AssertionError):
        assert (await bridge.log_in()).session_epoch
    assert await bridge.receive() is None
    assert await bridge.call.code() == grpc.StatusCode.OK


async def test_publish_fences_a_session_over_tcp(bridge: Bridge, ingest: Running):
    async with logged_in(ingest.port) as master:
        await bridge.log_in()
        (frame,) = await master.ended()
        assert frame.reject.code == frames_pb2.REJECT_CODE_FENCED


async def test_a_login_over_tcp_fences_publish(bridge: Bridge, ingest: Running):
    await bridge.log_in()
    await bridge.send(bridge.keys.signals(1, [signal(1)]))
    await bridge.acknowledged_up_to(1)
    async with logged_in(ingest.port, acknowledged=(1, 1)) as master:
        assert master.welcome.position.sequence == 1
        assert (await bridge.reject()).code == frames_pb2.REJECT_CODE_FENCED
        assert await bridge.receive() is None
        master.send_signals(2)
        await master.acknowledged_up_to(2)


async def test_a_bridge_that_does_not_read_is_ended(redis_url: str, ledger: StandInLedger):
    before = cut("slow_reader")
    async with (
        ingest_running(redis_url, ledger.port, output_seconds_max=0.3) as ingest,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel,
    ):
        bridge = Bridge(IngestServiceStub(channel), Credentials())
        await bridge.log_in()
        request = frames_pb2.SnapshotRequest(reason="x" * 10_000)
        frame = frames_pb2.ServerFrame(snapshot_request=request).SerializeToString()
        # More than gRPC itself, on both sides, and the kernel take.
        ingest.door.sessions.find(1).port.write([frame] * 3_000)
        await until(lambda: cut("slow_reader") == before + 1)
        # Nothing is left of it here, whatever the client does.
        await until(lambda: (len(ingest.door.streams), len(ingest.door.sessions)) == (0, 0))
        # Once it reads, it is told.
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await bridge.receive() is not None:
                pass
        assert await bridge.call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        again = Bridge(IngestServiceStub(channel), Credentials())
        assert (await again.log_in()).session_epoch


async def test_publish_is_for_the_allowed_networks_too(redis_url: str, ledger: StandInLedger):
    before = cut("network")
    async with (
        ingest_running(redis_url, ledger.port, allowed_networks="10.0.0.0/8") as ingest,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel,
    ):
        bridge = Bridge(IngestServiceStub(channel), Credentials())
        assert (await bridge.reject()).code == frames_pb2.REJECT_CODE_UNAUTHENTICATED
        assert await bridge.receive() is None
        # Operators are not masters: their token decides.
        operator = Operator(IngestServiceStub(channel), OPERATOR_TOKEN)
        assert not (await operator.call("ListSessions", pb.ListSessionsRequest())).sessions
    assert cut("network") == before + 1


@pytest.mark.parametrize(
    ("identity", "common_name"),
    [
        ("master-2.example.com", None),
        # As over TCP: names of other kinds do not hide the common name.
        ("10.0.0.1", "master-2"),
        ("bridge@example.com", "master-2"),
    ],
)
async def test_a_bridges_certificate_names_its_masters(
    redis_url: str, ledger: StandInLedger, tmp_path: Path, identity: str, common_name: str | None
):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    named = authority.issue_cert(identity, common_name=common_name)
    certificate, key, ca = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "ca.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(str(ca))
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        named.private_key_pem.bytes(),
        b"".join(blob.bytes() for blob in named.cert_chain_pems),
    )
    files = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": ca}
    async with (
        ingest_running(redis_url, ledger.port, **files) as ingest,
        grpc.aio.secure_channel(f"127.0.0.1:{ingest.grpc_port}", credentials) as channel,
    ):
        bridge = Bridge(IngestServiceStub(channel), Credentials(master_id=2))
        assert (await bridge.log_in()).session_epoch
        other = Bridge(IngestServiceStub(channel), Credentials(master_id=1))
        await other.send(
            frames_pb2.ClientFrame(
                hello=frames_pb2.Hello(version=1, master_id=1, key_id="k1", nonce=b"n" * 16)
            )
        )
        assert (await other.reject()).code == frames_pb2.REJECT_CODE_UNAUTHENTICATED


async def test_publish_refuses_a_frame_that_is_too_large(bridge: Bridge):
    await bridge.log_in()
    await bridge.send(frames_pb2.ClientFrame(bye=frames_pb2.Bye(reason="x" * 70_000)))
    assert (await bridge.receive()).reject.code == frames_pb2.REJECT_CODE_TOO_LARGE
    assert await bridge.receive() is None


async def test_publish_ends_the_session_when_the_call_is_cancelled(bridge: Bridge, ingest: Running):
    await bridge.log_in()
    assert len(ingest.door.sessions) == 1
    bridge.call.cancel()
    await until(lambda: len(ingest.door.sessions) == 0)


async def test_publish_is_limited_in_streams_and_time(redis_url: str, ledger: StandInLedger):
    async with (
        ingest_running(
            redis_url, ledger.port, publish_streams_max=1, unauthenticated_seconds_max=0.3
        ) as ingest,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel,
    ):
        silent = Bridge(IngestServiceStub(channel), Credentials())
        await until(lambda: len(ingest.door.streams) == 1)
        second = Bridge(IngestServiceStub(channel), Credentials())
        assert (await second.receive()).reject.code == frames_pb2.REJECT_CODE_TOO_MANY_CONNECTIONS
        assert (await silent.receive()).reject.code == frames_pb2.REJECT_CODE_UNAUTHENTICATED


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"connections_per_address_max": 2}, "address"),
        ({"unauthenticated_connections_max": 2}, "unauthenticated"),
    ],
)
async def test_strangers_cannot_take_every_stream(
    redis_url: str, ledger: StandInLedger, limit: dict[str, int], reason: str
):
    before = cut(reason)
    async with (
        ingest_running(redis_url, ledger.port, **limit) as ingest,
        grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel,
    ):
        silent = [Bridge(IngestServiceStub(channel), Credentials()) for _ in range(2)]
        await until(lambda: len(ingest.door.streams) == 2)
        third = Bridge(IngestServiceStub(channel), Credentials())
        assert (await third.reject()).code == frames_pb2.REJECT_CODE_TOO_MANY_CONNECTIONS
        assert cut(reason) == before + 1
        assert (await silent[0].log_in()).session_epoch
        if reason == "unauthenticated":
            # Who has logged in is no stranger.
            assert (await Bridge(IngestServiceStub(channel), Credentials(master_id=2)).log_in()).session_epoch
        for one in silent:
            one.call.cancel()


async def test_publish_drains(redis_url: str, ledger: StandInLedger):
    running = ingest_running(redis_url, ledger.port)
    ingest = await running.__aenter__()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel:
        bridge = Bridge(IngestServiceStub(channel), Credentials())
        await bridge.log_in()
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        assert (await bridge.receive()).HasField("drain")
        assert (await bridge.receive()).HasField("bye")
        assert await bridge.receive() is None
        await stopping
