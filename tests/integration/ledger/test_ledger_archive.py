"""The archive: what was in the log is read from it as it was, in order, from any position on."""

from __future__ import annotations

from execution.common.v1 import signal_pb2
from execution.ledger.v1 import archive_service_pb2 as pb
from services.common import stream
from services.common.errors import NotFoundError
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    append,
    eventually,
    ledger_running,
    ledger_settings,
    refused,
    stored,
)
from tests.integration.ledger.log_entries import epoch_start, gap, positions, run, signal, signals


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


async def test_a_snapshot_marker_is_no_position(ledger: LedgerClient, redis: stream.Redis) -> None:
    marker = run(7, 1, 0)
    marker.ClearField("batch")
    marker.snapshot.SetInParent()
    await append(redis, marker, run(7, 1, 1))
    await ledger.archived(1)
    assert positions(await ledger.read(7)) == signals(1, 1)


async def test_partitions_are_there_before_they_are_needed(ledger: LedgerClient, fresh_database: str) -> None:
    async def made() -> list[tuple]:
        return await stored(
            fresh_database,
            "select inhrelid::regclass::text from pg_inherits"
            " where inhparent = 'ledger.signal_archive'::regclass order by 1",
        )

    await eventually(made)
    assert len(await made()) == 9
