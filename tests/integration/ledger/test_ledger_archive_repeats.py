"""What was taken and not archived comes again, and what comes again adds nothing, whoever crashed or was restored."""

from __future__ import annotations

import pytest

from execution.ingest.v1 import log_pb2
from services.common import stream
from services.ledger.settings import LedgerSettings
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    append,
    ledger_running,
    ledger_settings,
    stored,
    superuser,
)
from tests.integration.ledger.log_entries import epoch_start, gap, positions, run, signals

DAY_US = 86_400_000_000


async def test_a_log_that_is_read_again_from_its_beginning_adds_nothing(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    await append(redis, run(7, 1, 5), gap(7, 6, 8), epoch_start(7, 2, 9, (1, 8)), run(7, 10, 3, epoch=2))
    await ledger.archived(8)
    before = positions(await ledger.read(7))
    await redis.xgroup_destroy(stream.log_name(), stream.ARCHIVER_GROUP)
    await append(redis, run(7, 13, 1, epoch=2))
    await ledger.archived(9)
    assert positions(await ledger.read(7)) == [*before, ("signal", 2, 13)]
    assert await stored(fresh_database, "select count(*) from ledger.archive_refusals") == [(0,)]


async def test_a_position_that_comes_again_on_another_day_is_stored_once(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    first = run(7, 1, 4)
    again = run(7, 3, 4, received_at_us=first.received_at_us + 3 * DAY_US)
    await append(redis, first)
    await ledger.archived(4)
    await append(redis, again)
    await ledger.archived(6)
    assert positions(await ledger.read(7)) == signals(1, 6)
    rows = await stored(
        fresh_database,
        "select sequence, received_at::date - current_date from ledger.signal_archive order by 1",
    )
    assert len(rows) == 6
    assert len({day for _, day in rows}) == 2


@pytest.fixture
async def stopped_with_pending(ledger_config: LedgerSettings, redis: stream.Redis) -> None:
    """Entries 2 and 3 of 4 were read by a ledger that died before it archived them."""
    async with ledger_running(ledger_config) as ledger:
        await append(redis, run(7, 1, 2))
        await ledger.archived(2)
    for first in (3, 5, 7):
        await append(redis, run(7, first, 2))
    await redis.xreadgroup(stream.ARCHIVER_GROUP, "archiver", {stream.log_name(): ">"}, count=2)


async def test_what_a_dead_ledger_had_read_is_archived_by_the_next(
    stopped_with_pending: None, ledger_config: LedgerSettings
) -> None:
    async with ledger_running(ledger_config) as ledger:
        await ledger.archived(8)
        assert positions(await ledger.read(7)) == signals(1, 8)


async def test_entries_trimmed_while_pending_are_a_hole_that_is_told(
    stopped_with_pending: None, ledger_config: LedgerSettings, redis: stream.Redis
) -> None:
    await redis.xtrim(stream.log_name(), maxlen=1, approximate=False)
    async with ledger_running(ledger_config) as ledger:
        await ledger.archived(4)
        assert positions(await ledger.read(7)) == [
            *signals(1, 2),
            ("gap", (1, 3), (1, 6), (1, 6)),
            *signals(7, 8),
        ]


async def test_what_another_consumer_left_behind_is_taken_over(
    fresh_database: str, redis_url: str, redis: stream.Redis
) -> None:
    await append(redis, run(7, 1, 2))
    await redis.xgroup_create(stream.log_name(), stream.ARCHIVER_GROUP, id="0")
    await redis.xreadgroup(stream.ARCHIVER_GROUP, "somebody else", {stream.log_name(): ">"})
    configured = ledger_settings(fresh_database, redis_url, archive_claim_idle_seconds=0.001)
    async with ledger_running(configured) as ledger:
        await ledger.archived(2)
        assert positions(await ledger.read(7)) == signals(1, 2)


async def test_what_a_former_leader_takes_late_is_archived_in_order(
    ledger: LedgerClient, redis: stream.Redis
) -> None:
    await append(redis, run(7, 1, 1))
    await ledger.archived(1)
    pipeline = redis.pipeline(transaction=True)
    pipeline.xadd(stream.log_name(), {stream.FIELD: b""})
    pipeline.xadd(stream.log_name(), {stream.FIELD: _entry(run(7, 2, 2))})
    pipeline.xreadgroup(stream.ARCHIVER_GROUP, "archiver", {stream.log_name(): ">"})
    pipeline.xadd(stream.log_name(), {stream.FIELD: _entry(run(7, 4, 2))})
    await pipeline.execute()
    await ledger.archived(5)
    assert positions(await ledger.read(7)) == signals(1, 5)


def _entry(*runs: log_pb2.LogRun) -> bytes:
    return log_pb2.LogBatch(runs=runs).SerializeToString()


async def test_a_database_restored_to_an_older_state_catches_up_from_the_log(
    ledger_config: LedgerSettings, redis: stream.Redis, fresh_database: str
) -> None:
    async with ledger_running(ledger_config) as ledger:
        for first in range(1, 40, 2):
            await append(redis, run(7, first, 2), run(8, first, 2))
        await ledger.archived(80)
    async with superuser(fresh_database) as connection:
        await connection.execute("delete from ledger.signal_archive where sequence > 10")
        await connection.execute("update ledger.archive_heads set sequence = 10")
        await connection.execute("update ledger.archive_days set signal_count = 20")
    async with ledger_running(ledger_config) as ledger:
        await append(redis, run(7, 41, 1), run(8, 41, 1))
        await ledger.archived(82)
        assert positions(await ledger.read(7)) == signals(1, 41)
        assert positions(await ledger.read(8)) == signals(1, 41)


async def test_heads_behind_the_archive_double_nothing(
    ledger_config: LedgerSettings, redis: stream.Redis, fresh_database: str
) -> None:
    async with ledger_running(ledger_config) as ledger:
        made = run(7, 1, 5)
        await append(redis, made)
        await ledger.archived(5)
    async with superuser(fresh_database) as connection:
        await connection.execute("update ledger.archive_heads set sequence = 2")
    await redis.xgroup_destroy(stream.log_name(), stream.ARCHIVER_GROUP)
    async with ledger_running(ledger_config) as ledger:
        await append(redis, run(7, 6, 1))
        await ledger.archived(6)
        assert positions(await ledger.read(7)) == signals(1, 6)
    assert await stored(fresh_database, "select count(*) from ledger.signal_archive") == [(6,)]


async def test_two_ledgers_archive_each_position_once_and_one_takes_over(
    ledger_config: LedgerSettings, redis: stream.Redis
) -> None:
    async with ledger_running(ledger_config) as second:
        async with ledger_running(ledger_config):
            for first in range(1, 200, 2):
                await append(redis, run(7, first, 2))
            await second.archived(100)
        for first in range(201, 300, 2):
            await append(redis, run(7, first, 2))
        await second.archived(300)
        assert positions(await second.read(7)) == signals(1, 300)


async def test_a_log_that_is_gone_begins_again(ledger: LedgerClient, redis: stream.Redis) -> None:
    await append(redis, run(7, 1, 2))
    await ledger.archived(2)
    await redis.delete(stream.log_name())
    await append(redis, epoch_start(7, 2, 2, (1, 2)), run(7, 3, 2, epoch=2))
    await ledger.archived(4)
    assert positions(await ledger.read(7)) == [
        *signals(1, 2),
        ("gap", (1, 3), (1, 2), (2, 2)),
        *signals(3, 4, epoch=2),
    ]


async def test_a_log_restored_to_an_older_state_adds_only_what_is_new(
    ledger: LedgerClient, redis: stream.Redis
) -> None:
    for sequence in range(1, 6):
        await append(redis, run(7, sequence, 1))
    await ledger.archived(5)
    older = await redis.dump(stream.log_name())
    for sequence in range(6, 9):
        await append(redis, run(7, sequence, 1))
    await ledger.archived(8)
    await redis.restore(stream.log_name(), 0, older, replace=True)
    # The master saw 7 acknowledged, the log knows of 5: a new epoch begins behind 7.
    await append(redis, epoch_start(7, 2, 7, (1, 5), reason=3), run(7, 8, 2, epoch=2))
    await ledger.archived(10)
    assert positions(await ledger.read(7)) == [
        *signals(1, 8),
        ("gap", (1, 8), (1, 7), (2, 7)),
        *signals(8, 9, epoch=2),
    ]
