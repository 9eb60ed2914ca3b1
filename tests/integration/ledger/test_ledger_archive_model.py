"""The archive against a model: entries of a log delivered in any order, again and again, must end up as the log was."""

from __future__ import annotations

import contextlib
import random

import pytest

from execution.ingest.v1 import log_pb2
from services.common import pg
from services.ledger.domain import log_runs
from services.ledger.domain.log_runs import Run
from services.ledger.store.archive_reading import ArchiveReader
from services.ledger.store.archive_writing import ArchiveWriter, HoleError
from tests.integration.ledger.log_entries import epoch_start, gap, positions, run

MASTERS = (7, 8, 9)
ENTRIES = 60
DELIVERIES = 120


def made_log(chance: random.Random) -> tuple[list[list[Run]], dict[int, list[tuple]]]:
    """Entries of a log, and what a reader of each master must see."""
    heads = dict.fromkeys(MASTERS, (1, 0))
    expected: dict[int, list[tuple]] = {master_id: [] for master_id in MASTERS}
    entries = []
    for number in range(ENTRIES):
        messages = [
            _next_run(chance, master_id, heads, expected) for master_id in MASTERS if chance.random() < 0.7
        ]
        payload = log_pb2.LogBatch(runs=messages).SerializeToString()
        entries.append(log_runs.parse(f"{number + 1}-0", payload)[0])
    return entries, expected


def _next_run(
    chance: random.Random,
    master_id: int,
    heads: dict[int, tuple[int, int]],
    expected: dict[int, list[tuple]],
) -> log_pb2.LogRun:
    epoch, last = heads[master_id]
    kind, size = chance.random(), chance.randint(1, 5)
    seen = expected[master_id]
    if kind < 0.1:
        seen.append(("gap", (epoch, last + 1), (epoch, last + size), (epoch, last + size)))
        heads[master_id] = epoch, last + size
        return gap(master_id, last + 1, last + size, epoch=epoch)
    if kind < 0.2 and last:
        lost = size - 1
        seen.append(("gap", (epoch, last + 1), (epoch, last + lost), (epoch + 1, last + lost)))
        heads[master_id] = epoch + 1, last + lost
        return epoch_start(master_id, epoch + 1, last + lost, (epoch, last))
    seen += [("signal", epoch, last + one) for one in range(1, size + 1)]
    heads[master_id] = epoch, last + size
    received_at_us = 1_790_000_000_000_000 + chance.randint(0, 2) * 86_400_000_000
    return run(master_id, last + 1, size, epoch=epoch, received_at_us=received_at_us)


async def read(reader: ArchiveReader, master_id: int) -> list[tuple]:
    return [
        one async for page in reader.read(master_id, (0, 0), records_max=100_000) for one in positions(page)
    ]


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_is_delivered_twice_or_late_the_archive_ends_as_the_log(
    fresh_database: str, seed: int
) -> None:
    chance = random.Random(seed)
    entries, expected = made_log(chance)
    async with pg.pool(fresh_database, role="ledger_service") as pool:
        writers = [ArchiveWriter(pool, "signals:ingest") for _ in range(2)]
        for _ in range(DELIVERIES):
            first = chance.randrange(ENTRIES)
            batch = [one for entry in entries[first : first + chance.randint(1, 8)] for one in entry]
            with contextlib.suppress(HoleError):
                await chance.choice(writers).archive(batch, [], declare_holes=chance.random() < 0.3)
        for entry in entries:
            await writers[0].archive(entry, [], declare_holes=True)
        reader = ArchiveReader(pool, page_rows=chance.choice([3, 10, 1_000]))
        for master_id in MASTERS:
            assert await read(reader, master_id) == expected[master_id]
        assert await pool.fetchval("select count(*) from ledger.archive_refusals") == 0
        total = sum(one[0] == "signal" for seen in expected.values() for one in seen)
        assert await pool.fetchval("select count(*) from ledger.signal_archive") == total
        assert (await reader.status()).signal_count == total


@pytest.mark.parametrize("seed", range(4))
async def test_delivered_in_order_with_repeats_no_hole_is_ever_seen(fresh_database: str, seed: int) -> None:
    chance = random.Random(1_000 + seed)
    entries, expected = made_log(chance)
    async with pg.pool(fresh_database, role="ledger_service") as pool:
        writer, at = ArchiveWriter(pool, "signals:ingest"), 0
        reader = ArchiveReader(pool, page_rows=1_000)
        while at < ENTRIES:
            size = chance.randint(1, 8)
            batch = [one for entry in entries[at : at + size] for one in entry]
            await writer.archive(batch, [], declare_holes=False)
            # A crash before the acknowledgement delivers some of it again.
            at = min(ENTRIES, at + size) - chance.choice([0, 0, 1, 2]) if at + size < ENTRIES else ENTRIES
            for master_id in MASTERS:
                seen = await read(reader, master_id)
                assert seen == expected[master_id][: len(seen)]
        for master_id in MASTERS:
            assert await read(reader, master_id) == expected[master_id]
