"""Older records while the tail has not read all that the log's heads tell of: what is not read yet is not gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from redis.asyncio import Redis

from execution.ledger.v1 import archive_service_pb2_grpc
from services.common import rpc, stream
from services.common.errors import UnavailableError
from services.common.log import SignalLog
from services.common.settings import Address
from services.fanout.backlog import Backlog, BacklogLimits, Gone
from services.fanout.domain.index import EntryKey, LogIndex
from services.fanout.domain.position import BEGINNING, Position
from services.fanout.domain.ring import Segment
from services.fanout.domain.runs import runs_of
from tests.integration.fanout.stand_in_ledger import SERVICE_TOKEN, StandInLedger
from tests.integration.fanout.written_log import WrittenLog

_PLACES = BEGINNING, Position(1, 4)


class Behind:
    """A backlog whose index a test brings up to date, as the tail does."""

    def __init__(self, client: Redis, archive: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self.client = client
        self.index = LogIndex(marks_max=1_000, block_entries=3)
        limits = BacklogLimits(
            walk_entries_max=1_000,
            page_records_max=100,
            pages_cached_max=10,
            reads_max=4,
            timeout_seconds=timeout_seconds,
        )
        stub = archive_service_pb2_grpc.ArchiveServiceStub(archive)
        self.backlog = Backlog(SignalLog([client]), [self.index], stub, limits)

    async def tail(self) -> None:
        for entry in stream.entries_of(await self.client.xrange(stream.log_name())):
            self.index.note(EntryKey(entry.id.ms, entry.id.number), runs_of(entry.payload or b"")[0])


@pytest.fixture
async def archive(ledger: StandInLedger) -> AsyncIterator[grpc.aio.Channel]:
    address = Address("127.0.0.1", ledger.port)
    async with rpc.channel(address, token=SERVICE_TOKEN) as channel:
        yield channel


@pytest.fixture
async def behind(redis_client: Redis, log: WrittenLog, archive: grpc.aio.Channel) -> Behind:
    """One that has looked at the log to its beginning, before master 1 sent ten signals."""
    made = Behind(redis_client, archive, timeout_seconds=10)
    await log.signals(2, 3)
    await made.tail()
    for after in _PLACES:
        assert isinstance(await made.backlog.read(1, after), Gone)
    await log.signals(1, 10)
    return made


@pytest.mark.parametrize("after", _PLACES)
async def test_what_is_not_read_yet_is_waited_for(behind: Behind, after: Position) -> None:
    reading = asyncio.create_task(behind.backlog.read(1, after))
    await asyncio.sleep(0.1)
    assert not reading.done()
    await behind.tail()
    page = await reading
    assert isinstance(page, Segment)
    assert page.floor == after
    assert page.head == Position(1, 10)


async def test_what_is_read_while_it_is_looked_for_is_found(behind: Behind, ledger: StandInLedger) -> None:
    ledger.archive_open.clear()
    reading = asyncio.create_task(behind.backlog.read(1, BEGINNING))
    while not ledger.archive_reads:  # noqa: ASYNC110  # only the stand-in knows
        await asyncio.sleep(0.01)
    await behind.tail()
    ledger.archive_open.set()
    page = await reading
    assert isinstance(page, Segment)
    assert page.head == Position(1, 10)


async def test_a_tail_that_does_not_come_is_an_outage_and_not_a_loss(
    redis_client: Redis, log: WrittenLog, archive: grpc.aio.Channel
) -> None:
    behind = Behind(redis_client, archive, timeout_seconds=0.3)
    behind.index.reaches_beginning = True
    await log.signals(1, 10)
    with pytest.raises(UnavailableError) as caught:
        await behind.backlog.read(1, BEGINNING)
    assert caught.value.reason == "BACKLOG_TIMEOUT"


async def test_what_was_trimmed_whole_is_gone_at_once(
    redis_client: Redis, log: WrittenLog, archive: grpc.aio.Channel
) -> None:
    behind = Behind(redis_client, archive, timeout_seconds=10)
    behind.index.reaches_beginning = True
    await log.signals(1, 10)
    await redis_client.xtrim(stream.log_name(), maxlen=0, approximate=False)
    assert isinstance(await behind.backlog.read(1, BEGINNING), Gone)
