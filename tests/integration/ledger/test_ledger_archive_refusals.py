"""What cannot be archived as it came is kept apart, and holds up nothing else."""

from __future__ import annotations

import pytest

from services.common import stream
from tests.integration.ledger.ledger_service import LedgerClient, append, eventually, stored, superuser
from tests.integration.ledger.log_entries import gap, positions, run, signal, signals


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


@pytest.mark.parametrize("number", [40_000, -40_000])
async def test_a_number_that_no_column_can_hold_costs_only_its_entry(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str, number: int
) -> None:
    await append(redis, run(7, 1, [signal(1), signal(2, kind=number)]))
    await append(redis, gap(8, 1, 2, reason=number))
    await append(redis, run(9, 1, 2))
    await ledger.archived(2)
    assert positions(await ledger.read(9)) == signals(1, 2)
    refusals = await stored(fresh_database, "select reason from ledger.archive_refusals")
    assert refusals == [("UNSTORABLE",), ("UNSTORABLE",)]


@pytest.mark.parametrize(
    ("breaking", "mending"),
    [
        (
            "revoke insert on ledger.signal_archive from ledger_service",
            "grant insert on ledger.signal_archive to ledger_service",
        ),
        (
            "alter table ledger.signal_archive rename magic to another",
            "alter table ledger.signal_archive rename another to magic",
        ),
    ],
)
async def test_a_table_that_is_not_as_it_should_be_makes_signals_wait(
    ledger: LedgerClient, redis: stream.Redis, fresh_database: str, breaking: str, mending: str
) -> None:
    await append(redis, run(7, 1, 1))
    await ledger.archived(1)
    async with superuser(fresh_database) as connection:
        await connection.execute(breaking)
        await append(redis, run(7, 2, 2))
        await eventually(lambda: _failed_to_archive(redis))
        assert await connection.fetchval("select count(*) from ledger.archive_refusals") == 0
        await connection.execute(mending)
    await ledger.archived(3)
    assert positions(await ledger.read(7)) == signals(1, 3)


async def _failed_to_archive(redis: stream.Redis) -> bool:
    """Whether an entry was given to the archiver more than once."""
    waiting = await redis.xpending_range(stream.log_name(), stream.ARCHIVER_GROUP, "-", "+", 10)
    return any(one["times_delivered"] > 1 for one in waiting)
