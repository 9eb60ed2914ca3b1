"""The real front door and stock gRPC clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from execution.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from services.common import stream
from services.common.stream import Redis
from services.ingest.app import Running
from tests.contract.ingest.operator import Operator
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.stand_in_ledger import OPERATOR_TOKEN, StandInLedger, standing_in
from tests.unit.ingest.signing import Credentials


@pytest.fixture
async def ledger() -> AsyncIterator[StandInLedger]:
    async with standing_in() as ledger:
        for master_id in (1, 2, 3):
            ledger.add(Credentials(master_id=master_id))
        yield ledger


@pytest.fixture
async def ingest(redis_url: str, ledger: StandInLedger) -> AsyncIterator[Running]:
    async with ingest_running(redis_url, ledger.port) as service:
        yield service


@pytest.fixture
async def log_client(redis_url: str) -> AsyncIterator[Redis]:
    async with stream.connect(redis_url) as client:
        yield client


@pytest.fixture
async def channel(ingest: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ingest.grpc_port}") as channel:
        yield channel


@pytest.fixture
def operator(channel: grpc.aio.Channel) -> Operator:
    return Operator(IngestServiceStub(channel), OPERATOR_TOKEN)
