"""The real front door of the tests, and what they look up in its log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from execution.ingest.v1 import log_pb2
from services.common import settings as common_settings
from services.common import stream
from services.common.stream import Redis
from services.ingest.app import Running, running
from services.ingest.settings import IngestSettings
from tests.integration.ingest.stand_in_ledger import OPERATOR_TOKEN, SERVICE_TOKEN
from tests.integration.ingest.waiting import until


def ingest_settings(redis_url: str, ledger_port: int, **overrides: object) -> IngestSettings:
    values: dict[str, object] = {
        "bind_address": "127.0.0.1:0",
        "grpc_bind_address": "127.0.0.1:0",
        "admin_bind_address": "127.0.0.1:0",
        "redis_url": redis_url,
        "service_token": SERVICE_TOKEN,
        "operator_token": OPERATOR_TOKEN,
        "ledger_address": f"127.0.0.1:{ledger_port}",
        "drain_grace_seconds": 2.0,
        "drain_spread_seconds": 0,
        "heartbeat_seconds": 1.0,
        "silent_heartbeats_max": 30,
    }
    values.update(overrides)
    return common_settings.load(IngestSettings, **values)


@asynccontextmanager
async def ingest_running(redis_url: str, ledger_port: int, **overrides: object) -> AsyncIterator[Running]:
    async with running(ingest_settings(redis_url, ledger_port, **overrides)) as service:
        if service.publisher.is_ready:
            await until(lambda: service.watch.is_following)
        yield service


async def read_log(client: Redis) -> list[log_pb2.LogRun]:
    """Every run of the log, in order."""
    entries = await client.xrange(stream.log_name())
    runs: list[log_pb2.LogRun] = []
    for _, fields in entries:
        assert set(fields) == {stream.FIELD}
        runs += log_pb2.LogBatch.FromString(fields[stream.FIELD]).runs
    return runs


def signals_in(runs: list[log_pb2.LogRun], master_id: int = 1) -> dict[int, int]:
    """position_id by sequence, of one master; fails if a sequence is there twice or out of order."""
    found: dict[int, int] = {}
    last = 0
    for run in runs:
        if run.master_id != master_id or run.WhichOneof("record") != "batch":
            continue
        assert run.first_sequence == run.batch.first_sequence
        assert run.last_sequence == run.first_sequence + len(run.batch.signals) - 1
        for offset, one in enumerate(run.batch.signals):
            sequence = run.first_sequence + offset
            assert sequence > last, f"sequence {sequence} behind {last}"
            last = sequence
            found[sequence] = one.position_id
    return found
