"""What the log or the archive does not hold (any more) is told, and never skipped."""

from __future__ import annotations

from execution.common.v1 import position_pb2
from execution.ledger.v1 import archive_service_pb2 as pb
from services.common import stream
from services.common.errors import OutOfRangeError
from tests.integration.ledger.ledger_service import LedgerClient, append, refused, superuser
from tests.integration.ledger.log_entries import epoch_start, positions, run, signals

TRIMMED = position_pb2.GAP_REASON_TRIMMED
DAY_US = 86_400_000_000


async def test_a_hole_in_the_log_is_told_and_never_skipped(ledger: LedgerClient, redis: stream.Redis) -> None:
    await append(redis, run(7, 1, 3))
    await ledger.archived(3)
    await append(redis, run(7, 10, 2))
    await ledger.archived(5)
    records = await ledger.read(7)
    assert positions(records) == [*signals(1, 3), ("gap", (1, 4), (1, 9), (1, 9)), *signals(10, 11)]
    assert records[3].gap.reason == TRIMMED


async def test_a_hole_that_fills_in_part_is_told_as_what_is_left_of_it(
    ledger: LedgerClient, redis: stream.Redis
) -> None:
    await append(redis, run(7, 1, 3))
    await append(redis, run(7, 10, 2))
    await ledger.archived(5)
    await append(redis, run(7, 6, 2))
    await ledger.archived(7)
    left = [
        *signals(1, 3),
        ("gap", (1, 4), (1, 5), (1, 5)),
        *signals(6, 7),
        ("gap", (1, 8), (1, 9), (1, 9)),
        *signals(10, 11),
    ]
    assert positions(await ledger.read(7)) == left
    assert positions(await ledger.read(7, records_max=8)) == left[:8]
    assert positions(await ledger.read(7, (1, 4))) == [("gap", (1, 5), (1, 5), (1, 5)), *left[4:]]
    await append(redis, run(7, 8, 2), run(7, 4, 2))
    await ledger.archived(11)
    assert positions(await ledger.read(7)) == signals(1, 11)


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
