"""What the front door puts into the log, over a real socket and a real Redis."""

from __future__ import annotations

from execution.common.v1 import position_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb
from services.common import log
from services.common.stream import Redis
from services.ingest.app import Running
from tests.integration.ingest.front_door import read_log, signals_in
from tests.integration.ingest.raw_master import logged_in
from tests.unit.ingest.signing import now_us


async def test_signals_are_acknowledged_once_they_are_in_the_log(ingest: Running, log_client: Redis):
    async with logged_in(ingest.port) as master:
        assert (master.welcome.position.epoch, master.welcome.position.sequence) == (1, 0)
        master.send_signals(1, 3)
        ack = await master.acknowledged_up_to(3)
        assert ack.durability == position_pb2.DURABILITY_APPENDED
        assert signals_in(await read_log(log_client)) == {1: 1_001, 2: 1_002, 3: 1_003}
        head = await log.read_head(log_client, 1)
        assert head is not None
        assert head.position == (1, 3)
        assert head.session_epoch == master.welcome.session_epoch


async def test_a_duplicate_is_acknowledged_again_and_stored_once(ingest: Running, log_client: Redis):
    async with logged_in(ingest.port) as master:
        frame = master.keys.signals(1, [])
        master.send_signals(1, 2)
        await master.acknowledged_up_to(2)
        runs = await read_log(log_client)
        again = master.keys.signed_batch(runs[0].batch.SerializeToString())
        master.send(again)
        await master.acknowledged_up_to(2)
        assert len(await read_log(log_client)) == 1
        assert frame is not None


async def test_a_gap_is_refused_and_a_declared_one_is_in_the_log(ingest: Running, log_client: Redis):
    async with logged_in(ingest.port) as master:
        master.send_signals(1)
        master.send_signals(4)
        reject = await master.rejected_with(pb.REJECT_CODE_GAP)
        assert (reject.sequence, reject.expected_sequence, reject.retryable) == (4, 2, False)
        master.send(master.keys.gap(2, 3))
        master.send_signals(4)
        await master.acknowledged_up_to(4)
        runs = await read_log(log_client)
        assert [(run.first_sequence, run.last_sequence) for run in runs] == [(1, 1), (2, 3), (4, 4)]
        assert runs[1].gap.reason == position_pb2.GAP_REASON_REJECTED


async def test_a_snapshot_is_stored_and_marked_behind_its_signals(ingest: Running, log_client: Redis):
    async with logged_in(ingest.port) as master:
        assert master.welcome.snapshot_wanted
        master.send_signals(1, 2)
        snapshot = snapshot_pb2.Snapshot(master_id=1, taken_at_us=now_us(), account_mode=1)
        snapshot.as_of.sequence = 2
        master.send(master.keys.snapshot_frame(snapshot))
        while (ack := (await master.expect("ack")).ack).snapshot_sequence == 0:
            pass
        assert (ack.sequence, ack.snapshot_sequence) == (2, 2)
        stored = await log.read_snapshot(log_client, 1)
        snapshot.as_of.epoch = 1
        assert stored == snapshot
        head = await log.read_head(log_client, 1)
        assert head.snapshot == (1, 2)
        assert [run.WhichOneof("record") for run in await read_log(log_client)] == ["batch", "snapshot"]
