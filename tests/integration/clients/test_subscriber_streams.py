"""The subscriber client against the real fan-out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from ecp_client.copying import Action, CopySettings, Decision, Protection, Reason, differences
from ecp_client.positions import Position
from ecp_client.subscriber import (
    Batch,
    GapSeen,
    Resynced,
    Start,
    StreamEnded,
    Subscriber,
    SubscriberEvent,
    SubscriberSettings,
    SyncState,
    read_journal,
)
from ecp_client.subscriber.journal_format import EntryType
from execution.common.v1 import signal_pb2
from execution.ledger.v1 import license_service_pb2 as license_pb
from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from tests.integration.fanout.fanout_service import Fanout, fanout_running, fanout_settings
from tests.integration.fanout.stand_in_ledger import StandInLedger
from tests.integration.fanout.written_log import WrittenLog
from tests.waiting import until

WAIT_SECONDS = 20.0
EventT = TypeVar("EventT", bound=SubscriberEvent)


class Seen:
    """What one subscriber's application was given."""

    def __init__(self) -> None:
        self.sequences: dict[int, list[int]] = {}
        self.decisions: list[Decision] = []
        self.events: list[SubscriberEvent] = []

    def on_batch(self, batch: Batch) -> None:
        assert len(batch.signals) == len(batch.decisions)
        self.decisions += batch.decisions
        for sequenced in batch.signals:
            self.sequences.setdefault(sequenced.master_id, []).append(sequenced.sequence)

    def of_type(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]


def subscriber(
    fanout: Fanout,
    folder: Path,
    seen: Seen,
    *,
    protection: Protection | None = None,
    refresh_token: Callable[[], Awaitable[str]] | None = None,
    **overrides: object,
) -> Subscriber:
    values: dict[str, object] = {
        "addresses": [fanout.target],
        "license_token": "token",
        "masters": {1: CopySettings()},
        "start": Start.BEGINNING,
        "journal_folder": folder / "journal",
        "plaintext": True,
        "full_sync_seconds_min": 0.05,
        "full_sync_seconds_max": 0.2,
        **overrides,
    }
    settings = SubscriberSettings(**values)
    return Subscriber(
        settings,
        on_batch=seen.on_batch,
        on_event=seen.events.append,
        protection=protection,
        refresh_token=refresh_token,
    )


