"""`python -m services.ingest --workers N`: masters at several processes behind one port."""

from __future__ import annotations

import asyncio
import json
import os
import signal as os_signals
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc
import pytest

from execution.ingest.v1 import frames_pb2 as pb
from execution.ingest.v1 import ingest_service_pb2 as service_pb
from execution.ingest.v1 import ingest_service_pb2_grpc as service_grpc
from mesh import ports
from services.common.stream import Redis
from tests.integration.ingest.front_door import read_log, signals_in
from tests.integration.ingest.raw_master import RawMaster, logged_in
from tests.integration.ingest.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger
from tests.integration.ingest.steady_master import check_log, steady
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials

LOOPBACK = "127.0.0.1"
WAIT_SECONDS = 60.0
ATTEMPTS = 64


@dataclass
class Workers:
    """The parent, and at which worker each session was opened, as the log lines tell."""

    process: Process
    port: int
    grpc_port: int
    pids: dict[str, int] = field(default_factory=dict)
    nodes: dict[tuple[int, int], str] = field(default_factory=dict)
    is_ready: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> None:
        while line := await self.process.stdout.readline():
            said = json.loads(line)
            node = said["service.node.name"]
            if said["message"] == "session opened":
                self.nodes[said["master.id"], said["session.epoch"]] = node
            self.is_ready |= said["message"] == "ready" and node == "parent"
            self.changed.set()

    async def ready(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not self.is_ready:
                self.changed.clear()
                await self.changed.wait()

    async def node_of(self, master: RawMaster, who: Credentials) -> str:
        """Which worker has the session."""
        key = who.master_id, master.welcome.session_epoch
        async with asyncio.timeout(WAIT_SECONDS):
            while key not in self.nodes:
                self.changed.clear()
                await self.changed.wait()
        return self.nodes[key]

    def children(self) -> list[int]:
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [int(pid) for pid in file.read().split()]

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[service_grpc.IngestServiceAsyncStub]:
        """On a connection of its own, so at any of the workers."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{self.grpc_port}", options) as channel:
            yield service_grpc.IngestServiceStub(channel)


@pytest.fixture
async def workers(redis_url: str, ledger: StandInLedger) -> AsyncIterator[Workers]:
    base = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
    with ports.port_block() as block:
        port, grpc_port, admin_port = block.take(), block.take(), block.take()
        environment = base | {
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "OPERATOR_TOKEN": OPERATOR_TOKEN,
            "BIND_ADDRESS": f"{LOOPBACK}:{port}",
            "GRPC_BIND_ADDRESS": f"{LOOPBACK}:{grpc_port}",
            "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:{admin_port}",
            "REDIS_URL": redis_url,
            "LEDGER_ADDRESS": f"{LOOPBACK}:{ledger.port}",
            "DRAIN_SPREAD_SECONDS": "0",
            "DRAIN_GRACE_SECONDS": "2",
            "SIBLING_TIMEOUT_SECONDS": "0.5",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.ingest", "--workers", "2"),
            env=environment,
            stdout=PIPE,
            stderr=PIPE,
            limit=1 << 20,
        )
        workers = Workers(process, port, grpc_port)
        reading = asyncio.create_task(workers.read())
        try:
            await workers.ready()
            yield workers
            process.send_signal(os_signals.SIGTERM)
            async with asyncio.timeout(WAIT_SECONDS):
                errors = await process.stderr.read()
                # grpc.aio complains on stderr when a worker that has just been started again is stopped in its start.
                assert await process.wait() == 0, errors
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await reading


def metadata() -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {OPERATOR_TOKEN}"),)


async def test_a_login_at_another_worker_fences_the_session_here(workers: Workers, log_client: Redis):
    who = Credentials()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(logged_in(workers.port, who))
        here = await workers.node_of(first, who)
        for _ in range(ATTEMPTS):
            second = await stack.enter_async_context(logged_in(workers.port, who))
            if await workers.node_of(second, who) != here:
                break
            # The kernel chose the same worker, which knows of both.
            assert (await first.ended())[-1].reject.code == pb.REJECT_CODE_FENCED
            first = second
        second.send_signals(1, 2)
        await second.acknowledged_up_to(2)
        first.send_signals(1)
        assert (await first.rejected_with(pb.REJECT_CODE_FENCED)).sequence == 1
        assert await first.receive() is None
        second.send_signals(3)
        await second.acknowledged_up_to(3)
    assert list(signals_in(await read_log(log_client))) == [1, 2, 3]


async def test_the_log_stays_dense_while_a_master_changes_workers_and_one_is_killed(
    workers: Workers, log_client: Redis
):
    who = Credentials()
    async with steady(lambda: workers.port, who) as master:
        for turn in range(12):
            await master.acknowledges(40)
            if turn % 4 == 3:
                await until(lambda: len(workers.children()) == 2)
                os.kill(workers.children()[turn // 4 % 2], os_signals.SIGKILL)
                continue
            # An impostor with the same key takes over for a moment, if its worker is not the one that is being killed.
            with suppress(OSError, AssertionError):
                async with logged_in(workers.port, who):
                    await asyncio.sleep(0.01)
        await master.acknowledges(40)
    assert check_log(await read_log(log_client), master) == []
    assert len(set(workers.nodes.values())) == 2


async def test_operators_see_and_reach_all_sessions_whichever_worker_they_ask(
    workers: Workers, ledger: StandInLedger
):
    everybody = [
        ledger.add(Credentials(master_id=number, license_token=f"license-{number}"))
        for number in range(1, 17)
    ]
    async with AsyncExitStack() as stack:
        masters = {
            who.master_id: await stack.enter_async_context(logged_in(workers.port, who)) for who in everybody
        }
        nodes = {await workers.node_of(masters[who.master_id], who) for who in everybody}
        assert nodes == {"worker-1", "worker-2"}
        for _ in range(4):
            stub = await stack.enter_async_context(workers.stub())
            assert await listed(stub) == sorted(masters)
            for master_id in masters:
                await stub.RequestSnapshot(
                    service_pb.RequestSnapshotRequest(master_id=master_id), metadata=metadata()
                )
        for master in masters.values():
            await master.expect("snapshot_request")
            master.send_signals(1)
            await master.acknowledged_up_to(1)
        head = await stub.GetHead(service_pb.GetHeadRequest(master_id=3), metadata=metadata())
        assert head.head.connected
        heads = await stub.ListHeads(service_pb.ListHeadsRequest(), metadata=metadata())
        assert [head.master_id for head in heads.heads if head.connected] == sorted(masters)
        for master_id, master in masters.items():
            await stub.Disconnect(service_pb.DisconnectRequest(master_id=master_id), metadata=metadata())
            assert (await master.ended())[-1].WhichOneof("frame") == "bye"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Disconnect(service_pb.DisconnectRequest(master_id=1), metadata=metadata())
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RequestSnapshot(service_pb.RequestSnapshotRequest(master_id=1), metadata=metadata())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_half_an_answer_is_none(workers: Workers):
    async with AsyncExitStack() as stack:
        stubs = [await stack.enter_async_context(workers.stub()) for _ in range(16)]
        for stub in stubs:
            assert await listed(stub) == []
        hung = workers.children()[0]
        os.kill(hung, os_signals.SIGSTOP)
        try:
            answers = await asyncio.gather(*(asked(stub) for stub in stubs))
        finally:
            os.kill(hung, os_signals.SIGCONT)
    # Either the one that was asked hangs, or it says which one does.
    assert set(answers) == {
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (grpc.StatusCode.UNAVAILABLE, "worker 1 does not answer"),
    }


async def asked(stub: service_grpc.IngestServiceAsyncStub) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListSessions(service_pb.ListSessionsRequest(), metadata=metadata(), timeout=5)
    return caught.value.code(), caught.value.details() or ""


async def listed(stub: service_grpc.IngestServiceAsyncStub) -> list[int]:
    """The masters of all sessions, a few at a time."""
    found: list[int] = []
    token = ""
    while True:
        page = await stub.ListSessions(
            service_pb.ListSessionsRequest(page_size=3, page_token=token), metadata=metadata()
        )
        found += [session.master_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            return found
        assert len(page.sessions) == 3
