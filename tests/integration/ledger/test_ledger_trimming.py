"""The trimming of the log, on a real Redis: never what is not archived, in bounded steps, and told when others cut."""

from __future__ import annotations

from prometheus_client import REGISTRY

from services.common import stream
from services.common.stream import EntryId
from services.ledger.log import Log
from services.ledger.settings import LedgerSettings
from services.ledger.trimming import Trimmer

HOUR_MS = 3_600_000
PER_NODE = 20
"""Entries of 200 bytes in one node of a stream, about."""


async def fill(redis: stream.Redis, count: int, *, age_ms: int = 2 * HOUR_MS) -> list[EntryId]:
    """Adds entries that are as old as that; their ids."""
    seconds, _ = await redis.time()
    first = int(seconds) * 1_000 - age_ms
    ids = [EntryId(first, number) for number in range(1, count + 1)]
    async with redis.pipeline(transaction=False) as pipeline:
        for one in ids:
            pipeline.xadd(stream.log_name(), {stream.FIELD: b"x" * 200}, id=str(one))
        await pipeline.execute()
    return ids


async def take(redis: stream.Redis, count: int, *, leaving: EntryId | None = None) -> Log:
    """Reads so many as the archiver, and acknowledges all but one."""
    log = Log(redis)
    await log.group.ensure()
    entries = await log.group.read_new(count=count)
    assert len(entries) == count
    await log.group.acknowledge(entry.id for entry in entries if entry.id != leaving)
    return log


async def oldest(log: Log) -> EntryId | None:
    state = await log.state()
    assert state is not None
    return state.first


def count_of(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"shard": "0"}) or 0.0


async def test_only_what_was_acknowledged_is_trimmed(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    ids = await fill(redis, 400)
    log = await take(redis, 300)
    assert await Trimmer(log, ledger_config).round() > 0
    first = await oldest(log)
    assert first is not None
    assert ids[300 - 2 * PER_NODE] <= first <= ids[300]


async def test_what_is_pending_stays_and_all_behind_it(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    ids = await fill(redis, 400)
    log = await take(redis, 400, leaving=ids[150])
    await Trimmer(log, ledger_config).round()
    first = await oldest(log)
    assert first is not None
    assert ids[150 - 2 * PER_NODE] <= first <= ids[150]
    (pending,) = await log.group.read_pending(count=10)
    assert pending.payload


async def test_nothing_is_trimmed_for_nobody(redis: stream.Redis, ledger_config: LedgerSettings) -> None:
    log = Log(redis)
    assert await Trimmer(log, ledger_config).round() == 0
    ids = await fill(redis, 200)
    assert await Trimmer(log, ledger_config).round() == 0
    await log.group.ensure()
    assert await Trimmer(log, ledger_config).round() == 0
    assert await oldest(log) == ids[0]


async def test_what_is_younger_than_the_retention_stays(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    old = await fill(redis, 200)
    young = await fill(redis, 200, age_ms=HOUR_MS // 2)
    log = await take(redis, 400)
    await Trimmer(log, ledger_config).round()
    first = await oldest(log)
    assert first is not None
    assert old[200 - 2 * PER_NODE] <= first <= young[0]


async def test_a_log_that_is_read_again_is_not_trimmed_meanwhile(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    """The database may have been restored to an older state: what it misses is only in the log."""
    ids = await fill(redis, 200)
    log = await take(redis, 200)
    await log.rewind()
    assert await Trimmer(log, ledger_config).round() == 0
    assert await oldest(log) == ids[0]


async def test_a_round_takes_a_bounded_number_of_bounded_steps(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    await fill(redis, 1_000)
    log = await take(redis, 1_000)
    bounds = {"log_trim_entries_per_step_max": 100, "log_trim_steps_max": 2}
    trimmer = Trimmer(log, ledger_config.model_copy(update=bounds))
    assert 0 < await trimmer.round() <= 200
    assert 0 < await trimmer.round() <= 200


async def test_what_the_valve_takes_is_told_and_what_was_not_archived_apart(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    await fill(redis, 300)
    log = await take(redis, 100)
    trimmer = Trimmer(log, ledger_config.model_copy(update={"log_retention_seconds": 24 * 3_600}))
    cut, unarchived = "ledger_log_valve_entries_total", "ledger_log_valve_unarchived_entries_total"
    before = count_of(cut), count_of(unarchived)
    await trimmer.round()
    await redis.xtrim(stream.log_name(), maxlen=220, approximate=False)
    await trimmer.round()
    assert (count_of(cut), count_of(unarchived)) == (before[0] + 80, before[1])
    await redis.xtrim(stream.log_name(), maxlen=150, approximate=False)
    await trimmer.round()
    assert (count_of(cut), count_of(unarchived)) == (before[0] + 150, before[1] + 50)


async def test_its_own_trimming_is_not_taken_for_the_valves(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    await fill(redis, 300)
    log = await take(redis, 300)
    trimmer = Trimmer(log, ledger_config)
    before = count_of("ledger_log_valve_entries_total")
    assert await trimmer.round() > 0
    await trimmer.round()
    assert count_of("ledger_log_valve_entries_total") == before
    assert count_of("ledger_log_entries") < 300


async def test_what_is_counted_is_there_before_it_happens(
    redis: stream.Redis, ledger_config: LedgerSettings
) -> None:
    Trimmer(Log(redis, shard=63), ledger_config)
    for name in ("trimmed_entries", "valve_entries", "valve_unarchived_entries"):
        assert REGISTRY.get_sample_value(f"ledger_log_{name}_total", {"shard": "63"}) == 0.0