async def test_each_signal_comes_once_in_order_and_is_in_the_journal(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    subscribers_ledger.add_user("token", 1, 2)
    seen = Seen()
    masters = {1: CopySettings(), 2: CopySettings(volume_multiplier_e4=5_000)}
    async with subscriber(fanout, tmp_path, seen, masters=masters) as client:
        await log.signals(1, 100)
        await log.signals(2, 100, per_entry=30)
        await client.wait_position(1, 100, WAIT_SECONDS)
        await client.wait_position(2, 100, WAIT_SECONDS)
        assert not list(differences(client.copier(2), client.copier(2).mirror))
        assert len(client.copier(1).mirror.positions) == 100
    assert seen.sequences == {1: list(range(1, 101)), 2: list(range(1, 101))}
    entries = [entry for entry in read_journal(tmp_path / "journal") if entry.entry_type is EntryType.SIGNAL]
    for master_id in (1, 2):
        mine = [entry for entry in entries if entry.master_id == master_id]
        assert [entry.position for entry in mine] == [Position(1, number) for number in range(1, 101)]
        assert {entry.action for entry in mine} == {Action.COPY if master_id == 1 else Action.RESIZE}


async def test_a_new_process_goes_on_where_the_journal_ends(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    subscribers_ledger.add_user("token", 1)
    first, second = Seen(), Seen()
    await log.signals(1, 10)
    async with subscriber(fanout, tmp_path, first) as client:
        await client.wait_position(1, 10, WAIT_SECONDS)
        await until(lambda: ("user-1", 1) in subscribers_ledger.recorded)
    await log.signals(1, 10)
    async with subscriber(fanout, tmp_path, second) as client:
        await client.wait_position(1, 20, WAIT_SECONDS)
        assert len(client.copier(1).account.holdings) == 20
        assert client.stats.replayed == 0
    assert first.sequences[1] == list(range(1, 11))
    assert second.sequences[1] == list(range(11, 21))


async def test_one_whom_the_ledger_has_for_degraded_comes_in_step_by_a_full_sync(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    """As when the fan-out before was killed between telling a full sync and recording it: the client saw no gap."""
    user = subscribers_ledger.add_user("token", 1)
    seen = Seen()
    await log.signals(1, 10)
    async with subscriber(fanout, tmp_path, seen) as client:
        await client.wait_position(1, 10, WAIT_SECONDS)
        await until(lambda: subscribers_ledger.sync_state(user.user_id, 1) == ledger_pb.SYNC_STATE_SYNCED)
    await log.snapshot(1)
    degraded = ledger_pb.SYNC_STATE_DEGRADED_GAP
    subscribers_ledger.record(
        [ledger_pb.SubscriberPosition(user_id=user.user_id, master_id=1, sync_state=degraded)]
    )
    async with subscriber(fanout, tmp_path, seen) as client:
        await until(lambda: subscribers_ledger.sync_state(user.user_id, 1) == ledger_pb.SYNC_STATE_SYNCED)
        await log.signals(1, 2)
        await client.wait_position(1, 12, WAIT_SECONDS)
        assert client.state(1) is SyncState.SYNCED
        assert (client.stats.full_syncs, client.stats.gaps) == (1, 0)
    assert seen.sequences[1] == list(range(1, 13))


async def test_after_a_crash_what_was_given_is_replayed_but_not_given_again(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    subscribers_ledger.add_user("token", 1)
    first, second = Seen(), Seen()
    await log.signals(1, 10)
    client = subscriber(fanout, tmp_path, first)
    async with client:
        await client.wait_position(1, 10, WAIT_SECONDS)
        # As after SIGKILL: the journal is there, the last checkpoint is not.
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for path in (tmp_path / "journal").glob("*.journal"):
            (crashed / path.name).write_bytes(path.read_bytes())
    await log.signals(1, 5)
    async with subscriber(fanout, tmp_path, second, journal_folder=crashed) as client:
        await client.wait_position(1, 15, WAIT_SECONDS)
        assert client.stats.replayed == 10
        assert sorted(client.copier(1).account.holdings) == list(range(1, 16))
        assert not list(differences(client.copier(1), client.copier(1).mirror))
    assert second.sequences[1] == list(range(11, 16))


async def test_a_gap_leads_to_a_full_sync(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    subscribers_ledger.add_user("token", 1)
    seen = Seen()
    await log.signals(1, 5)
    async with subscriber(fanout, tmp_path, seen) as client:
        await client.wait_position(1, 5, WAIT_SECONDS)
        await log.gap(1, 3)
        await until(lambda: client.state(1) in (SyncState.DEGRADED, SyncState.RESYNCING))
        # The master's account holds nothing any more: what we copied is to be closed.
        await log.snapshot(1)
        await until(lambda: client.state(1) is SyncState.SYNCED)
        await log.signals(1, 2)
        await client.wait_position(1, 10, WAIT_SECONDS)
        assert sorted(client.copier(1).account.holdings) == [9, 10]
    (gap,) = seen.of_type(GapSeen)
    assert (gap.first, gap.last, gap.reason) == (Position(1, 6), Position(1, 8), "REJECTED")
    plans = [event.plan for event in seen.of_type(Resynced)]
    assert sorted(action.ticket for action in plans[-1].actions) == [1, 2, 3, 4, 5]
    assert seen.sequences[1] == [1, 2, 3, 4, 5, 9, 10]


async def test_a_pause_withholds_openings_and_its_end_brings_a_full_sync(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    user = subscribers_ledger.add_user("token", 1)
    seen = Seen()
    await log.signals(1, 3)
    async with subscriber(fanout, tmp_path, seen) as client:
        await client.wait_position(1, 3, WAIT_SECONDS)
        await subscribers_ledger.pause(user, 1, license_pb.PAUSE_SCOPE_CLOSE_ONLY)
        await until(lambda: client.state(1) is SyncState.PAUSED_CLOSE_ONLY)
        await log.signals(1, 2)
        await log.signals(1, 1, kind=signal_pb2.SIGNAL_KIND_CLOSE, position_id=2)
        await client.wait_position(1, 6, WAIT_SECONDS)
        assert seen.sequences[1] == [1, 2, 3, 6]
        assert sorted(client.copier(1).account.holdings) == [1, 3]
        await log.snapshot(1)
        await subscribers_ledger.pause(user, 1, license_pb.PAUSE_SCOPE_UNSPECIFIED)
        await until(lambda: seen.of_type(Resynced))
        assert client.state(1) is SyncState.SYNCED
        assert not client.copier(1).account.holdings


async def test_another_license_takes_over_in_mid_stream(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    old = subscribers_ledger.add_user("token", 1)
    seen = Seen()
    await log.signals(1, 3)
    async with subscriber(fanout, tmp_path, seen) as client:
        await client.wait_position(1, 3, WAIT_SECONDS)
        subscribers_ledger.add_user("rotated", 1)
        client.set_license_token("rotated")
        await subscribers_ledger.revoke(old)
        await log.signals(1, 3)
        await client.wait_position(1, 6, WAIT_SECONDS)
    assert seen.sequences[1] == [1, 2, 3, 4, 5, 6]
    assert "UNAUTHENTICATED" not in {event.code for event in seen.of_type(StreamEnded)}


async def test_a_revoked_license_is_replaced_by_the_application(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    user = subscribers_ledger.add_user("token", 1)
    subscribers_ledger.add_user("fresh", 1)
    seen = Seen()
    await log.signals(1, 2)
    refreshed = []

    async def refresh() -> str:
        refreshed.append(True)
        return "fresh"

    async with subscriber(fanout, tmp_path, seen, refresh_token=refresh) as client:
        await client.wait_position(1, 2, WAIT_SECONDS)
        await subscribers_ledger.revoke(user)
        await until(lambda: refreshed)
        await log.signals(1, 2)
        await client.wait_position(1, 4, WAIT_SECONDS)
    assert seen.sequences[1] == [1, 2, 3, 4]
    assert seen.of_type(StreamEnded)[0].code == "UNAUTHENTICATED"


@pytest.mark.parametrize("drained", [True, False])
async def test_a_restarted_server_is_found_again(
    redis_url: str, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path, drained: bool
) -> None:
    subscribers_ledger.add_user("token", 1)
    seen = Seen()
    await log.signals(1, 5)
    async with fanout_running(fanout_settings(redis_url, subscribers_ledger)) as fanout:
        port = fanout.running.port
        client = subscriber(fanout, tmp_path, seen)
        await client.start()
        await client.wait_position(1, 5, WAIT_SECONDS)
        if not drained:
            client.disconnect()
    await log.signals(1, 5)
    again = fanout_settings(redis_url, subscribers_ledger, grpc_bind_address=f"127.0.0.1:{port}")
    async with fanout_running(again):
        await client.wait_position(1, 10, WAIT_SECONDS)
    await client.close()
    assert seen.sequences[1] == list(range(1, 11))


async def test_a_protection_refuses_and_the_account_follows(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    subscribers_ledger.add_user("token", 1)
    seen = Seen()

    def protection(sequenced: signal_pb2.SequencedSignal, _decision: Decision) -> Reason:
        return Reason.SPREAD if sequenced.sequence % 2 else Reason.NONE

    client = subscriber(fanout, tmp_path, seen, protection=protection)
    await log.signals(1, 10)
    async with client:
        await client.wait_position(1, 10, WAIT_SECONDS)
        assert [holding.position_id for holding in client.copier(1).account.held()] == [2, 4, 6, 8, 10]
        assert not list(differences(client.copier(1), client.copier(1).mirror))
    assert [decision.reason for decision in seen.decisions[:2]] == [Reason.SPREAD, Reason.NONE]
