"""The archive: each position of the log once, whatever happens to the log, and read without a silent skip."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2, signal_pb2
from execution.ingest.v1 import log_pb2
from execution.ledger.v1 import archive_service_pb2 as pb
from services.common import stream
from services.common.errors import NotFoundError, OutOfRangeError
from services.ledger.settings import LedgerSettings
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    append,
    eventually,
    ledger_running,
    ledger_settings,
    refused,
    superuser,
)
from tests.integration.ledger.log_entries import epoch_start, gap, positions, run, signal

TRIMMED = position_pb2.GAP_REASON_TRIMMED
DAY_US = 86_400_000_000


def signals(first: int, last: int, epoch: int = 1) -> list[tuple]:
    return [("signal", epoch, sequence) for sequence in range(first, last + 1)]


async def stored(database_url: str, query: str) -> list[tuple]:
    async with superuser(database_url) as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def test_what_is_in_the_log_is_read_from_the_archive_as_it_was(
    ledger: LedgerClient, redis: stream.Redis
) -> None:
    full = signal_pb2.Signal(
        kind=signal_pb2.SIGNAL_KIND_PENDING_PLACE,
        position_id=2**64 - 1,
        symbol="XAUUSD.m",
        side=signal_pb2.SIDE_SELL,
        volume_lots_e8=2**63 - 1,
        price_e8=1,
        stop_loss_e8=2,
        take_profit_e8=3,
        occurred_at_us=2**63 - 1,
        order_id=2**63,
        order_type=signal_pb2.ORDER_TYPE_STOP_LIMIT,
        stop_limit_price_e8=4,
        expires_at_us=5,
        opposite_position_id=6,
        comment="naïve ✓",
        magic=2**63 + 1,
    )
    strange = signal(2, comment="zero \0 byte")
    newer = signal_pb2.Signal.FromString(signal(3).SerializeToString() + b"\xfa\x3e\x03new")
    made = run(7, 1, [full, strange, newer])
    await append(redis, made)
    await ledger.archived(3)
    read = [record.signal for record in await ledger.read(7)]
    assert [one.signal for one in read] == list(made.batch.signals)
    assert read[2].signal.SerializeToString() == newer.SerializeToString()
    assert {(one.received_at_us, one.sent_at_us) for one in read} == {
        (made.received_at_us, made.batch.sent_at_us)
    }
    assert [(one.previous_epoch, one.previous_sequence) for one in read] == [(1, 0), (1, 1), (1, 2)]


async def test_get_signal_returns_one_and_when_it_was_archived(
    ledger: LedgerClient, redis: stream.Redis
) -> None:
    await append(redis, run(7, 1, 3))
    await ledger.archived(3)
    request = pb.GetSignalRequest(master_id=7, position={"epoch": 1, "sequence": 2})
    answer = await ledger.call("ArchiveService/GetSignal", request)
    assert answer.signal.signal == signal(2)
    assert answer.archived_at.ToMicroseconds() >= answer.signal.received_at_us
    request.position.sequence = 4
    assert isinstance(await refused(ledger.call("ArchiveService/GetSignal", request)), NotFoundError)


async def test_gaps_and_starts_of_epochs_are_told_between_the_signals(
    ledger: LedgerClient, redis: stream.Redis
) -> None:
    await append(redis, run(7, 1, 2), gap(7, 3, 5, note="lost"), run(7, 6, 1))
    await append(redis, epoch_start(7, 2, 9, (1, 6)), run(7, 10, 2, epoch=2))
    await append(redis, epoch_start(7, 3, 11, (2, 11)), run(7, 12, 1, epoch=3))
    await ledger.archived(6)
    assert positions(await ledger.read(7)) == [
        *signals(1, 2),
        ("gap", (1, 3), (1, 5), (1, 5)),
        *signals(6, 6),
        ("gap", (1, 7), (1, 9), (2, 9)),
        *signals(10, 11, epoch=2),
        ("gap", (2, 12), (2, 11), (3, 11)),
        *signals(12, 12, epoch=3),
    ]


async def test_reading_goes_on_behind_any_position_exactly(ledger: LedgerClient, redis: stream.Redis) -> None:
    await append(
        redis, run(7, 1, 3), gap(7, 4, 6), run(7, 7, 2), epoch_start(7, 2, 8, (1, 8)), run(7, 9, 2, epoch=2)
    )
    await ledger.archived(7)
    everything = positions(await ledger.read(7))
    assert positions(await ledger.read(7, (1, 2))) == everything[2:]
    assert positions(await ledger.read(7, (1, 5))) == [("gap", (1, 6), (1, 6), (1, 6)), *everything[4:]]
    assert positions(await ledger.read(7, (1, 6))) == everything[4:]
    assert positions(await ledger.read(7, (1, 8))) == everything[6:]
    assert positions(await ledger.read(7, (2, 8))) == everything[7:]
    assert positions(await ledger.read(7, (2, 10))) == []
    assert positions(await ledger.read(7, (5, 99))) == []
    assert positions(await ledger.read(99)) == []


async def test_reading_many_records_comes_in_pages_and_stops_where_asked(
    fresh_database: str, redis_url: str, redis: stream.Redis
) -> None:
    async with ledger_running(ledger_settings(fresh_database, redis_url, archive_page_rows=1_000)) as ledger:
        for first in range(1, 5_001, 500):
            await append(redis, run(7, first, 500), run(8, first, 500))
        await append(redis, gap(7, 5_001, 5_003), run(7, 5_004, 2))
        await ledger.archived(10_002)
        expected = [*signals(1, 5_000), ("gap", (1, 5_001), (1, 5_003), (1, 5_003)), *signals(5_004, 5_005)]
        assert positions(await ledger.read(7)) == expected
        assert positions(await ledger.read(7, records_max=2_500)) == expected[:2_500]
        assert positions(await ledger.read(7, (1, 4_999), records_max=2)) == expected[4_999:5_001]


async def test_the_status_says_how_far_each_master_is(ledger: LedgerClient, redis: stream.Redis) -> None:
    await append(redis, run(9, 1, 2), run(7, 1, 5), gap(7, 6, 8))
    status = await ledger.archived(7)
    assert [(one.master_id, one.position.epoch, one.position.sequence) for one in status.positions] == [
        (7, 1, 8),
        (9, 1, 2),
    ]
    assert (status.signal_count, status.pending_entries) == (7, 0)


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


async def test_a_position_that_comes_again_with_other_content_is_kept_apart(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    await append(redis, run(7, 1, 3))
    await ledger.archived(3)
    forged = run(7, 2, [signal(2, price_e8=1), signal(3)])
    entry_id = await append(redis, forged)
    await append(redis, gap(7, 1, 3))
    await append(redis, run(7, 4, 1))
    await ledger.archived(4)
    assert [record.signal.signal for record in await ledger.read(7)] == [signal(n) for n in range(1, 5)]
    refusals = await stored(
        fresh_database, "select reason, entry_id, payload from ledger.archive_refusals order by refusal_id"
    )
    assert [reason for reason, *_ in refusals] == ["CONFLICT", "CONFLICT"]
    assert refusals[0][1:] == (entry_id, forged.SerializeToString())


async def test_what_cannot_be_understood_is_kept_apart_and_holds_up_nothing(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    broken = run(7, 1, 2)
    broken.last_sequence = 5
    unknown = run(8, 1, 1)
    unknown.ClearField("batch")
    await redis.xadd(stream.log_name(), {stream.FIELD: b"\xff\xff\xff"})
    await append(redis, broken, run(9, 1, 1), unknown)
    await append(redis, run(9, 2, 1))
    await ledger.archived(2)
    assert positions(await ledger.read(9)) == signals(1, 2)
    refusals = await stored(
        fresh_database, "select run_number, reason, payload from ledger.archive_refusals order by refusal_id"
    )
    assert refusals == [
        (-1, "UNPARSABLE", b"\xff\xff\xff"),
        (0, "INVALID_RUN", broken.SerializeToString()),
        (2, "INVALID_RUN", unknown.SerializeToString()),
    ]


async def test_a_value_that_the_database_refuses_costs_only_its_entry(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    await append(redis, run(7, 1, 1))
    await ledger.archived(1)
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "alter table ledger.signal_archive add constraint test check (position_id <> 666)"
        )
    await append(redis, run(7, 2, 2), run(8, 1, [signal(666)]))
    await append(redis, run(9, 1, 2))
    await ledger.archived(3)
    assert positions(await ledger.read(9)) == signals(1, 2)
    refusals = await stored(
        fresh_database, "select reason, run_number from ledger.archive_refusals order by 2"
    )
    assert refusals == [("UNSTORABLE", 0), ("UNSTORABLE", 1)]


async def test_a_snapshot_marker_is_no_position(ledger: LedgerClient, redis: stream.Redis) -> None:
    marker = run(7, 1, 0)
    marker.ClearField("batch")
    marker.snapshot.SetInParent()
    await append(redis, marker, run(7, 1, 1))
    await ledger.archived(1)
    assert positions(await ledger.read(7)) == signals(1, 1)


async def test_a_hole_in_the_log_is_told_and_never_skipped(ledger: LedgerClient, redis: stream.Redis) -> None:
    await append(redis, run(7, 1, 3))
    await ledger.archived(3)
    await append(redis, run(7, 10, 2))
    await ledger.archived(5)
    records = await ledger.read(7)
    assert positions(records) == [*signals(1, 3), ("gap", (1, 4), (1, 9), (1, 9)), *signals(10, 11)]
    assert records[3].gap.reason == TRIMMED


async def test_a_start_of_an_epoch_that_the_log_lost_is_a_hole_too(
    ledger: LedgerClient, redis: stream.Redis
) -> None:
    await append(redis, run(7, 1, 3))
    await append(redis, run(7, 6, 1, epoch=2), epoch_start(7, 4, 9, (3, 8)), run(7, 10, 1, epoch=4))
    await ledger.archived(5)
    assert positions(await ledger.read(7)) == [
        *signals(1, 3),
        ("gap", (1, 4), (1, 5), (2, 5)),
        *signals(6, 6, epoch=2),
        ("gap", (2, 7), (2, 8), (3, 8)),
        ("gap", (3, 9), (3, 9), (4, 9)),
        *signals(10, 10, epoch=4),
    ]


async def test_an_archive_that_begins_later_says_where(ledger: LedgerClient, redis: stream.Redis) -> None:
    await append(redis, run(7, 100, 3))
    await ledger.archived(3)
    error = await refused(ledger.read(7))
    assert (type(error), error.metadata["oldest"]) == (OutOfRangeError, "1:99")
    error = await refused(ledger.read(7, (1, 98)))
    assert error.metadata["oldest"] == "1:99"
    assert positions(await ledger.read(7, (1, 99))) == signals(100, 102)


async def test_after_retention_the_oldest_position_is_told(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    old = run(7, 1, 3)
    old.received_at_us -= 200 * DAY_US
    await append(redis, old, run(7, 4, 2))
    await ledger.archived(5)
    async with superuser(fresh_database) as connection:
        await connection.execute("set role ledger_service")
        dropped = await connection.fetch(
            "select ledger.drop_chunks('ledger.signal_archive', interval '180 days')"
        )
    assert len(dropped) == 1
    error = await refused(ledger.read(7, (1, 1)))
    assert (type(error), error.metadata["oldest"]) == (OutOfRangeError, "1:3")
    assert positions(await ledger.read(7, (1, 3))) == signals(4, 5)
    status = await ledger.call("ArchiveService/GetArchiveStatus", pb.GetArchiveStatusRequest())
    assert status.signal_count == 2


async def test_when_nothing_of_a_master_is_left_its_end_is_told(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str
) -> None:
    old = run(7, 1, 3)
    old.received_at_us -= 200 * DAY_US
    await append(redis, old)
    await ledger.archived(3)
    async with superuser(fresh_database) as connection:
        await connection.fetch("select ledger.drop_chunks('ledger.signal_archive', interval '180 days')")
    error = await refused(ledger.read(7, (1, 1)))
    assert (type(error), error.metadata["oldest"]) == (OutOfRangeError, "1:3")
    assert positions(await ledger.read(7, (1, 3))) == []


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


async def test_partitions_are_there_before_they_are_needed(ledger: LedgerClient, fresh_database: str) -> None:
    async def made() -> list[tuple]:
        return await stored(
            fresh_database,
            "select inhrelid::regclass::text from pg_inherits"
            " where inhparent = 'ledger.signal_archive'::regclass order by 1",
        )

    await eventually(made)
    assert len(await made()) == 9
