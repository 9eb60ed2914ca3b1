"""Risk with its leader killed, hung, or its database restarted: nothing stored is lost, nothing is decided twice."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import asyncpg
import grpc
import pytest

from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.risk.v1 import risk_service_pb2 as pb
from execution.risk.v1 import risk_service_pb2_grpc as risk_grpc
from mesh.embedded import PostgresServer, postgres
from services.risk import app
from tests.integration.risk.risk_service import bearer, outcome, risk_running, risk_settings
from tests.integration.risk.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN, StandInLedger

SLIPPAGE = pb.PROTECTION_REASON_SLIPPAGE
WAIT_SECONDS_MAX = 60.0


@dataclass(slots=True)
class Process:
    """`python -m services.risk serve` as it runs in production."""

    child: asyncio.subprocess.Process
    stub: risk_grpc.RiskServiceStub

    async def status(self) -> pb.GetDetectorStatusResponse:
        return await self.stub.GetDetectorStatus(
            pb.GetDetectorStatusRequest(), metadata=bearer(OPERATOR_TOKEN), timeout=5
        )

    async def leads(self) -> bool:
        try:
            return (await self.status()).leader
        except grpc.aio.AioRpcError:
            return False

    async def answers(self) -> bool:
        try:
            await self.status()
        except grpc.aio.AioRpcError:
            return False
        return True


@asynccontextmanager
async def risk_process(
    url: str, ledger: StandInLedger, port: int, folder: Path, **extra: str
) -> AsyncIterator[Process]:
    environment = (
        os.environ
        | {
            "DATABASE_URL": url,
            "LEDGER_ADDRESS": f"127.0.0.1:{ledger.port}",
            "GRPC_BIND_ADDRESS": f"127.0.0.1:{port}",
            "ADMIN_BIND_ADDRESS": "127.0.0.1:0",
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "OPERATOR_TOKEN": OPERATOR_TOKEN,
            "CHECK_INTERVAL_SECONDS": "0.1",
            "LEASE_SECONDS": "2",
            "LEASE_RETRY_SECONDS": "0.1",
            "APPLY_RETRY_SECONDS": "0.1",
            "DRAIN_GRACE_SECONDS": "0.5",
        }
        | extra
    )
    with (folder / f"risk-{port}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "services.risk", env=environment, stdout=log, stderr=log
        )
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Process(child, risk_grpc.RiskServiceStub(channel))
        finally:
            if child.returncode is None:
                child.send_signal(signal.SIGCONT)
                child.kill()
            await child.wait()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


async def require_no_decision_twice(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        twice = await connection.fetch(
            "select user_no, version from risk.trust_decisions group by 1, 2 having count(*) > 1"
        )
        assert twice == []
        rows = await connection.fetch(
            "select user_no, version, score, level, decided_at from risk.trust_decisions order by user_no, version"
        )
        for one, other in pairwise(rows):
            if one["user_no"] == other["user_no"]:
                assert other["version"] == one["version"] + 1
                # The same thing is not decided again because another process leads.
                assert (one["level"], round(one["score"])) != (other["level"], round(other["score"]))

        async def all_are_applied() -> bool:
            query = "select count(*) from risk.trust_state where applied_version < version"
            return not await connection.fetchval(query)

        await eventually(all_are_applied)
    finally:
        await connection.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_another_takes_over_from_a_leader_that_is_gone(
    fresh_database: str, ledger: StandInLedger, tmp_path: Path, number: signal.Signals
):
    ports = free_ports(2)
    users = [ledger.add_user() for _ in range(4)]
    cheater = users[0]
    async with (
        risk_process(fresh_database, ledger, ports[0], tmp_path) as one,
        risk_process(fresh_database, ledger, ports[1], tmp_path) as two,
    ):

        async def both_answer_and_one_leads() -> bool:
            return await one.answers() and await two.answers() and (await one.leads() or await two.leads())

        await eventually(both_answer_and_one_leads)
        leader, other = (one, two) if await one.leads() else (two, one)
        token = (await leader.status()).fencing_token
        for user in users:
            refuses = user is cheater
            report = pb.ReportOutcomesRequest(
                outcomes=[outcome(n, reason=SLIPPAGE if refuses else 0) for n in range(1, 101)]
            )
            await other.stub.ReportOutcomes(report, metadata=bearer(user.token), timeout=20)

        async def paused() -> bool:
            return cheater.pause == license_pb.PAUSE_SCOPE_ALL

        await eventually(paused)
        leader.child.send_signal(number)
        await eventually(other.leads)
        status = await other.status()
        assert status.fencing_token > token

        async def checked_again() -> bool:
            return (await other.status()).last_check_at.ToNanoseconds() > status.last_check_at.ToNanoseconds()

        await eventually(checked_again)
        await require_no_decision_twice(fresh_database)
        if number is signal.SIGSTOP:
            leader.child.send_signal(signal.SIGCONT)

            async def gave_up() -> bool:
                return await leader.answers() and not await leader.leads()

            await eventually(gave_up)
            assert await other.leads()
            await require_no_decision_twice(fresh_database)
    assert cheater.applied == sorted(set(cheater.applied))


@pytest.fixture
async def own_postgres() -> AsyncIterator[PostgresServer]:
    """A server that this test may restart."""
    async with postgres() as server:
        yield server


async def test_the_database_restarts_under_load(own_postgres: PostgresServer, ledger: StandInLedger):
    url = own_postgres.url
    configured = risk_settings(url, ledger.port, check_interval_seconds=0.1, apply_retry_seconds=0.1)
    await app.migrate(configured)
    users = [ledger.add_user() for _ in range(5)]
    cheater = users[0]
    acknowledged: dict[str, int] = {}
    codes: set[grpc.StatusCode] = set()

    async with risk_running(configured) as risk:
        running = True

        async def subscriber(user) -> None:
            """Reports batch after batch, each until it is taken, as a client does."""
            number = 0
            while running:
                batch = [outcome(number + n, reason=SLIPPAGE if user is cheater else 0) for n in range(1, 21)]
                while True:
                    try:
                        response = await risk.report(user.token, *batch)
                    except grpc.aio.AioRpcError as error:
                        codes.add(error.code())
                        await asyncio.sleep(0.05)
                        continue
                    assert not response.refused
                    assert response.conflicts == 0
                    assert response.stored + response.duplicates == 20
                    break
                number += 20
                acknowledged[user.token] = number
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as tasks:
            for user in users:
                tasks.create_task(subscriber(user))
            for stop in (own_postgres.restart, own_postgres.restart):
                before = sum(acknowledged.values())

                async def progressed(target: int = before + 500) -> bool:
                    return sum(acknowledged.values()) >= target

                await eventually(progressed)
                await stop()
            own_postgres.kill()
            await own_postgres.restart()

            async def paused() -> bool:
                return cheater.pause == license_pb.PAUSE_SCOPE_ALL

            await eventually(paused)
            running = False

        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}

        async def settled() -> bool:
            try:
                response = await risk.check()
            except grpc.aio.AioRpcError:
                return False
            return response.outcomes == sum(acknowledged.values())

        await eventually(settled)
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("select count(*) from risk.outcomes") == sum(acknowledged.values())
    finally:
        await connection.close()
    await require_no_decision_twice(url)
    assert all(user.pause == license_pb.PAUSE_SCOPE_UNSPECIFIED for user in users[1:])
