"""Events: told in order, each at least once, whoever publishes them."""

from __future__ import annotations

import asyncio

from execution.ledger.v1 import events_pb2
from services.common import pg, stream
from services.ledger.settings import LedgerSettings
from services.ledger.store.outbox import OutboxStore
from tests.integration.ledger.duties import checks, revoked, told
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    eventually,
    ledger_running,
    ledger_settings,
    superuser,
)


async def test_events_written_at_once_get_rising_numbers_and_none_is_missed(
    ledger: LedgerClient, redis_url: str
) -> None:
    user = await ledger.user()
    made = await asyncio.gather(*(revoked(ledger, user) for _ in range(40)))
    events = await told(redis_url, len(made))
    assert [event.event_id for event in events] == sorted({event.event_id for event in events})
    assert {event.license_changed.license_id for event in events} == set(made)


async def test_an_event_that_commits_late_is_numbered_late(
    ledger: LedgerClient, redis_url: str, fresh_database: str
) -> None:
    user = await ledger.user()
    payload = events_pb2.LedgerEvent(
        trust_changed=events_pb2.TrustChanged(user_id="late")
    ).SerializeToString()
    async with superuser(fresh_database) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("insert into ledger.outbox (payload) values ($1)", payload)
        first = await revoked(ledger, user)
        await told(redis_url, 1)
        await transaction.commit()
    events = await told(redis_url, 2)
    assert [event.WhichOneof("event") for event in events] == ["license_changed", "trust_changed"]
    assert events[0].license_changed.license_id == first
    assert events[0].event_id < events[1].event_id


async def test_two_ledgers_tell_every_event_in_order_and_one_takes_over(
    ledger_config: LedgerSettings, redis_url: str
) -> None:
    async with ledger_running(ledger_config) as second:
        async with ledger_running(ledger_config) as first:
            user = await first.user()
            await asyncio.gather(*(revoked(one, user) for one in (first, second) * 5))
            await told(redis_url, 10)
        await asyncio.gather(*(revoked(second, user) for _ in range(5)))
        events = await told(redis_url, 15)
    # One that was published as the first one stopped may come again, but none after a later one.
    numbers = [event.event_id for event in events]
    assert numbers == sorted(numbers)
    assert len({event.license_changed.license_id for event in events}) == 15


async def test_a_published_event_that_was_not_forgotten_comes_again_under_its_number(
    ledger_config: LedgerSettings, redis_url: str, fresh_database: str
) -> None:
    payload = events_pb2.LedgerEvent(
        trust_changed=events_pb2.TrustChanged(user_id="again")
    ).SerializeToString()
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "insert into ledger.outbox (event_id, payload) values (nextval('ledger.event_id_seq'), $1)",
            payload,
        )
        number = await connection.fetchval("select event_id from ledger.outbox")
    async with ledger_running(ledger_config) as ledger:
        await revoked(ledger, await ledger.user())
        events = await told(redis_url, 2)
    assert [event.event_id for event in events] == [number, number + 1]


async def test_an_event_that_a_former_leader_numbers_meanwhile_keeps_that_number(
    fresh_database: str,
) -> None:
    async with superuser(fresh_database) as connection, pg.pool(fresh_database) as pool:
        await connection.execute("insert into ledger.outbox (payload) values (''), ('')")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("update ledger.outbox set event_id = nextval('ledger.event_id_seq')")
        numbering = asyncio.create_task(OutboxStore(pool).number_new(count=10))

        async def waits() -> bool:
            # Not on the connection: a transaction goes on seeing the activity that it saw first.
            return await pool.fetchval(
                "select exists (select from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock')"
            )

        await eventually(waits)
        await transaction.commit()
        await numbering
        numbers = await connection.fetch("select event_id from ledger.outbox order by outbox_id")
        assert [row["event_id"] for row in numbers] == [1, 2]


async def test_an_event_that_somebody_holds_locked_waits_and_ends_nothing(
    ledger_config: LedgerSettings, redis_url: str, fresh_database: str
) -> None:
    async with superuser(fresh_database) as connection:
        await connection.execute(
            "do $$ begin execute format('alter database %I set lock_timeout = 20', current_database()); end $$"
        )
        await connection.execute("insert into ledger.outbox (payload) values ('')")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from ledger.outbox for update")
        async with ledger_running(ledger_config) as ledger:

            async def noticed() -> bool:
                return not (await checks(ledger))["events"]

            await eventually(noticed)
            await transaction.rollback()
            assert len(await told(redis_url, 1)) == 1


async def test_the_stream_of_events_is_kept_short(
    fresh_database: str, redis_url: str, redis: stream.Redis
) -> None:
    async with (
        ledger_running(ledger_settings(fresh_database, redis_url, ledger_events_length_max=1_000)) as ledger,
        superuser(fresh_database) as connection,
    ):
        await connection.execute(
            "insert into ledger.outbox (payload) select '' from generate_series(1, 5000)"
        )
        await eventually(lambda: _is_empty(connection))
        assert 1_000 <= await redis.xlen(stream.LEDGER_EVENTS) < 1_200
        await ledger.user()


async def _is_empty(connection) -> bool:
    return not await connection.fetchval("select count(*) from ledger.outbox")
